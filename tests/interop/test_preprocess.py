"""Preprocessed tensors against Pillow's resampling and timm's arithmetic, and against timm itself where it is installed.

With $VITQ_SHARED set, on photographs ($VITQ_SHARED/data/calib); always on images made here, of odd sizes and of every file form.
"""
import os
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image, ImageOps

SIZE = 224
FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = [
    ("center", "bicubic", 0.9),
    ("center", "bilinear", 0.875),
    ("center", "lanczos", 1.0),
    ("squash", "bicubic", 1.0),
    ("squash", "bilinear", 0.9),
    ("squash", "lanczos", 0.95),
    ("border", "bicubic", 0.9),
    ("border", "bilinear", 0.875),
    ("border", "lanczos", 1.0),
]


def reference(image, mode, interpolation, pct, size=SIZE):
    """timm's transforms_imagenet_eval in Pillow and numpy: resize in 8 bits, crop or pad, normalise in float32."""
    image = image.convert("RGB")
    w, h = image.size
    target = int(np.floor(size / pct))
    if mode == "squash":
        w, h = target, target
    elif mode == "border":
        ratio = max(w / target, h / target)
        w, h = round(w / ratio), round(h / ratio)
    else:
        w, h = (target, int(target * h / w)) if w <= h else (int(target * w / h), target)
    image = image.resize((w, h), FILTERS[interpolation])
    fill = tuple(round(255 * m) for m in MEAN)
    left, top = max(size - w, 0) // 2, max(size - h, 0) // 2
    padded = Image.new("RGB", (max(w, size), max(h, size)), fill)
    padded.paste(image, (left, top))
    x, y = round((padded.width - size) / 2.0), round((padded.height - size) / 2.0)
    a = np.asarray(padded.crop((x, y, x + size, y + size)), np.float32) / np.float32(255)
    return ((a - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)


def timms(image, mode, interpolation, pct):
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        (3, SIZE, SIZE), interpolation=interpolation, mean=MEAN, std=STD, crop_pct=pct, crop_mode=mode
    )
    return transform(image.convert("RGB")).numpy()


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    """A model that returns its input."""
    shape = ["batch", 3, SIZE, SIZE]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("identity") / "identity.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def preprocessed(vitq, identity, tmp_path_factory):
    """preprocessed(folder, file content, file name): what vitq feeds to a model."""

    def run(folder, config, name="preprocess.yaml"):
        tmp = tmp_path_factory.mktemp("run")
        (tmp / name).write_text(config)
        vitq("run", identity, "--input", folder, "--preprocess", tmp / name, "-o", tmp / "out.npz")
        return np.load(tmp / "out.npz")["y"]

    return run


def yaml(mode, interpolation, pct, more=""):
    return f"crop_mode: {mode}\ninterpolation: {interpolation}\ncrop_pct: {pct}\nmean: {list(MEAN)}\nstd: {list(STD)}\n{more}"


def steps(a, b):
    """Mean absolute difference in steps of an 8-bit image."""
    return float(np.abs((a - b) * np.float32(STD)[:, None, None]).mean() * 255)


@pytest.fixture(scope="module")
def odd_sizes(tmp_path_factory):
    """Pictures of odd sizes, as PNG: the decoder cannot differ, only the resampling."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(7)
    for i, (w, h) in enumerate([(31, 47), (224, 224), (249, 248), (500, 333), (333, 501), (1023, 57), (61, 700), (225, 1001), (999, 640)]):
        noise = rng.integers(0, 256, (max(h // 9, 2), max(w // 9, 2), 3), dtype=np.uint8)
        Image.fromarray(noise).resize((w, h), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(("mode", "interpolation", "pct"), CASES)
def test_resampling_is_pillows(preprocessed, odd_sizes, mode, interpolation, pct):
    ours = preprocessed(odd_sizes, yaml(mode, interpolation, pct))
    worst = 0.0
    for got, path in zip(ours, sorted(odd_sizes.iterdir()), strict=True):
        want = reference(Image.open(path), mode, interpolation, pct)
        worst = max(worst, steps(got, want))
    print(f"{mode} {interpolation} {pct}: at most {worst:.4f} / 255")
    assert worst <= 0.5


@pytest.mark.parametrize(("mode", "interpolation", "pct"), CASES)
def test_photographs_are_timms(preprocessed, tmp_path, mode, interpolation, pct):
    root = os.environ.get("VITQ_SHARED")
    if not root:
        pytest.skip("VITQ_SHARED is not set")
    # Each cut to an odd size of its own and saved anew: decoder, resampling and cropping are all compared.
    for i, p in enumerate(sorted((Path(root) / "data" / "calib").glob("*.jpg"))[:100]):
        image = Image.open(p).convert("RGB")
        w, h = image.width * (37 + i * 29 % 64) // 100 | 1, image.height * (37 + i * 53 % 64) // 100 | 1
        image.crop((0, 0, min(w, image.width), min(h, image.height))).save(tmp_path / f"{i:03}.jpg", quality=95)
    photos = sorted(tmp_path.glob("*.jpg"))
    ours = preprocessed(tmp_path, yaml(mode, interpolation, pct))
    found = []
    for got, path in zip(ours, photos, strict=True):
        image = Image.open(path)
        want = timms(image, mode, interpolation, pct)
        assert steps(want, reference(image, mode, interpolation, pct)) < 1e-4, "the reference above is not timm"
        found.append(steps(got, want))
    print(f"{mode} {interpolation} {pct}: mean {np.mean(found):.4f}, at most {max(found):.4f} / 255 on {len(found)} images")
    # Most of it is the decoder's chroma (halved by Pillow's encoder), which no one image may carry far.
    assert np.mean(found) <= 0.5 and max(found) <= 1


def test_every_form_of_file(preprocessed, tmp_path):
    """Greyscale, CMYK, alpha, palettes, 16 bits, progressive and subsampled JPEGs: as Pillow converts them."""
    rng = np.random.default_rng(1)
    rgb = Image.fromarray(rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)).resize((301, 233), Image.BICUBIC)
    grey16 = Image.fromarray((np.asarray(rgb.convert("L")).astype(np.uint16) * 2))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(rgb.convert("L"))
    forms = {
        "a_grey.jpg": (rgb.convert("L"), {"quality": 95}),
        "b_cmyk.jpg": (rgb.convert("CMYK"), {"quality": 95}),
        "c_progressive.jpg": (rgb, {"quality": 90, "progressive": True}),
        "d_subsampled.jpg": (rgb, {"quality": 90, "subsampling": "4:2:0"}),
        "e_rgba.png": (alpha, {}),
        "f_la.png": (alpha.convert("LA"), {}),
        "g_palette.png": (rgb.convert("P"), {}),
        "h_grey16.png": (grey16, {}),
        "i_bilevel.png": (rgb.convert("1"), {}),
        "j_interlaced_rgb.png": (rgb, {"optimize": True}),
    }
    for name, (image, options) in forms.items():
        image.save(tmp_path / name, **options)
    ours = preprocessed(tmp_path, yaml("center", "bicubic", 0.9))
    for got, name in zip(ours, sorted(forms), strict=True):
        far = steps(got, reference(Image.open(tmp_path / name), "center", "bicubic", 0.9))
        print(f"{name}: {far:.4f} / 255")
        # A CMYK image goes through two 8-bit conversions that round differently.
        assert far <= (1.0 if "cmyk" in name else 0.5), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(preprocessed, tmp_path, orientation):
    rng = np.random.default_rng(2)
    image = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((280, 190), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", quality=95, exif=exif)
    image.save(tmp_path / "b.png", exif=exif)
    stored = [Image.open(tmp_path / n) for n in ("a.jpg", "b.png")]
    config = yaml("center", "bicubic", 0.9)
    for got, image in zip(preprocessed(tmp_path, config), stored, strict=True):
        assert steps(got, reference(ImageOps.exif_transpose(image), "center", "bicubic", 0.9)) <= 0.5
    for got, image in zip(preprocessed(tmp_path, config + "exif_orientation: false\n"), stored, strict=True):
        assert steps(got, reference(image, "center", "bicubic", 0.9)) <= 0.5


def test_timms_config_json_means_what_timm_makes_of_it(preprocessed, odd_sizes):
    json = """{"architecture": "vit", "pretrained_cfg": {"input_size": [3, 224, 224], "interpolation": "lanczos",
        "crop_pct": 0.95, "crop_mode": "border", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "pool_size": null}}"""
    same = preprocessed(odd_sizes, json, "config.json")
    assert same.tobytes() == preprocessed(odd_sizes, yaml("border", "lanczos", 0.95)).tobytes()
