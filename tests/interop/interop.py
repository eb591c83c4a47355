"""What the interop tests share: where things are, how vitq, onnxruntime and onnx's ReferenceEvaluator are run."""
import csv
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
DIGITS = REPO / "models" / "digits"
MODELS = sorted((REPO / "models").rglob("*.onnx"))
VITS = [m for m in MODELS if m.stem.startswith("vit_")]
OTHERS = [m for m in MODELS if m not in VITS]
TARGETS = ["integer", "onnxruntime"]
DOMAIN = "ai.vitq"
TIMEOUT = 600  # seconds for one call of vitq


def shared_models():
    """Full-size models outside the project: every *.onnx under $VITQ_SHARED, none if it is not set."""
    root = os.environ.get("VITQ_SHARED")
    return sorted(Path(root).rglob("*.onnx")) if root else []


def run_vitq(binary, *args, check=True):
    done = subprocess.run(
        [str(binary), *map(str, args)], capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
    )
    if check and done.returncode != 0:
        command = " ".join(map(str, args))
        raise AssertionError(f"vitq {command}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def compile_args(model, target, out, *more):
    """The README's first command. The images are saved at the model's size, so nothing is resized or cropped."""
    return [
        "compile", model, "--calib", DIGITS / "calib", "--preprocess", "inception", "--crop-pct", "1",
        "--target", target, "-o", out, *more,
    ]  # fmt: skip


def load_folder(folder):
    """(inputs [n, 3, h, w] float32 in -1..1, labels [n]) of a folder with labels.csv."""
    with open(folder / "labels.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    x = np.stack([np.asarray(Image.open(folder / r["file"]).convert("RGB"), np.float32) for r in rows])
    x = (x / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), np.array([int(r["label"]) for r in rows])


def session(model, optimise=True):
    """An onnxruntime session of a path or a ModelProto, on one thread so that nothing depends on the machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_ort(model, feeds, optimise=True):
    """All outputs by name."""
    s = session(model, optimise)
    names = [o.name for o in s.get_outputs()]
    return dict(zip(names, s.run(names, feeds)))


def run_reference(model, feeds):
    """All outputs by name, by onnx's own evaluator (numpy, slow)."""
    evaluator = ReferenceEvaluator(model if isinstance(model, onnx.ModelProto) else str(model))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds)))


def in_batches(run, model, x):
    """The first output over all of x; a model with a fixed batch is fed that many images at a time."""
    proto = onnx.load(model) if not isinstance(model, onnx.ModelProto) else model
    fed = {i.name for i in proto.graph.input} - {i.name for i in proto.graph.initializer}
    (name,) = fed
    value = next(i for i in proto.graph.input if i.name == name)
    fixed = value.type.tensor_type.shape.dim[0].dim_value or len(x)
    first = proto.graph.output[0].name
    assert len(x) % fixed == 0, f"{len(x)} images do not fill batches of {fixed}"
    return np.concatenate([run(proto, {name: x[i : i + fixed]})[first] for i in range(0, len(x), fixed)])


def sqnr_db(reference, other):
    """Signal to noise in dB of `other` against `reference`; infinite where they are equal."""
    reference, other = reference.astype(np.float64), other.astype(np.float64)
    noise = ((reference - other) ** 2).sum()
    return np.inf if noise == 0 else 10 * np.log10((reference**2).sum() / noise)


def accuracy(logits, labels):
    """In per cent."""
    return 100 * float((logits.argmax(1) == labels).mean())


def same_bits(a, b):
    """Equal type, shape and bytes: -0.0 differs from 0.0, a NaN equals itself."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


def constants(model):
    """Values known without running the model: initialisers and tensor-valued Constant nodes, by name."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for a in node.attribute:
                if a.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(a.t)
    return found
