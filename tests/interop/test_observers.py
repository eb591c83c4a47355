"""Each observer's scale against numpy in float64, on activations that onnxruntime computes with the float model.

The small ViT always; with $VITQ_SHARED set, ViT-Tiny on photographs ($VITQ_SHARED/data).
"""
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from interop import DIGITS, load_folder, session

# Sites whose values survive canonicalisation as they are (q carries the attention scale, weights are folded).
# Not mlp_fc1_output: what lies below GELU's floor needs no codes, whatever the observer says.
SITES = {"norm1", "norm2", "sv_attn", "attn_proj_output", "mlp_act", "mlp_act2", "residual1", "residual2"}
BIN = 2.0**-7  # relative width of a bin of the tensor sketch: the stated bound of an order statistic


def photographs(root, n, size):
    """Centre squares in -1..1; how they are resized is of no matter here."""
    out = []
    for path in sorted((root / "data" / "calib").glob("*.jpg"))[:n]:
        image = Image.open(path).convert("RGB").resize((size, size), Image.BICUBIC)
        out.append((np.asarray(image, np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(out))


def cases():
    yield "digits", DIGITS / "vit_digits.onnx", range(4)
    root = os.environ.get("VITQ_SHARED")
    if root:
        # The first block, the one with the massive activation, the last.
        yield "vit_tiny", Path(root) / "data/models/vit_tiny_patch16_224.onnx", (0, 7, 11)


@pytest.fixture(scope="module", params=list(cases()), ids=lambda c: c[0])
def dump(request, tmp_path_factory):
    """(model, file of inputs, {value: activations of every sample}, blocks)."""
    name, path, blocks = request.param
    x = load_folder(DIGITS / "calib")[0] if name == "digits" else photographs(Path(os.environ["VITQ_SHARED"]), 8, 224)
    folder = tmp_path_factory.mktemp(name)
    np.save(folder / "x.npy", x)
    model = onnx.load(path)
    known = {o for n in model.graph.node for o in n.output}
    return path, folder / "x.npy", x, model, known, blocks


@pytest.fixture(scope="module")
def planned(vitq, dump, tmp_path_factory):
    """planned(observer, more): [(site, activations [n, ...], scale, zero point)] of the sites that can be compared."""
    path, inputs, x, model, known, blocks = dump
    cache = {}

    def activations(names):
        new = [n for n in names if n not in cache]
        if new:
            wanted = onnx.ModelProto()
            wanted.CopyFrom(model)
            wanted.graph.output.extend(onnx.ValueInfoProto(name=n) for n in new)
            s = session(wanted, optimise=False)
            rows = [s.run(new, {s.get_inputs()[0].name: x[i : i + 1]}) for i in range(len(x))]
            cache.update({n: np.stack([r[k] for r in rows]) for k, n in enumerate(new)})
        return [cache[n] for n in names]

    def run(observer, more=""):
        tmp = tmp_path_factory.mktemp(observer)
        (tmp / "c.yaml").write_text(f"default: {{observer_type: {observer}, quantization_method: Uniform{more}}}\n")
        vitq("calibrate", path, "--calib", inputs, "--config", tmp / "c.yaml", "-o", tmp / "stats")
        vitq("plan", path, "--stats", tmp / "stats", "--config", tmp / "c.yaml", "-o", tmp / "plan.json")
        sites = [
            s
            for s in json.loads((tmp / "plan.json").read_text())["sites"]
            if s["site"] in SITES and s["block"] in blocks and s["scheme"] == "affine" and s["values"][0] in known
        ]
        assert len(sites) >= 4 * len(blocks), [s["name"] for s in sites]
        found = activations([s["values"][0] for s in sites])
        return [(s, a.astype(np.float64), float(s["scale"]), s["zero_point"]) for s, a in zip(sites, found)]

    return run


def test_minmax_is_the_extremes(planned):
    worst = 0.0
    for site, a, scale, _ in planned("MinmaxObserver"):
        want = (max(a.max(), 0.0) - min(a.min(), 0.0)) / 255
        worst = max(worst, abs(scale / want - 1))
        assert abs(scale / want - 1) <= 1e-3, site["name"]
    print(f"minmax: scale within {worst:.2e}")


@pytest.mark.parametrize(("alpha", "sigma"), [(0.999, 0.1), (0.99999, 0.01), (0.99, 1.0)])
def test_percentile_is_numpys_quantile(planned, alpha, sigma):
    """torch.quantile's interpolation differs from an order statistic by less than a bin in all but the emptiest tails."""
    worst = 0.0
    for site, a, scale, _ in planned("PercentileObserver", f", percentile_alpha: {alpha}, percentile_sigma: {sigma}"):
        ends = []
        for method in ("lower", "higher"):
            lo = hi = None
            for sample in a.reshape(len(a), -1):
                l, h = np.quantile(sample, 1 - alpha, method=method), np.quantile(sample, alpha, method=method)
                lo, hi = (l, h) if lo is None else (lo + sigma * (l - lo), hi + sigma * (h - hi))
            ends.append((max(hi, 0.0), -min(lo, 0.0)))
        # Between the order statistics on both sides of the rank, give or take a bin.
        least, most = (sum(f(e[k] for e in ends) for k in (0, 1)) / 255 for f in (min, max))
        worst = max(worst, least / scale - 1, scale / most - 1)
        assert least * (1 - BIN) <= scale <= most * (1 + BIN), f"{site['name']}: {scale} for {least} to {most}"
    print(f"percentile {alpha}, {sigma}: outside the exact order statistics by at most {worst:.2e}")


def squared_error(a, lo, hi):
    scale = (hi - lo) / 255
    zero = np.round(-128 - lo / scale)
    q = np.clip(np.round(a / scale) + zero, -128, 127)
    return float(((q - zero) * scale - a) @ ((q - zero) * scale - a))


def test_omse_is_the_least_squared_error(planned):
    """No range of an exhaustive ladder on the data themselves, refined at its best, has a squared error that is 0.5 % lower."""
    worst = 0.0
    for site, a, scale, zero in planned("OmseObserver"):
        a = a.ravel()
        q = np.clip(np.round(a / scale) + zero, -128, 127)
        ours = float((((q - zero) * scale - a) ** 2).sum())
        # The search on every 7th element; what is compared is the error on all of them.
        some = a[::7]
        lo, hi = min(a.min(), 0.0), max(a.max(), 0.0)
        best = min((squared_error(some, lo * f, hi * g), lo * f, hi * g) for f in 2 ** -np.arange(0, 5, 0.5) for g in 2 ** -np.arange(0, 5, 0.5))
        for step in (1.2, 1.1, 1.05, 1.02, 1.01):
            trials = [(best[1] * f, best[2] * g) for f in (1 / step, 1, step) for g in (1 / step, 1, step)]
            best = min([best, *((squared_error(some, max(l, lo), min(h, hi)), max(l, lo), min(h, hi)) for l, h in trials)])
        oracle = squared_error(a, best[1], best[2])
        worst = max(worst, ours / oracle - 1)
        assert ours <= oracle * 1.005, f"{site['name']}: {ours} for {oracle}"
    print(f"omse: squared error above the oracle's by at most {worst:.2e}")


def divergences(counts, zero, codes):
    """Migacz's slide in both directions from zero: the divergence of every reach."""
    bins, out = len(counts), {}
    for reach in range(1, max(zero, bins - zero) + 1):
        a, b = max(zero - reach, 0), min(zero + reach, bins)
        n = b - a
        if n < codes:
            continue
        kept = counts[a:b]
        p = kept.copy()
        p[0] += counts[:a].sum()
        p[-1] += counts[b:].sum()
        if ((p > 0) & (kept <= 0)).any():
            continue
        edges = np.arange(codes + 1) * n // codes
        group = np.repeat(np.arange(codes), np.diff(edges))
        sums = np.bincount(group, kept, codes)
        filled = np.bincount(group, kept > 0, codes)
        q = np.where(kept > 0, (sums / np.maximum(filled, 1))[group], 0.0)
        on = p > 0
        out[reach] = float((p[on] / p.sum() * np.log(p[on] / p.sum() / (q[on] / q.sum()))).sum())
    return out


def test_kl_is_the_least_divergence(planned):
    """With the data's own histogram: our threshold is the oracle's, or its divergence is as good as equal.

    Residual sums with massive activations too, where a handful of values far out decides which thresholds there are. Where the sketch's bins
    are wider than the linear ones and hold many, it spreads them evenly; that is what may differ.
    """
    bins, worst = 512, 0.0
    for site, a, scale, zero_point in planned("KLObserver", f", kl_bins: {bins}"):
        a = a.ravel()
        lo, hi = min(a.min(), 0.0), max(a.max(), 0.0)
        zero = int(np.clip(np.round(bins * -lo / (hi - lo)), int(lo < 0), bins - int(hi > 0)))
        width = max(-lo / max(zero, 1), hi / max(bins - zero, 1))
        counts = np.bincount(np.clip((a / width + zero).astype(int), 0, bins - 1), minlength=bins).astype(float)
        d = divergences(counts, zero, 256)
        best = min(d.values())
        # Back from the scale to the reach: the range is cut at ± (reach + 1/2) · width and at the extremes. A threshold can end at a
        # bin that only the sketch's spreading fills; the data's nearest stands for it.
        span = scale * 255
        away = {r: abs((min((r + 0.5) * width, hi) + min((r + 0.5) * width, -lo)) / span - 1) for r in d}
        reaches = [r for r in d if away[r] <= max(BIN, min(away.values())) + 1e-3]
        assert min(away.values()) <= 0.05, f"{site['name']}: no threshold makes the scale {scale}"
        excess = min(d[r] for r in reaches) - best
        worst = max(worst, excess)
        assert excess <= max(0.05 * best, 5e-4), f"{site['name']}: divergence {best + excess} for {best}"
    print(f"kl: divergence above the oracle's by at most {worst:.2e} nats")
