"""The custom ops of `ai.vitq`: the Rust kernel, the function body in onnxruntime and in onnx's ReferenceEvaluator, and the op
in tract (through `vitq run`) give the same bits, and those bits are what float64 says.

Constants come from the Rust builders through `examples/kernel.rs params`, so that nothing is implemented twice. The example's
binary is taken from VITQ_KERNEL, or built with cargo. `pytest -s` prints the accuracy of every op in codes.
"""

import itertools
import math
import os
import pathlib
import subprocess

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import interop

ROOT = pathlib.Path(__file__).resolve().parents[2]
FUNCTIONS = ROOT / "src" / "lower" / "functions"
MILLION = 1_000_000

I8, U8, I16, U16 = np.int8, np.uint8, np.int16, np.uint16


@pytest.fixture(scope="session")
def kernel_binary():
    path = os.environ.get("VITQ_KERNEL")
    if path is None:
        subprocess.run(["cargo", "build", "--quiet", "--example", "kernel"], cwd=ROOT, check=True)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        path = target / "debug" / "examples" / "kernel"
    return str(path)


@pytest.fixture
def kernel(kernel_binary, binary, tmp_path):
    """Calls the Rust example: kernel(op, inputs) or kernel(op, parameters, params=True); kernel.tract(model, codes) runs a
    one-node model by `vitq run`."""

    def tract(proto, data):
        path, source, result = tmp_path / "model.onnx", tmp_path / "codes.npz", tmp_path / "run.npz"
        onnx.save(float_front(proto, data), path)
        np.savez(source, codes=data[None].astype(np.float32))
        interop.run_vitq(binary, "run", path, "--input", source, "-o", result)
        with np.load(result) as arrays_out:
            (array,) = arrays_out.values()
        return array[0]

    def call(op, arrays, params=False):
        source, result = tmp_path / "in.npz", tmp_path / "out.npz"
        np.savez(source, **arrays)
        mode = ["params"] if params else []
        done = subprocess.run([kernel_binary, *mode, op, source, result], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(result) as arrays_out:
            return dict(arrays_out)

    call.tract = tract
    return call


def float_front(proto, data):
    """The same model fed with codes as floats, since `vitq run` takes float inputs: a QuantizeLinear of scale 1 before it, and
    an open batch axis, which both the op and the scale pass through."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    graph = proto.graph
    name = graph.input[0].name
    shape = ["batch", *data.shape]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("codes", onnx.TensorProto.FLOAT, shape))
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), data.dtype), "zero"))
    graph.node.insert(0, helper.make_node("QuantizeLinear", ["codes", "one", "zero"], [name]))
    out = graph.output[0]
    out.CopyFrom(helper.make_tensor_value_info(out.name, out.type.tensor_type.elem_type, shape))
    return proto


def element_type(array):
    return helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)


def model(op, data, constants, out_type):
    """A model of one node of `op` whose function is attached; `constants` become initializers."""
    function = onnx.parser.parse_function((FUNCTIONS / f"{op}.onnxtxt").read_text())
    assert (function.domain, function.name) == ("ai.vitq", op)
    assert list(function.input)[1:] == list(constants), "constants are given in the order of the signature"
    name = function.input[0]
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, list(function.input), list(function.output), domain="ai.vitq")],
            op,
            [helper.make_tensor_value_info(name, element_type(data), list(data.shape))],
            [helper.make_tensor_value_info(function.output[0], out_type, list(data.shape))],
            initializer=[onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        ),
        functions=[function],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ai.vitq", 1)],
        ir_version=9,
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto, name, function.output[0]


def everywhere(kernel, op, data, constants, out_dtype):
    """Runs the op in all four places, asserts identical bits, returns them."""
    constants = ordered(op, constants)
    proto, name, out = model(op, data, constants, helper.np_dtype_to_tensor_dtype(np.dtype(out_dtype)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (fast,) = session.run(None, {name: data})
    (reference,) = ReferenceEvaluator(proto).run(None, {name: data})
    rust = kernel(op, {name: data, **constants})[out]
    for other, who in ((fast, "onnxruntime"), (reference, "ReferenceEvaluator")):
        assert other.dtype == rust.dtype == np.dtype(out_dtype), (who, other.dtype, rust.dtype)
        assert other.shape == rust.shape == data.shape, who
        assert other.tobytes() == rust.tobytes(), f"{who} differs in {np.mean(other != rust):.2%} of the elements"
    if data.size == 0:
        return rust  # `vitq run` refuses data without a value
    # Codes of up to 16 bits are exact as the floats that `vitq run` writes.
    tract = kernel.tract(proto, data)
    assert tract.shape == rust.shape
    assert np.array_equal(tract, rust.astype(np.float32)), f"tract differs in {np.mean(tract != rust):.2%} of the elements"
    return rust


def ordered(op, constants):
    names = onnx.parser.parse_function((FUNCTIONS / f"{op}.onnxtxt").read_text()).input[1:]
    return {name: constants[name] for name in names}


def random_codes(rng, dtype, shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def rows(rng, dtype, count, length):
    """Rows at the extremes first (equal, one-hot, saturated, nearly constant), then random ones of many spreads."""
    info = np.iinfo(dtype)
    low, high, middle = info.min, info.max, (info.min + info.max + 1) // 2
    hot, cold = np.full(length, low), np.full(length, high)
    hot[length // 2], cold[-1] = high, low
    step = np.full(length, middle)
    step[0] += 1
    alternating = np.where(np.arange(length) % 2 == 0, low, high)
    special = [np.full(length, v) for v in (low, high, middle, middle + 1)]
    special += [hot, cold, step, alternating, np.where(np.arange(length) < length // 2, low, high)]
    rest = max(count - len(special), 0)
    spread = np.exp(rng.uniform(np.log(0.5), np.log(high - low), (rest, 1)))
    centre = rng.uniform(low, high, (rest, 1))
    normal = np.clip(np.round(centre + spread * rng.standard_normal((rest, length))), low, high)
    normal[: rest // 4] = rng.integers(low, high + 1, (rest // 4, length))
    return np.concatenate([np.array(special), normal]).astype(dtype)


def report(name, got, exact):
    """Prints and returns the largest error in codes and the share of codes equal to the rounded exact value."""
    difference = np.abs(got.astype(np.float64) - exact)
    equal = float(np.mean(difference == 0))
    print(f"\n{name}: max {difference.max():.0f} code(s), mean {difference.mean():.2e}, equal {equal:.4%}", end="")
    return difference.max(), equal


# Lut, LutGelu


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = [
    lambda x: 0.5 * x * np.vectorize(math.erfc)(-x / math.sqrt(2)),
    lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    lambda x: x * sigmoid(x),
    lambda x: x * sigmoid(1.702 * x),
    sigmoid,
    np.tanh,
    lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
]


@pytest.mark.parametrize("in_dtype,out_dtype", list(itertools.product((I8, U8, I16, U16), repeat=2)))
def test_lut(kernel, in_dtype, out_dtype):
    rng = np.random.default_rng(1)
    op = "LutGelu" if out_dtype in (I8, U16) else "Lut"
    info, out_info = np.iinfo(in_dtype), np.iinfo(out_dtype)
    levels = info.max - info.min
    data = random_codes(rng, in_dtype, (2, 500, 1000))
    data.flat[: min(levels + 1, data.size)] = np.arange(info.min, info.max + 1)
    activations = [0] if op == "LutGelu" else range(7)
    for activation in activations:
        in_scale, in_zero_point = 16 / levels, int(info.min + 0.6 * levels)
        out_scale, out_zero_point = 8 / (out_info.max - out_info.min), int(out_info.min + 20)
        low, high = out_info.min + 1, out_info.max - 1
        table = kernel(
            op,
            {
                "activation": np.int64(activation),
                "x": np.zeros(1, in_dtype),
                "in_scale": np.float64(in_scale),
                "in_zero_point": np.int64(in_zero_point),
                "out_scale": np.float64(out_scale),
                "out_zero_point": np.int64(out_zero_point),
                "y_range": np.array([low, high], out_dtype),
            },
            params=True,
        )
        got = everywhere(kernel, op, data, table, out_dtype)
        codes = np.arange(info.min, info.max + 1)
        real = ACTIVATIONS[activation](in_scale * (codes - in_zero_point))
        exact = np.clip(np.round(real / out_scale) + out_zero_point, low, high)[data.astype(np.int64) - info.min]
        largest, equal = report(f"{op} {activation} {in_dtype.__name__}>{out_dtype.__name__}", got, exact)
        assert largest <= 1 and equal > 0.9999


def test_a_table_for_fewer_bits_than_the_type_has(kernel):
    """Levels of 12 bits in int16 become codes of 8 bits, and these levels again."""
    rng = np.random.default_rng(2)
    data, table = rng.integers(-2048, 2048, (2, 300, 64)).astype(I16), random_codes(rng, I8, 4096)
    codes = everywhere(kernel, "Lut", data, {"table": table}, I8)
    np.testing.assert_array_equal(codes, table[data.astype(np.int64) % 4096])
    levels = rng.integers(-2048, 2048, 256).astype(I16)
    np.testing.assert_array_equal(everywhere(kernel, "Lut", codes, {"table": levels}, I16), levels[codes.astype(np.int64) % 256])


# ChannelLut, ChannelLutGelu

CHANNEL_LUTS = [
    # input, output, channels, highest exponents of the input and the output (None: no exponents)
    (I8, I8, 768, 7, 5),
    (I8, I8, 192, 15, 15),
    (U8, I8, 384, 3, 3),
    (I8, U8, 384, 4, None),
    (U8, U16, 192, None, 6),
    (I16, I8, 192, 3, 3),
    (U16, I16, 100, 15, None),
    (I8, I16, 3, 2, 2),
    (I8, I8, 1, 3, 3),
]


def channel_lut(kernel, rng, op, activation, in_dtype, out_dtype, channels, in_top, out_top):
    info, out_info = np.iinfo(in_dtype), np.iinfo(out_dtype)
    exponents = [
        np.zeros(channels, np.int64) if top is None else rng.integers(0, top + 1, channels) for top in (in_top, out_top)
    ]
    levels = info.max - info.min
    parameters = {
        "activation": np.int64(activation),
        "x": np.zeros(1, in_dtype),
        "in_scale": np.float64(4 / levels),
        "in_zero_point": np.int64(info.min + 0.6 * levels),
        "in_exponents": exponents[0],
        # Not 2, which puts a saturated tanh or sigmoid half-way between two codes.
        "out_scale": np.float64(2.1 / (out_info.max - out_info.min)),
        "out_zero_point": np.int64(out_info.min + 20),
        "out_exponents": exponents[1],
        "y_range": np.array([out_info.min + 1, out_info.max - 1], out_dtype),
    }
    constants = kernel(op, parameters, params=True)
    pairs = len(set(zip(*(e.tolist() for e in exponents))))
    assert constants["table"].shape == (pairs, levels + 1) and constants["rows"].shape == (channels,)
    return parameters, constants


@pytest.mark.parametrize("in_dtype,out_dtype,channels,in_top,out_top", CHANNEL_LUTS)
def test_channel_lut(kernel, in_dtype, out_dtype, channels, in_top, out_top):
    rng = np.random.default_rng(channels)
    op = "ChannelLutGelu" if out_dtype in (I8, U16) else "ChannelLut"
    info = np.iinfo(in_dtype)
    data = random_codes(rng, in_dtype, (2, MILLION // (4 * channels) + 128, channels))
    # Every 8-bit code in every channel.
    data[0, :256] = (info.min + np.arange(256)[: data.shape[1], None]).astype(in_dtype)
    for activation in [0] if op == "ChannelLutGelu" else range(7):
        p, constants = channel_lut(kernel, rng, op, activation, in_dtype, out_dtype, channels, in_top, out_top)
        got = everywhere(kernel, op, data, constants, out_dtype)
        real = p["in_scale"] * 2.0 ** p["in_exponents"] * (data.astype(np.float64) - p["in_zero_point"])
        steps = np.round(ACTIVATIONS[activation](real) / (p["out_scale"] * 2.0 ** p["out_exponents"]))
        exact = np.clip(steps + p["out_zero_point"], *p["y_range"].astype(np.float64))
        name = f"{op} {activation} {in_dtype.__name__}>{out_dtype.__name__} C {channels} exponents {in_top} {out_top}"
        largest, equal = report(name, got, exact)
        assert largest <= 1 and equal > 0.9999


@pytest.mark.parametrize("shape", [(1, 197, 192), (192,), (2, 3, 4, 192), (0, 192)])
def test_channel_lut_takes_any_rank(kernel, shape):
    rng = np.random.default_rng(0)
    _, constants = channel_lut(kernel, rng, "ChannelLutGelu", 0, I8, I8, 192, 3, 3)
    everywhere(kernel, "ChannelLutGelu", random_codes(rng, I8, shape), constants, I8)


@pytest.mark.parametrize("bits,r", list(itertools.product(range(4, 9), range(5))))
def test_log_dequantize(kernel, bits, r):
    rng = np.random.default_rng(bits)
    data = rng.integers(0, 2**bits, (4, 50, 251)).astype(U8)
    constants = kernel("LogDequantize", {"bits": np.int64(bits), "r": np.int64(r)}, params=True)
    got = everywhere(kernel, "LogDequantize", data, constants, np.float32)
    exact = np.where(data == 2**bits - 1, 0, 2.0 ** (-data.astype(float) / 2**r))
    np.testing.assert_allclose(got, exact, rtol=6e-8, atol=1e-45)


@pytest.mark.parametrize("bits,r", [(4, 0), (4, 1), (5, 0), (6, 1), (7, 2), (8, 3), (8, 4)])
@pytest.mark.parametrize("length", [1, 2, 197, 577])
def test_log_normalize(kernel, bits, r, length):
    rng = np.random.default_rng(bits)
    top = 2**bits - 1
    # Of a softmax's own codes, of random ones, and rows of the same code: the first, the last, and the one that means 0.
    scores = rng.normal(0, 1, (40, length)) * rng.uniform(0, 6, (40, 1))
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    soft = np.clip(np.round(-np.log2(p) * 2**r), 0, top)
    same = np.repeat([[0], [top - 1], [top]], length, axis=1)
    data = np.concatenate([soft, rng.integers(0, top + 1, (20, length)), same]).astype(U8)
    parameters = {"bits": np.int64(bits), "r": np.int64(r), "n": np.int64(length)}
    constants = kernel("LogNormalize", parameters, params=True)
    got = everywhere(kernel, "LogNormalize", data, constants, np.float32)
    exact = np.where(data == top, 0, 2.0 ** (-data.astype(float) / 2**r))
    total = exact.sum(-1, keepdims=True)
    exact = np.divide(exact, total, out=np.zeros_like(exact), where=total > 0)
    # Weights are integers of 2^-20: of a row's own codes the largest weight is 2^-10 or more at these lengths.
    np.testing.assert_allclose(got[:40], exact[:40], atol=2.0**-20 * 2**10, rtol=1e-6)
    assert np.array_equal(got[-1], np.zeros(length))
    sums = got.astype(float).sum(-1)
    np.testing.assert_allclose(sums[:40][soft.min(-1) < top], 1, rtol=1e-5)


# LogIntSoftmax


def softmax_constants(kernel, scale, n, bits, r, rounding):
    parameters = {
        "scale": np.float64(scale),
        "n": np.int64(n),
        "bits": np.int64(bits),
        "r": np.int64(r),
        "rounding": np.int64(rounding),
    }
    return kernel("LogIntSoftmax", parameters, params=True)


SOFTMAXES = [
    # scale, row length, bits, r, rounding
    (0.05, 197, 4, 0, 0),
    (0.05, 197, 4, 0, 2),
    (0.11, 197, 8, 3, 0),
    (0.003, 577, 8, 4, 1),
    (0.7, 50, 6, 1, 1),
    (3.0, 1024, 5, 2, 0),
    (40.0, 17, 8, 0, 0),
    (1e-6, 4097, 7, 2, 2),
    (0.02, 2, 8, 4, 0),
    (0.1, 1, 4, 0, 0),
]


@pytest.mark.parametrize("dtype", (I8, U8))
@pytest.mark.parametrize("scale,n,bits,r,rounding", SOFTMAXES)
def test_log_int_softmax(kernel, dtype, scale, n, bits, r, rounding):
    rng = np.random.default_rng(n)
    data = rows(rng, dtype, MILLION // (4 * n) + 20, n)
    constants = softmax_constants(kernel, scale, n, bits, r, rounding)
    got = everywhere(kernel, "LogIntSoftmax", data, constants, U8)

    x = scale * data.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    log = np.log2(np.exp(x).sum(-1, keepdims=True)) - x * np.log2(np.e)
    step = 2.0 ** (-1 / 2**r)
    end = {0: 0.5, 1: -(2**r) * np.log2((1 + step) / 2), 2: 2**r * np.log2((1 + 1 / step) / 2)}[rounding]
    exact = np.minimum(np.floor(log * 2**r + 1 - end), 2**bits - 1)
    if scale > 11:
        # One step of distance counts as 16 octaves at most, which is 0 for every softmax.
        exact, got = np.minimum(exact, 16), np.minimum(got, 16)
    largest, equal = report(f"LogIntSoftmax scale {scale} n {n} bits {bits} r {r} {dtype.__name__}", got, exact)
    assert largest <= 1 and equal > 0.97
    probability = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    value = np.where(got == 2**bits - 1, 0, 2.0 ** (-got.astype(float) / 2**r))
    print(f", mean |p error| {np.abs(value - probability).mean():.1e}", end="")


@pytest.mark.parametrize("shape", [(1, 3, 197, 197), (197,), (1, 1), (2, 0, 4)])
def test_log_int_softmax_takes_any_rank(kernel, shape):
    data = random_codes(np.random.default_rng(0), I8, shape)
    everywhere(kernel, "LogIntSoftmax", data, softmax_constants(kernel, 0.05, shape[-1], 4, 0, 0), U8)


# PtfLayerNorm


def layer_norm(
    kernel, rng, in_dtype, out_dtype, channels, largest_exponent, margin=0, in_scale=0.01, eps=1e-6, own_zero_points=False
):
    info, out_info = np.iinfo(in_dtype), np.iinfo(out_dtype)
    levels = out_info.max - out_info.min
    zero_range = (info.min // 8, info.max // 8) if info.min < 0 else (info.max // 3, 2 * info.max // 3)
    low, high = out_info.min + margin, out_info.max - margin
    if largest_exponent is None:
        exponents = np.arange(channels) % 9
    else:
        exponents = rng.integers(0, largest_exponent + 1, channels)
    parameters = {
        "gamma": rng.normal(1, 0.5, channels),
        "beta": rng.normal(0, 0.5, channels),
        "eps": np.float64(eps),
        "in_scale": np.float64(in_scale),
        "x_zero_point": np.array(rng.integers(*zero_range, channels if own_zero_points else None), in_dtype),
        "exponents": exponents.astype(np.int64),
        "out_scale": np.float64(9 / levels),
        "out_zero_point": np.int64(round(out_info.min + 0.45 * levels)),
        "y_range": np.array([low, high], out_dtype),
    }
    return parameters, kernel("PtfLayerNorm", parameters, params=True)


def exact_layer_norm(data, p):
    codes = data.astype(np.float64) - p["x_zero_point"].astype(np.float64)
    x = p["in_scale"] * 2.0 ** p["exponents"] * codes
    x = x - x.mean(-1, keepdims=True)
    z = x / np.sqrt((x * x).mean(-1, keepdims=True) + p["eps"])
    y = np.round((z * p["gamma"] + p["beta"]) / p["out_scale"]) + p["out_zero_point"]
    return np.clip(y, float(p["y_range"][0]), float(p["y_range"][1]))


NORMS = [
    # input, output, channels, largest exponent (None: 0 to 8 in turn), margin of the output range
    (I8, I8, 192, 3, 0),
    (U8, U8, 192, None, 0),
    (I8, U8, 384, 7, 120),
    (U8, I8, 768, None, 0),
    (I8, I16, 192, 3, 0),
    (I16, I8, 192, None, 0),
    (I16, I16, 192, 6, 1000),
    (U16, U16, 768, 5, 0),
    (U16, U8, 1024, 3, 0),
    (I8, I8, 4096, None, 0),
    (I8, I8, 2, 0, 0),
    (I8, I8, 1, 8, 0),
]


@pytest.mark.parametrize("in_dtype,out_dtype,channels,largest_exponent,margin", NORMS)
def test_ptf_layer_norm(kernel, in_dtype, out_dtype, channels, largest_exponent, margin):
    rng = np.random.default_rng(channels)
    # The body resolves epsilon to 1 / C^2 of a squared code, which short rows of fine codes can feel.
    in_scale = 0.01 if channels > 8 else 1.0
    p, constants = layer_norm(kernel, rng, in_dtype, out_dtype, channels, largest_exponent, margin, in_scale)
    data = rows(rng, in_dtype, MILLION // (4 * channels) + 20, channels)
    got = everywhere(kernel, "PtfLayerNorm", data, constants, out_dtype)
    name = f"PtfLayerNorm {in_dtype.__name__}>{out_dtype.__name__} C {channels} exponents {largest_exponent}"
    largest, equal = report(name, got, exact_layer_norm(data, p))
    assert largest <= 1 and equal > 0.995


@pytest.mark.parametrize("in_dtype,channels", [(I8, 192), (U8, 384), (I16, 192), (U16, 768)])
def test_ptf_layer_norm_with_a_zero_point_a_channel(kernel, in_dtype, channels):
    rng = np.random.default_rng(channels)
    p, constants = layer_norm(kernel, rng, in_dtype, I8, channels, 5, own_zero_points=True)
    assert len(np.unique(p["x_zero_point"])) > 10
    data = rows(rng, in_dtype, MILLION // (4 * channels) + 20, channels)
    got = everywhere(kernel, "PtfLayerNorm", data, constants, I8)
    largest, equal = report(f"PtfLayerNorm {in_dtype.__name__} C {channels} zero points", got, exact_layer_norm(data, p))
    assert largest <= 1 and equal > 0.995


@pytest.mark.parametrize("in_scale,eps", [(1e-5, 1e-3), (1e-4, 1e-6), (10.0, 1e-12), (1.0, 0.0)])
def test_ptf_layer_norm_of_a_large_or_vanishing_epsilon(kernel, in_scale, eps):
    rng = np.random.default_rng(7)
    p, constants = layer_norm(kernel, rng, I8, I8, 192, 2, in_scale=in_scale, eps=eps)
    data = rows(rng, I8, 1500, 192)
    got = everywhere(kernel, "PtfLayerNorm", data, constants, I8)
    p["eps"] = np.float64(max(eps, 1e-30))
    largest, equal = report(f"PtfLayerNorm scale {in_scale} eps {eps}", got, exact_layer_norm(data, p))
    assert largest <= 1 and equal > 0.995


@pytest.mark.parametrize("shape", [(1, 197, 192), (192,), (2, 3, 4, 192), (0, 192)])
def test_ptf_layer_norm_takes_any_rank(kernel, shape):
    rng = np.random.default_rng(0)
    _, constants = layer_norm(kernel, rng, I8, I8, 192, 3)
    everywhere(kernel, "PtfLayerNorm", random_codes(rng, I8, shape), constants, I8)


@pytest.mark.parametrize("channels,exponent", [(2, 12), (3, 11), (7, 0)])
def test_ptf_layer_norm_of_variances_of_every_size(kernel, channels, exponent):
    rng = np.random.default_rng(3)
    data = rng.integers(0, 1 << 16, (100_000, channels)).astype(U16)
    data[:50_000] = data[:50_000] >> rng.integers(0, 17, (50_000, 1)).astype(U16)
    constants = {
        "x_zero_point": np.array(0, U16),
        "multiplier": np.left_shift(1, rng.integers(0, exponent + 1, channels)).astype(np.int64),
        "eps": np.int64(0),
        "gamma": np.full(channels, 1 << 29, np.int64),
        "beta": rng.integers(1 << 51, 1 << 53, channels),
        "shift": np.uint64(38),
        "y_range": np.array([0, 65535], U16),
    }
    got = everywhere(kernel, "PtfLayerNorm", data, constants, U16)
    assert len(np.unique(got)) > 1000 * (channels > 2)


def test_the_square_root_in_the_body_is_exact():
    """The steps of the body from `normal` to `root`, alone, on numbers of its range, against Python's integer square root."""
    function = onnx.parser.parse_function((FUNCTIONS / "PtfLayerNorm.onnxtxt").read_text())
    nodes, wanted = [], {"root"}
    for node in reversed(function.node):
        if wanted & set(node.output) and "normal" not in node.output:
            nodes.insert(0, node)
            wanted |= set(node.input)
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "root",
            [helper.make_tensor_value_info("normal", onnx.TensorProto.INT64, [None])],
            [helper.make_tensor_value_info("root", onnx.TensorProto.INT64, [None])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.checker.check_model(proto, full_check=True)
    rng = np.random.default_rng(5)
    ends = [1 << 60, (1 << 60) + 1, (1 << 62) - 1, (9 << 58) - 1, 9 << 58]
    roots = np.concatenate([rng.integers((1 << 30) + 1, 1 << 31, 300_000), [(1 << 31) - 1, (1 << 30) + 1, 3 << 29]])
    numbers = np.concatenate([rng.integers(1 << 60, 1 << 62, 300_000), roots**2 - 1, roots**2, roots**2 + 1, ends])
    exact = np.array([math.isqrt(n) for n in numbers.tolist()])
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert (session.run(None, {"normal": numbers})[0] == exact).all()
    assert (ReferenceEvaluator(proto).run(None, {"normal": numbers})[0] == exact).all()


# What the bodies are made of


def test_bodies_use_no_float_and_no_attribute_reference():
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    files = sorted(FUNCTIONS.glob("*.onnxtxt"))
    assert {f.stem for f in files} >= {"Lut", "LutGelu", "LogDequantize", "LogNormalize", "LogIntSoftmax", "PtfLayerNorm"}
    for file in files:
        function = onnx.parser.parse_function(file.read_text())
        assert not function.attribute and not function.attribute_proto, file.name
        assert [(o.domain, o.version) for o in function.opset_import] == [("", 20)], file.name
        # What it gives is real: a quotient of two integers.
        reals = {"weight_float", "divisor_float"} if file.stem == "LogNormalize" else set()
        for node in function.node:
            assert node.domain == "", (file.name, node.op_type)
            for attribute in node.attribute:
                assert not attribute.ref_attr_name
                assert attribute.type not in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS)
                if attribute.name == "to" and not reals.issuperset(node.output):
                    assert attribute.i not in floats, (file.name, node.name)
                if attribute.HasField("t"):
                    assert attribute.t.data_type not in floats, (file.name, node.name)
