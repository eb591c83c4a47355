"""Every model that vitq emits is valid ONNX, and other people's runtimes compute what it says."""
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from interop import (
    DOMAIN,
    MODELS,
    OTHERS,
    TARGETS,
    VITS,
    accuracy,
    compile_args,
    constants,
    in_batches,
    run_ort,
    run_reference,
    same_bits,
    sqnr_db,
)

CUSTOM_OPS = {"PtfLayerNorm", "LogIntSoftmax", "LutGelu"}
IMAGES = 32  # enough for agreement; the ReferenceEvaluator is slow

emitted = pytest.mark.parametrize("target", TARGETS)
vit = pytest.mark.parametrize("model", VITS, ids=lambda m: m.stem)
integer_only = pytest.mark.parametrize("target", ["integer"])


def test_the_models_are_there():
    """Parametrised tests over an empty list would pass by not running."""
    assert VITS and OTHERS and set(VITS) | set(OTHERS) == set(MODELS)


@vit
@emitted
def test_checker_accepts_it(compiled, model, target):
    onnx.checker.check_model(str(compiled(model, target)), full_check=True)


@vit
@emitted
def test_interface_is_the_originals(compiled, model, target):
    """Names, element types and shapes of inputs and outputs are those of the fp32 model."""
    before, after = onnx.load(model).graph, onnx.load(compiled(model, target)).graph

    def interface(values):
        return [(v.name, v.type.SerializeToString(deterministic=True)) for v in values]

    assert interface(after.input) == interface(before.input)
    assert interface(after.output) == interface(before.output)


@vit
@emitted
def test_custom_ops_are_where_they_belong(compiled, model, target):
    """`integer` has all three with function bodies of standard ops; `onnxruntime` has none."""
    proto = onnx.load(compiled(model, target))
    used = {n.op_type for n in proto.graph.node if n.domain == DOMAIN}
    bodies = {f.name: f for f in proto.functions if f.domain == DOMAIN}
    if target != "integer":
        assert not used and not bodies
        return
    # A GELU between codes with an exponent a channel is the same op with a row for each pair of exponents.
    assert CUSTOM_OPS <= {name.removeprefix("Channel") for name in used}
    assert used <= set(bodies), "an op of ours without a function body runs nowhere else"
    for f in bodies.values():
        foreign = {n.domain for n in f.node} - {"", "ai.onnx", DOMAIN}
        assert not foreign, f"{f.name} uses {foreign}"


@vit
@emitted
def test_every_linear_is_quantised(compiled, model, target):
    """No float weight matrix is left: all MatMul, Gemm and Conv weights are integers behind a DequantizeLinear."""
    graph = onnx.load(compiled(model, target)).graph
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) >= 2}
    left = [n.name for n in graph.node if n.op_type in ("MatMul", "Gemm", "Conv") and n.input[1] in floats]
    assert not left
    assert any(n.op_type == "QuantizeLinear" for n in graph.node)


@vit
@emitted
def test_runtimes_agree(compiled, digits, model, target):
    """onnxruntime and onnx's ReferenceEvaluator give the same answers.

    Not the same bits: the float operations between a DequantizeLinear and the next QuantizeLinear (a MatMul's order of
    summation, onnxruntime's fused integer kernels) may differ in the last bit, which turns a value that lies on a rounding
    boundary into the next code, and the blocks after it carry that on. Custom ops, which compute on integers, are
    compared bit for bit below.
    """
    path, x = compiled(model, target), digits[0][:IMAGES]
    ours, theirs = in_batches(run_ort, path, x), in_batches(run_reference, path, x)
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.99
    assert sqnr_db(theirs, ours) >= 30


@vit
@emitted
def test_accuracy_is_kept(compiled, digits, model, target):
    """Within two points of fp32 on the test split, in onnxruntime."""
    x, labels = digits
    before = accuracy(in_batches(run_ort, model, x), labels)
    after = accuracy(in_batches(run_ort, compiled(model, target), x), labels)
    assert before >= 97, "the fp32 model itself is not what models/README.md says"
    assert after >= before - 2, f"{before:.2f} % before, {after:.2f} % after"


def custom_nodes(graph):
    return [n for n in graph.node if n.domain == DOMAIN]


def with_taps(proto, names):
    """A copy of the model with these values as further outputs (their types are left to onnxruntime's inference)."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    have = {o.name for o in tapped.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
    return tapped


def alone(proto, node, feeds):
    """A model of this one node, with the functions and opsets of the model that it comes from."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
    graph = helper.make_graph([node], "alone", inputs, outputs)
    return helper.make_model(
        graph, opset_imports=proto.opset_import, functions=proto.functions, ir_version=proto.ir_version
    )


@vit
@integer_only
def test_custom_ops_bit_for_bit(compiled, digits, model, target):
    """Each node of ours, fed the very values that it saw in the whole model: every runtime gives the same bits.

    Three ways to run the function body: inside the whole model with onnxruntime's optimiser at work, alone with the
    optimiser off, and alone in onnx's ReferenceEvaluator.
    """
    assert_custom_ops_agree(onnx.load(compiled(model, target)), digits)


PTF_AROUND_GELU = """
layers:
  norm1: {quantization_method: PTF, calibration_mode: layer_wise}
  norm2: {quantization_method: PTF, calibration_mode: layer_wise}
attn_layer: {mlp_act: {quantization_method: PTF, observer_type: MinmaxObserver}}
extra_layer: {mlp_fc1_output: {quantization_method: PTF}}
"""


@vit
def test_exponents_around_gelu_and_before_linears(vitq, digits, model, tmp_path):
    """With an exponent a channel on both sides of GELU and before the Linears, nothing returns to float."""
    config, out = tmp_path / "ptf.yaml", tmp_path / "ptf.onnx"
    config.write_text(PTF_AROUND_GELU)
    vitq(*compile_args(model, "integer", out, "--config", config, "--strict"))
    proto = onnx.load(out)
    used = [n.op_type for n in proto.graph.node]
    assert "ChannelLutGelu" in used and not {"Gelu", "Erf", "LayerNormalization"} & set(used)
    products = {n.output[0] for n in proto.graph.node if n.op_type == "MatMul"}
    floats = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    left = [n.name for n in proto.graph.node if n.op_type == "Add" and set(n.input) & products and set(n.input) & floats]
    assert not left, "biases in float"
    assert_custom_ops_agree(proto, digits)
    x, labels = digits
    before, after = (accuracy(in_batches(run_ort, m, x), labels) for m in (model, out))
    assert after >= before - 2, f"{before:.2f} % before, {after:.2f} % after"


@vit
@emitted
def test_factors_of_weights_are_read_off_the_file(vitq, digits, model, target, tmp_path):
    """`vitq.groups` names the codes that are products of a factor and a code of few bits; the smallest factor that serves is one."""
    out = tmp_path / "w4a8.onnx"
    vitq(*compile_args(model, target, out, "--config", "w4a8"))
    proto = onnx.load(out)
    groups = json.loads(next(p.value for p in proto.metadata_props if p.key == "vitq.groups"))
    codes = {t.name: numpy_helper.to_array(t).astype(int) for t in proto.graph.initializer if t.name in groups}
    assert len(codes) == len(groups) >= 6
    for name, of in groups.items():
        assert of == {"bits": 4, "group_size": 8}
        for channel in codes[name].T:
            for group in np.split(channel, range(8, len(channel), 8)):
                fits = [f for f in range(1, 17) if not (group % f).any() and (abs(group // f) <= 7).all()]
                assert fits, f"{name}: {group}"
    x, labels = digits
    before, after = (accuracy(in_batches(run_ort, m, x), labels) for m in (model, out))
    assert after >= before - 3, f"{before:.2f} % before, {after:.2f} % after"


def assert_custom_ops_agree(proto, digits):
    nodes, known = custom_nodes(proto.graph), constants(proto)
    assert nodes
    feed = next(i.name for i in proto.graph.input if i.name not in known)
    names = dict.fromkeys(n for node in nodes for n in (*node.input, *node.output) if n and n not in known)
    names.pop(feed, None)
    value = next(i for i in proto.graph.input if i.name == feed)
    batch = value.type.tensor_type.shape.dim[0].dim_value or 4
    seen = {feed: digits[0][:batch]} | known
    seen |= run_ort(with_taps(proto, names), {feed: seen[feed]})
    wrong = []
    for node in nodes:
        feeds = {n: seen[n] for n in node.input if n}
        single = alone(proto, node, feeds)
        runs = {"onnxruntime": run_ort(single, feeds, optimise=False), "ReferenceEvaluator": run_reference(single, feeds)}
        for runtime, got in runs.items():
            for n in filter(None, node.output):
                if not same_bits(got[n], seen[n]):
                    differ = (
                        np.count_nonzero(got[n] != seen[n])
                        if got[n].shape == seen[n].shape
                        else f"{got[n].shape} {got[n].dtype} against {seen[n].shape} {seen[n].dtype}"
                    )
                    wrong.append(f"{node.op_type} {node.name} in {runtime}: {n}: {differ} of {seen[n].size} values differ")
    assert not wrong, "\n".join(wrong)


@vit
@emitted
def test_weights_are_the_originals_rounded(compiled, model, target):
    """Each quantised 2-D weight, dequantised, points along a weight of the original, output channel by output channel.

    Eight bits leave a cosine above 0.999; another layer's weight, or scales applied on the wrong axis, leave far less.
    A direction, not the values, because the attention's scale may be folded into the q and k channels. The weight may be
    stored either way round, and q, k and v may be the thirds of one joint weight.
    """
    before = [numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer if len(t.dims) == 2]
    before += [part for w in before if w.shape[1] % 3 == 0 for part in np.split(w, 3, axis=1)]
    proto = onnx.load(compiled(model, target))
    known = constants(proto)
    checked = 0
    for node in proto.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in known:
            continue
        codes, scale = known[node.input[0]].astype(np.float64), known[node.input[1]].astype(np.float64)
        if codes.ndim != 2:
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        zero = known[node.input[2]].astype(np.float64) if len(node.input) > 2 and node.input[2] else 0.0
        spread = (lambda v: np.expand_dims(v, 1 - axis) if np.ndim(v) == 1 else v)  # noqa: E731
        real = (codes - spread(zero)) * spread(scale)
        fits = [
            max(cosine(real, w, along).min() for along in (0, 1))
            for candidate in before
            for w in (candidate, candidate.T)
            if w.shape == real.shape
        ]
        assert fits and max(fits) > 0.995, f"{node.name or node.output[0]} matches no weight of the original: {fits}"
        checked += 1
    assert checked >= 4 * 4, "at least four Linears a block, four blocks"


def cosine(a, b, along):
    """The cosine of the angle between a's and b's vectors along this axis."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=along) * np.linalg.norm(b, axis=along)
    return (a * b).sum(along) / np.where(norms == 0, 1, norms)


other = pytest.mark.parametrize("model", OTHERS, ids=lambda m: m.stem)


@other
@emitted
def test_other_models_are_valid_and_quantised(compiled, model, target):
    """A model without a transformer block: every layer reads codes, by operators of the standard alone."""
    path = compiled(model, target)
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(path).graph
    made = {n.output[0]: n.op_type for n in graph.node}
    layers = [n for n in graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    assert layers and all(made.get(i) == "DequantizeLinear" for n in layers for i in n.input)
    assert not any(n.op_type == "BatchNormalization" or n.domain == DOMAIN for n in graph.node)


@other
@emitted
def test_other_models_keep_their_accuracy(compiled, digits, model, target):
    """Within one point of fp32 on the test split, in onnxruntime; onnx's ReferenceEvaluator agrees."""
    path, (x, labels) = compiled(model, target), digits
    before = accuracy(in_batches(run_ort, model, x), labels)
    ours = in_batches(run_ort, path, x)
    after = accuracy(ours, labels)
    assert before >= 97 and after >= before - 1, f"{before:.2f} % before, {after:.2f} % after"
    few = x[:IMAGES]
    assert sqnr_db(in_batches(run_reference, path, few), ours[:IMAGES]) >= 30


@pytest.mark.parametrize("target", ["onnxruntime"])
def test_convolutions_run_in_integers(compiled, tmp_path, target):
    """What onnxruntime's optimiser makes of the emitted CNN: integer kernels for every convolution, sum and pool."""
    (model,) = [m for m in OTHERS if m.stem == "cnn_digits"]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(compiled(model, target)), options, providers=["CPUExecutionProvider"])
    ops = [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
    assert (ops.count("QLinearConv"), ops.count("QLinearAdd"), ops.count("QLinearGlobalAveragePool")) == (8, 3, 1), ops
    assert not {"Conv", "Add", "GlobalAveragePool", "Relu"} & set(ops), ops


def elementwise(path):
    """A model without any weights to quantise."""
    shape = ["batch", 3, 32, 32]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "elementwise", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@emitted
def test_models_without_layers_are_refused(vitq, tmp_path, target):
    """An error in words, and nothing written."""
    model, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    elementwise(model)
    done = vitq(*compile_args(model, target, out), check=False)
    assert done.returncode not in (0, 101), done.stdout  # 101 is a Rust panic
    assert "panicked" not in done.stderr and "nothing to quantise" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.onnx"]
