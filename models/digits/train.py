#!/usr/bin/env python3
"""Train the two small models of this folder on scikit-learn's handwritten digits, export them to ONNX, write the images.

    train.py                     trains the ViT: vit_digits.onnx, calib/, test/
    train.py --arch cnn          trains the CNN: cnn_digits.onnx
    train.py --images-only       writes calib/ and test/ and trains nothing

The images are written first and everything is trained on the bytes that they hold, so that whoever reads a PNG of
test/ sees what the model saw. Everything runs on one thread with fixed seeds. The test split is never trained on and
nothing is chosen by it: the last epoch's weights are exported, and the accuracy printed is theirs.

Needs: pip install -r requirements.txt
"""
import argparse
import contextlib
import csv
import io
import math
import shutil
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import nn

HERE = Path(__file__).resolve().parent
SIZE = 32  # pixels a side after enlarging
TEST = 360  # images, a fifth of the data set
CALIB = 64  # images, taken from the training split
MEAN = STD = 0.5  # timm's "inception" normalisation
SEED = 0


def enlarge(image):
    """One 8x8 image with values 0..16 as a SIZE x SIZE 8-bit greyscale image, by Pillow's bicubic filter."""
    small = np.round(image * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def splits():
    """(images uint8, labels, index in the data set) of the training and of the test split, stratified by class."""
    digits = load_digits()
    images = np.stack([enlarge(i) for i in digits.images])
    index = np.arange(len(images))
    train, test = train_test_split(index, test_size=TEST, stratify=digits.target, random_state=SEED)
    return tuple((images[part], digits.target[part], part) for part in (train, test))


def write_folder(folder, images, labels, index):
    """The images as PNG, named by their index in the data set, and labels.csv."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    order = np.argsort(index)
    with open(folder / "labels.csv", "w", newline="") as f:
        rows = csv.writer(f, lineterminator="\n")
        rows.writerow(["file", "label"])
        for i in order:
            name = f"{index[i]:04d}.png"
            Image.fromarray(images[i]).save(folder / name, optimize=True)
            rows.writerow([name, int(labels[i])])


def write_images(train, test):
    calib, _ = train_test_split(np.arange(len(train[0])), train_size=CALIB, stratify=train[1], random_state=SEED)
    write_folder(HERE / "calib", *(part[calib] for part in train))
    write_folder(HERE / "test", *test)


def to_input(images):
    """uint8 [n, h, w] to the models' float input [n, 3, h, w] in -1..1: greyscale read as RGB."""
    x = torch.from_numpy(images).float().div(255).sub(MEAN).div(STD)
    return x.unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


def augment(x, generator):
    """Each image turned by up to 12 degrees, scaled by 0.85..1.15 and shifted by up to 3 pixels; background outside."""
    n = len(x)
    u = torch.rand(5, n, generator=generator) * 2 - 1
    angle, sx, sy = u[0] * math.radians(12), 1 + 0.15 * u[1], 1 + 0.15 * u[2]
    shift = 3 / (SIZE / 2) * u[3:]
    theta = torch.stack(
        [
            torch.stack([angle.cos() / sx, -angle.sin() / sx, shift[0]], 1),
            torch.stack([angle.sin() / sy, angle.cos() / sy, shift[1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    # grid_sample pads with 0: move the background (-1) there and back.
    return F.grid_sample(x + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1


def vit():
    """timm's VisionTransformer, small: 64 patches and a class token, 4 pre-norm blocks, head dimension 16."""
    return VisionTransformer(
        img_size=SIZE, patch_size=4, in_chans=3, num_classes=10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=4
    )


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut (1x1 where the shape changes)."""

    def __init__(self, inp, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.act = nn.ReLU()
        self.shortcut = nn.Identity()
        if stride != 1 or inp != out:
            self.shortcut = nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + self.shortcut(x))


def cnn():
    """A small residual network: stem, three stages of one block, global average pooling, head."""
    layers = dict(
        stem=nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        bn=nn.BatchNorm2d(16),
        act=nn.ReLU(),
        stage1=Residual(16, 16, 1),
        stage2=Residual(16, 32, 2),
        stage3=Residual(32, 32, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(32, 10),
    )
    return nn.Sequential(OrderedDict(layers))


def accuracy(model, images, labels):
    """Correct answers, of how many."""
    model.eval()
    with torch.no_grad():
        hits = model(to_input(images)).argmax(1) == torch.from_numpy(labels)
    return int(hits.sum()), len(labels)


def train(model, images, labels, epochs, lr, batch=64, weight_decay=0.05):
    """AdamW, five epochs of warm-up, then a cosine to zero."""
    x, y = to_input(images), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    steps = epochs * (len(x) // batch)
    warm = steps * 5 // epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: (s + 1) / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / (steps - warm))),
    )
    start = time.time()
    for epoch in range(epochs):
        model.train()
        order, total = torch.randperm(len(x), generator=generator), 0.0
        for i in range(0, len(x) - batch + 1, batch):
            pick = order[i : i + batch]
            loss = F.cross_entropy(model(augment(x[pick], generator)), y[pick], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
        if epoch % 5 == 4 or epoch == epochs - 1:
            print(f"epoch {epoch + 1:3d}  loss {total / (len(x) // batch):.4f}  {time.time() - start:.0f} s", flush=True)


def export(model, path, arch):
    """The TorchScript exporter at opset 17 with a symbolic batch, as most timm users have it."""
    args = dict(
        opset_version=17,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        dynamo=False,
    )
    if arch == "cnn":
        # Keeps the BatchNormalization nodes, as the exports do that CNN users bring.
        args.update(training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    model.eval()
    warnings.filterwarnings("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (torch.zeros(2, 3, SIZE, SIZE),), str(path), **args)


def verify(model, path, images):
    """The exported file must give the trained model's logits, at a batch other than the traced one."""
    import onnxruntime

    x = to_input(images[:7])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = model(x).numpy()
    got = session.run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arch", choices=["vit", "cnn"], default="vit")
    p.add_argument("--epochs", type=int, help="default: 100 for the ViT, 60 for the CNN")
    p.add_argument("--images-only", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    (images, labels, index), test = splits()
    write_images((images, labels, index), test)
    if a.images_only:
        return
    model = vit() if a.arch == "vit" else cnn()
    print(f"{a.arch}: {sum(p.numel() for p in model.parameters())} parameters, {len(images)} training images")
    if a.arch == "vit":
        train(model, images, labels, a.epochs or 100, lr=1e-3)
    else:
        train(model, images, labels, a.epochs or 60, lr=3e-3)
    for name, part in (("train", (images, labels)), ("test", test[:2])):
        hits, n = accuracy(model, *part)
        print(f"{name} accuracy {100 * hits / n:.2f} % ({hits} of {n})")
    path = HERE / f"{a.arch}_digits.onnx"
    export(model, path, a.arch)
    verify(model, path, test[0])
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
