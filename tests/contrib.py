#!/usr/bin/env python3
"""Writes contrib.json: what onnxruntime computes on the cases of tests/rewrites that hold its own operators,
or something else that
the executor of the tests does not know.

    contrib.py        (needs: pip install numpy onnx onnxruntime)

Inputs are those of tests/common: the inputs in order of their names, numbers by SplitMix64 with seeds 1, 2, …; open sizes are 2.
Four operators have no CPU kernel; what they compute is written out below after docs/ContribOperators.md.
"""
import json
import math
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort

HERE = Path(__file__).parent


def numbers(seed, n):
    mask, state, out = 2**64 - 1, seed, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(((z ^ (z >> 31)) >> 40) / 2**23 - 1)
    return np.array(out, np.float32)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def split_gelu(x):
    a, b = np.split(x, 2, -1)
    return a * gelu(b)


WITHOUT_KERNEL = {
    "BiasAdd": lambda x, b, s: x + b + s,
    "BiasSoftmax": lambda x, b: softmax(x + b),
    "BiasSplitGelu": lambda x, b: split_gelu(x + b),
    "GemmFastGelu": lambda x, w, b: gelu_tanh(x @ w + b),
}


def run(text):
    model = onnx.parser.parse_model("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    model.ir_version = 8
    shape = lambda i: [d.dim_value or 2 for d in i.type.tensor_type.shape.dim]
    inputs = sorted(model.graph.input, key=lambda i: i.name)
    feed = {i.name: numbers(seed, math.prod(shape(i))).reshape(shape(i)) for seed, i in enumerate(inputs, 1)}
    node = model.graph.node[0]
    if node.op_type in WITHOUT_KERNEL:
        known = {**feed, **{t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}}
        return {node.output[0]: WITHOUT_KERNEL[node.op_type](*(known[i].astype(np.float64) for i in node.input))}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feed)))


def main():
    # The executor knows neither bfloat16 nor IsNaN.
    others = [HERE / f"rewrites/{stem}.onnxtxt" for stem in ("float32_brain", "unmasked_softmax_guard")]
    cases = others + [p for p in sorted((HERE / "rewrites").glob("contrib_*.onnxtxt")) if "near_miss" not in p.stem and "layout" not in p.stem]
    out = {}
    for path in cases:
        values = run(path.read_text())
        out[path.stem] = {n: {"shape": list(v.shape), "data": [float(f"{x:.9g}") for x in v.flatten()]} for n, v in values.items()}
    (HERE / "contrib.json").write_text(json.dumps(out, indent=0) + "\n")


if __name__ == "__main__":
    main()
