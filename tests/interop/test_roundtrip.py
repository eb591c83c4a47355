"""Import and export without a change lose nothing: `vitq roundtrip IN OUT`.

Two proofs for each model: the protobuf messages are equal field by field, and onnxruntime's outputs before and after are
the same bits. Presence counts where it means something (`PRESENCE`, and every message). Any other scalar that is there
with its default value says what its absence says, as in proto3, in which onnx publishes its schema too; so it may come or go.
The models of the project come back byte by byte all the same.
"""
import numpy as np
import onnx
import pytest

from fixtures import all_fixtures, external_model
from interop import DIGITS, MODELS, TARGETS, VITS, load_folder, run_ort, same_bits, session, shared_models

FIXTURES = list(all_fixtures())
# Scalars whose presence tells which of several fields holds the value.
PRESENCE = {("AttributeProto", "f"), ("AttributeProto", "i"), ("AttributeProto", "s"), ("TensorProto", "raw_data")}


def forget_defaults(message):
    """Clears the scalars whose presence means nothing where they have their default value; returns the message."""
    for field, content in message.ListFields():
        if field.message_type:
            for inner in content if field.is_repeated else [content]:
                forget_defaults(inner)
        elif not (field.is_repeated or field.containing_oneof or (message.DESCRIPTOR.name, field.name) in PRESENCE):
            if bits(content) == bits(field.default_value):
                message.ClearField(field.name)
    return message


def differences(a, b, path="model"):
    """The paths at which two protobuf messages differ, with what each has; at most a few, in words."""
    found = []
    for field in a.DESCRIPTOR.fields:
        here, left, right = f"{path}.{field.name}", getattr(a, field.name), getattr(b, field.name)
        if field.is_repeated:
            if len(left) != len(right):
                found.append(f"{here}: {len(left)} entries became {len(right)}")
            if field.message_type:
                for i, pair in enumerate(zip(left, right)):
                    found += differences(*pair, f"{here}[{i}]")
            elif [bits(v) for v in left] != [bits(v) for v in right]:
                found.append(f"{here}: {shorten(list(left))} became {shorten(list(right))}")
        elif a.HasField(field.name) != b.HasField(field.name):
            was, now = ("present" if m.HasField(field.name) else "absent" for m in (a, b))
            found.append(f"{here}: {was}, became {now}")
        elif field.message_type:
            found += differences(left, right, here) if a.HasField(field.name) else []
        elif bits(left) != bits(right):
            found.append(f"{here}: {shorten(left)} became {shorten(right)}")
        if len(found) > 20:
            break
    return found


def bits(v):
    """A float as its bytes, so that NaN equals itself and -0.0 is not 0.0."""
    return np.float64(v).tobytes() if isinstance(v, float) else v


def shorten(v):
    text = repr(v)
    return text if len(text) < 80 else text[:77] + "..."


def assert_same(before, after):
    """Paths in."""
    a, b = forget_defaults(onnx.load(before)), forget_defaults(onnx.load(after))
    found = differences(a, b)
    assert not found, "\n".join(found)
    # The comparison above walks the schema of the installed onnx; the bytes know no such limit.
    assert a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


def assert_runs_the_same(before, after, feeds):
    a, b = run_ort(before, feeds), run_ort(after, feeds)
    assert a and list(a) == list(b)
    for name in a:
        assert same_bits(a[name], b[name]), f"output {name} changed"


def feeds_for(path):
    """Real images for the digits models, seeded noise for others; a symbolic dimension is 1."""
    rng = np.random.default_rng(0)
    (value,) = session(path).get_inputs()
    shape = [d if isinstance(d, int) else 1 for d in value.shape]
    assert value.type == "tensor(float)"
    if shape[1:] == [3, 32, 32]:
        return {value.name: load_folder(DIGITS / "calib")[0][: shape[0]]}
    return {value.name: rng.standard_normal(shape, dtype=np.float32)}


def round_trip(vitq, path, tmp_path, *more):
    (tmp_path / "after").mkdir()
    out = tmp_path / "after" / path.name
    vitq("roundtrip", path, out, *more)
    return out


def test_the_comparison_sees_what_it_must():
    """Near misses: each loses one small thing, and `differences` names it."""
    by_name = {name: proto for name, proto, _ in FIXTURES}

    def broken(name, change):
        copy = onnx.ModelProto()
        copy.CopyFrom(by_name[name])
        change(copy)
        original = onnx.ModelProto()
        original.CopyFrom(by_name[name])
        return differences(forget_defaults(original), forget_defaults(copy))

    assert not broken("described", lambda m: None)
    assert not broken("explicit_defaults", lambda m: m.ClearField("model_version"))
    for name, change, where in [
        ("described", lambda m: m.graph.node[0].ClearField("doc_string"), "model.graph.node[0].doc_string"),
        ("described", lambda m: m.metadata_props.reverse(), "model.metadata_props[0].key"),
        ("every_attribute", lambda m: m.graph.node[0].attribute[2].ClearField("i"), "attribute[2].i"),
        ("used_tensors", lambda m: m.graph.initializer[2].ClearField("raw_data"), "initializer[2].raw_data"),
        ("branches", lambda m: m.graph.node[2].attribute[1].ClearField("g"), "node[2].attribute[1].g"),
        ("unranked", lambda m: m.graph.value_info[1].type.tensor_type.shape.SetInParent(), "tensor_type.shape"),
        ("optional_ports", lambda m: m.graph.node[1].input.pop(), "model.graph.node[1].input"),
        ("dtype-FLOAT-typed", lambda m: m.graph.initializer[0].float_data.__setitem__(1, 0.0), "float_data"),
        ("branches", lambda m: m.graph.node[2].attribute[1].g.ClearField("initializer"), ".g.initializer"),
    ]:
        found = broken(name, change)
        assert any(where in line for line in found), f"{name}: {found}"


@pytest.mark.parametrize(("name", "proto", "feeds"), FIXTURES, ids=[f[0] for f in FIXTURES])
def test_fixture(vitq, tmp_path, name, proto, feeds):
    before = tmp_path / "model.onnx"
    onnx.save(proto, before)
    after = round_trip(vitq, before, tmp_path)
    assert_same(before, after)
    if feeds is not None:
        assert_runs_the_same(before, after, feeds)


@pytest.mark.parametrize("path", [*MODELS, *shared_models()], ids=lambda p: p.stem)
def test_model(vitq, tmp_path, path):
    after = round_trip(vitq, path, tmp_path)
    assert after.read_bytes() == path.read_bytes()
    assert_runs_the_same(path, after, feeds_for(path))


@pytest.mark.parametrize("model", VITS, ids=lambda m: m.stem)
@pytest.mark.parametrize("target", TARGETS)
def test_emitted_model(vitq, compiled, tmp_path, model, target):
    """What vitq wrote, it reads again."""
    path = compiled(model, target)
    after = round_trip(vitq, path, tmp_path)
    assert_same(path, after)
    assert_runs_the_same(path, after, feeds_for(path))


def test_external_data_read(vitq, tmp_path):
    """Without --external-data a small model comes back in one piece, with the values that lay beside it."""
    path, feeds = external_model(tmp_path)
    after = round_trip(vitq, path, tmp_path)
    assert [p.name for p in after.parent.iterdir()] == [after.name]
    assert_same(path, after)
    assert_runs_the_same(path, after, feeds)


def test_external_data_written(vitq, tmp_path):
    """With it, the weights lie beside the model, which is the same once they are loaded."""
    (path,) = VITS
    after = round_trip(vitq, path, tmp_path, "--external-data")
    bare = onnx.load(after, load_external_data=False)
    outside = [t for t in bare.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert outside and after.stat().st_size < path.stat().st_size / 2
    for tensor in outside:
        entries = {e.key: e.value for e in tensor.external_data}
        assert (after.parent / entries["location"]).is_file() and {"offset", "length"} <= set(entries)
    assert_runs_the_same(path, after, feeds_for(path))
    onnx.checker.check_model(str(after), full_check=True)
    assert_same(path, after)


def test_a_newer_ir_version_is_refused(vitq, tmp_path):
    """Decoding drops fields that it does not know, so a newer schema than ours cannot be read without loss."""
    (name, proto, _) = next(f for f in FIXTURES if f[0] == "described")
    newer = onnx.ModelProto()
    newer.CopyFrom(proto)
    newer.ir_version = 1000
    path, out = tmp_path / "newer.onnx", tmp_path / "out.onnx"
    path.write_bytes(newer.SerializeToString())
    done = vitq("roundtrip", path, out, check=False)
    assert done.returncode not in (0, 101) and "1000" in done.stderr
    assert not out.exists()
