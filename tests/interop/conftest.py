"""Fixtures of the interop suite: the vitq binary, the models, the images, compiled models (each made once a session).

Helpers that are plain functions live in interop.py.
"""
import os
import subprocess
from pathlib import Path

import pytest

from interop import DIGITS, REPO, compile_args, run_vitq


def built_binaries():
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    found = [target / profile / "vitq" for profile in ("release", "debug")]
    return [p for p in found if p.is_file()]


@pytest.fixture(scope="session")
def binary():
    """The binary under test: $VITQ, else the newest one in target/, else a fresh release build."""
    if "VITQ" in os.environ:
        path = Path(os.environ["VITQ"])
        assert path.is_file(), f"VITQ={path} is no file"
        return path
    if not built_binaries():
        subprocess.run(["cargo", "build", "--locked", "--release"], cwd=REPO, check=True)
    return max(built_binaries(), key=lambda p: p.stat().st_mtime)


@pytest.fixture(scope="session")
def vitq(binary):
    """Calls vitq with these arguments; a failure shows what it wrote. `check=False` returns it instead."""

    def call(*args, check=True):
        return run_vitq(binary, *args, check=check)

    return call


@pytest.fixture(scope="session")
def compiled(vitq, tmp_path_factory):
    """compiled(model, target): the path of `model` compiled for `target` on the digits' calibration images."""
    cache = {}

    def get(model, target):
        if (model, target) not in cache:
            out = tmp_path_factory.mktemp("compiled") / f"{model.stem}.{target}.onnx"
            vitq(*compile_args(model, target, out))
            cache[model, target] = out
        return cache[model, target]

    return get


@pytest.fixture(scope="session")
def digits():
    """The digits' test split: (inputs [360, 3, 32, 32] float32, labels [360])."""
    from interop import load_folder

    return load_folder(DIGITS / "test")
