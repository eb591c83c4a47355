"""What the zoo's scripts share: timm's models at a small depth with weights that matter, their exports, the inputs."""
import contextlib
import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES = 10
FAMILIES = [
    "vision_transformer", "deit", "beit", "eva", "swin_transformer", "swin_transformer_v2", "cait", "resnet",
]  # fmt: skip
# Heads of k and v in the first block and in the middle of the network.
SAPIENS2_HEADS = {"base": (12, 12), "large": (16, 8), "huge": (16, 8), "giant": (24, 12), "5b": (32, 16)}
LARGEST = 256  # side of the input image above which a smaller one is asked for


@dataclass(frozen=True)
class Export:
    """One way of exporting. Its text form is `ts17` or `dy20`, then `-fixed`, `-unfused`, `-external` as they apply."""

    exporter: str
    opset: int
    fixed: bool = False
    unfused: bool = False
    external: bool = False

    @classmethod
    def parse(cls, text):
        head, *flags = text.split("-")
        kind, opset = head[:2], head[2:]
        if kind not in ("ts", "dy") or not opset.isdigit() or set(flags) - {"fixed", "unfused", "external"}:
            raise ValueError(f"{text}: an export is ts or dy, an opset, and any of -fixed, -unfused, -external")
        return cls(kind, int(opset), "fixed" in flags, "unfused" in flags, "external" in flags)

    def __str__(self):
        flags = [name for name in ("fixed", "unfused", "external") if getattr(self, name)]
        return "-".join([f"{self.exporter}{self.opset}", *flags])


def family(name):
    """The module of timm.models that holds the entry point."""
    from timm.models._registry import _model_to_module

    return _model_to_module[name]


def names(families=FAMILIES):
    """Every model of the families, in their order, then by name."""
    import timm

    known = timm.list_models()
    return [n for f in families for n in known if family(n) == f]


def native_size(name):
    import timm

    return timm.get_pretrained_cfg(name).input_size[-1]


def small_size(name):
    """The native side of the image, or one of at most 256 pixels that patches and windows divide."""
    native = native_size(name)
    if native <= LARGEST:
        return native
    kind = family(name)
    if kind.startswith("swin"):
        return 192 if "window12" in name or "window24" in name else 256
    return 224


def small_depth(name):
    """Arguments for the least depth that keeps every stage and every kind of block."""
    kind = family(name)
    if kind.startswith("swin"):
        return {"depths": (2, 2, 2, 2)}
    if kind == "resnet":
        return {"layers": (1, 1, 1, 1)}
    if "sapiens2" in name:  # one block of each kind: with all heads, and with grouped ones where the model has them
        return {"depth": 2, "num_kv_heads": SAPIENS2_HEADS[name.split("_")[1]]}
    return {"depth": 2} if kind in FAMILIES or kind.startswith("vision_transformer") else {}


@contextlib.contextmanager
def without_initialisation():
    """timm and torch leave weights as they are: `initialise` sets every one of them, and sooner."""
    import torch
    from timm.layers import weight_init

    keep = {n: f for n, f in vars(torch.nn.init).items() if re.fullmatch(r"(normal|uniform|(trunc_|xavier_|kaiming_)\w+)_", n)}
    trunc = weight_init._trunc_normal_
    try:
        for n in keep:
            setattr(torch.nn.init, n, lambda tensor, *_, **__: tensor)
        weight_init._trunc_normal_ = lambda tensor, *_, **__: tensor
        yield
    finally:
        for n, f in keep.items():
            setattr(torch.nn.init, n, f)
        weight_init._trunc_normal_ = trunc


def initialise(model, seed=0):
    """Weights under which every part of the model shows in the logits: a LayerScale of 1e-6 or a norm that starts at
    zero would hide its branch. What timm computes (rotary frequencies, logarithmic scales) stays."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if last in ("freqs", "logit_scale"):
                continue
            if "token" in last or last.startswith("pos_embed") or last in ("latent",):
                nn.init.normal_(p, 0, 0.5)
            elif last.startswith("lambda_"):
                nn.init.normal_(p, 0, 0.1)
            elif p.ndim > 1 and last.startswith(("weight", "relative_position")):
                nn.init.normal_(p, 0, p[0].numel() ** -0.5)
            elif p.ndim > 1:
                nn.init.normal_(p, 0, 0.5)
            else:
                nn.init.normal_(p, 0.0 if last.endswith("bias") else 1.0, 0.3)


def create(name, seed=0, reduced=True, **more):
    """(model, image side, remarks): the model at small depth and size, as far as timm takes the arguments."""
    import timm

    warnings.filterwarnings("ignore")
    wanted = {"num_classes": CLASSES}
    remarks = []
    size = small_size(name) if reduced else native_size(name)
    if reduced:
        wanted |= small_depth(name)
    if size != native_size(name) and family(name) != "resnet":
        wanted["img_size"] = size
    wanted |= more
    size = wanted.get("img_size", size)
    attempts = [{}, {"img_size"}, {"depth", "depths", "layers"}, {"img_size", "depth", "depths", "layers"}]
    error = None
    for without in attempts:
        given = {k: v for k, v in wanted.items() if k not in without}
        if without and given.keys() == wanted.keys():
            continue
        try:
            with without_initialisation():
                model = timm.create_model(name, pretrained=False, **given).eval()
        except (TypeError, ValueError, AssertionError, RuntimeError, IndexError) as e:
            error = error or e
            continue
        dropped = sorted(wanted.keys() - given.keys())
        if dropped:
            remarks.append(f"timm takes no {' and '.join(dropped)}")
        if "img_size" in dropped:
            size = native_size(name)
        initialise(model, seed)
        return model, size, remarks
    raise error


def expected_blocks(model):
    """How many blocks vitq is to find: modules of a block's class that hold attention and an MLP, and attention pools."""

    def holds(module, *starts):
        return any(child.startswith(starts) for child, _ in module.named_children())

    blocks = sum("Block" in type(m).__name__ and holds(m, "attn") and holds(m, "mlp", "ffn") for m in model.modules())
    return blocks + sum(type(m).__name__ == "AttentionPoolLatent" for m in model.modules())


def export(model, size, path, how, argument="x"):
    """Writes the model to `path`, whose weights are inside unless `how.external`."""
    import torch

    symbolic = not how.fixed
    args = {"opset_version": how.opset, "input_names": ["input"], "output_names": ["logits"]}
    if how.exporter == "dy":
        args |= {"dynamo": True, "external_data": how.external}
        if symbolic:
            args["dynamic_shapes"] = {argument: {0: torch.export.Dim("batch", min=1, max=1024)}}
    else:
        args["dynamo"] = False
        if symbolic:
            args["dynamic_axes"] = {"input": {0: "batch"}, "logits": {0: "batch"}}
    x = torch.from_numpy(images(2 if symbolic else 1, size, seed=3))
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch.onnx.export(model, (x,), str(path), **args)
    if how.external and how.exporter == "ts":
        externalise(path)


def check(model, size, path):
    """Raises where onnxruntime does not run the export, or computes something else than torch."""
    import torch

    x = images(1, size, seed=3)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    got = run_ort(path, x)
    difference = np.abs(wanted - got).max() / np.abs(wanted).max()
    if not difference < 1e-3:
        raise ValueError(f"the export computes something else than torch: it differs by {difference:.1e}")


def externalise(path, threshold=1024):
    """Moves the weights of at least `threshold` bytes into PATH.data, as dynamo's external_data does."""
    import onnx

    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location=Path(path).name + ".data", size_threshold=threshold)


def images(n, size, seed):
    """[n, 3, size, size] float32 of smooth noise: octaves of random grids, each finer one half as strong, standardised.

    Natural images have about this spectrum, and their normalised pixels about this spread."""
    rng = np.random.default_rng(seed)
    out = np.zeros((n, 3, size, size), np.float64)
    grid, strength = 2, 1.0
    while grid <= size // 2:
        out += strength * upsample(rng.standard_normal((n, 3, grid, grid)), size)
        grid, strength = grid * 2, strength / 2
    out += 0.05 * rng.standard_normal(out.shape)
    out -= out.mean(axis=(2, 3), keepdims=True) * 0.7
    return np.clip(out / out.std(axis=(1, 2, 3), keepdims=True), -2.5, 2.6).astype(np.float32)


def upsample(x, size):
    """Bilinear, corners aligned."""
    at = np.linspace(0, x.shape[-1] - 1, size)
    low = np.minimum(at.astype(int), x.shape[-1] - 2)
    part = at - low
    x = x[..., low, :] * (1 - part)[:, None] + x[..., low + 1, :] * part[:, None]
    return x[..., low] * (1 - part) + x[..., low + 1] * part


def sqnr_db(reference, other):
    """Signal to noise in dB of `other` against `reference`; infinite where they are equal."""
    reference, other = reference.astype(np.float64), other.astype(np.float64)
    noise = ((reference - other) ** 2).sum()
    return float("inf") if noise == 0 else float(10 * np.log10((reference**2).sum() / noise))


def run_ort(path, x):
    """The first output for x, in batches where the batch is fixed; on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (inp,) = session.get_inputs()
    first = session.get_outputs()[0].name
    batch = inp.shape[0] if isinstance(inp.shape[0], int) else len(x)
    return np.concatenate([session.run([first], {inp.name: x[i : i + batch]})[0] for i in range(0, len(x), batch)])


def find_vitq():
    """$VITQ, else the newer of target/release/vitq and target/debug/vitq."""
    if os.environ.get("VITQ"):
        return Path(os.environ["VITQ"]).resolve(strict=True)
    root = Path(__file__).resolve().parents[2] / "target"
    built = [p for p in (root / "release/vitq", root / "debug/vitq") if p.exists()]
    if not built:
        raise SystemExit("no vitq: build it (cargo build --release) or name it in $VITQ")
    return max(built, key=lambda p: p.stat().st_mtime)
