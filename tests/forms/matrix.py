#!/usr/bin/env python3
"""Brings exports that tools have touched, and Hugging Face's, to the canonical form and compares (opt-in; needs Python).

    matrix.py [--vitq target/release/vitq] [--work FOLDER] [NAME …]

(needs: pip install torch timm onnx onnxruntime onnxscript transformers onnxslim onnxsim onnxconverter-common)

The models are those of tests/fixtures/make.py. Each row: blocks found, near misses, and the largest difference between the
file and its canonical graph in onnxruntime, relative to the largest output. A file in halves is compared within their
precision. Exits with 1 when a row fails.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixtures"))
import make  # noqa: E402

EXPORTERS = [("torchscript", o) for o in (14, 17, 20)] + [("dynamo", o) for o in (18, 20, 23)]
TOOLS = {
    "basic": lambda p: make.ort_optimised(p, "ORT_ENABLE_BASIC"),
    "extended": make.ort_extended,
    "transformers": make.ort_transformers,
    "onnxslim": make.onnxslim,
    "onnxsim": make.onnxsim,
    "float16": make.float16(False),
    "float16_inside": make.float16(True),
}
MODELS = {
    "timm": lambda attention: make.vit(make.TINY_VIT)(),
    "separate": lambda attention: make.Separate("sdpa" if attention == "sdpa" else "permute"),
    **{name.lower(): (lambda n: lambda attention: make.HuggingFace(n, attention))(name) for name in ("ViT", "DeiT", "Dinov2", "Beit")},
}


def run(path, feed=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    half = session.get_inputs()[0].type == "tensor(float16)"
    x = make.numbers(1, 2 * 3 * make.SIZE**2).reshape(2, 3, make.SIZE, make.SIZE)
    return [y.astype(np.float64) for y in session.run(None, {"input": x.astype(np.float16) if half else x})]


def check(vitq, path):
    """What is wrong with a file, or None; and what was measured."""
    canonical = path.with_suffix(".canonical.onnx")
    done = subprocess.run([vitq, "canon", path, "-o", canonical, "-q"], capture_output=True, text=True)
    if done.returncode:
        return "refused", done.stderr.strip()
    summary = json.loads(subprocess.run([vitq, "inspect", "--json", path], capture_output=True, text=True, check=True).stdout)
    blocks, misses = len(summary["blocks"]), summary["near_misses"]
    try:
        before = run(path)
    except Exception as e:  # a tool may have written a file that nothing runs
        return ("blocks" if blocks != 2 else None), f"{blocks} blocks; not run, onnxruntime refuses the file: {str(e)[:60]}"
    after = run(canonical)
    difference = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(before, after))
    limit = 5e-3 if "float16" in path.stem else 1e-4
    wrong = "blocks" if blocks != 2 else "numbers" if difference > limit else None
    return wrong, f"{blocks} blocks, {len(misses)} near misses, {difference:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vitq", default="target/release/vitq")
    parser.add_argument("--work", type=Path)
    parser.add_argument("names", nargs="*", help="models: " + ", ".join(MODELS))
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    failed = rows = 0
    for name in args.names or MODELS:
        for attention in ("sdpa", "eager"):
            for exporter, opset in EXPORTERS:
                torch.manual_seed(0)
                make.set_fused_attn(attention == "sdpa")
                model = MODELS[name](attention).eval()
                make.initialise(model)
                stem = f"{name}_{attention}_{exporter}{opset}"
                plain = work / f"{stem}.onnx"
                try:
                    make.export(model, str(plain), exporter, opset, True)
                except Exception as e:
                    print(f"{stem:44} not exported: {type(e).__name__}")
                    continue
                for tool in [None, *TOOLS]:
                    path = work / f"{stem}{'.' + tool if tool else ''}.onnx"
                    try:
                        if tool:
                            path.write_bytes(plain.read_bytes())
                            TOOLS[tool](str(path))
                    except Exception as e:
                        print(f"{path.stem:44} the tool fails: {type(e).__name__}")
                        continue
                    wrong, found = check(args.vitq, path)
                    rows, failed = rows + 1, failed + bool(wrong)
                    print(f"{path.stem:44} {'FAIL ' + wrong if wrong else 'ok'}: {found}", flush=True)
    print(f"{rows - failed} of {rows} as they should be")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
