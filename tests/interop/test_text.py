"""`vitq inspect --text` is ONNX textual syntax: onnx's own parser reads it."""
import onnx
import onnx.parser
import pytest

from interop import MODELS, TARGETS, VITS


def parsed(vitq, path):
    text = vitq("inspect", "--text", path).stdout
    return onnx.parser.parse_model(text)


def check(vitq, path):
    model, original = parsed(vitq, path), onnx.load(path)
    for side in ("input", "output"):
        assert [v.name for v in getattr(model.graph, side)] == [v.name for v in getattr(original.graph, side)]
    versions = {o.domain: o.version for o in model.opset_import}
    assert versions and {n.domain for n in model.graph.node} <= set(versions)
    # Every value is defined before it is used: what is printed is one whole graph, in order.
    defined = {v.name for v in model.graph.input} | {t.name for t in model.graph.initializer} | {""}
    for node in model.graph.node:
        missing = set(node.input) - defined
        assert not missing, f"{node.op_type} {node.name} reads {missing} before anything writes it"
        defined |= set(node.output)
    assert {v.name for v in model.graph.output} <= defined
    return model


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.stem)
def test_text_of_a_model_parses(vitq, model):
    assert check(vitq, model).graph.node


@pytest.mark.parametrize("model", VITS, ids=lambda m: m.stem)
@pytest.mark.parametrize("target", TARGETS)
def test_text_of_an_emitted_model_parses(vitq, compiled, model, target):
    """Custom ops and their function bodies included."""
    path = compiled(model, target)
    text, original = check(vitq, path), onnx.load(path)
    assert {(f.domain, f.name) for f in text.functions} == {(f.domain, f.name) for f in original.functions}
