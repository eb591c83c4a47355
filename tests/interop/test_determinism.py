"""The same command gives the same bytes: on one thread or two, the first time or the second."""
import pytest

from interop import TARGETS, VITS, compile_args


@pytest.mark.parametrize("model", VITS, ids=lambda m: m.stem)
@pytest.mark.parametrize("target", TARGETS)
def test_compile_is_deterministic(vitq, tmp_path, model, target):
    """The model, the statistics and the plan, from four runs."""
    runs = {}
    for threads in (1, 2):
        for again in ("first", "second"):
            folder = tmp_path / f"{threads}-{again}"
            folder.mkdir()
            vitq(
                *compile_args(model, target, folder / "out.onnx", "--threads", threads),
                "--save-stats", folder / "stats", "--save-plan", folder / "plan.yaml",
            )  # fmt: skip
            runs[folder.name] = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    first = runs["1-first"]
    assert set(first) == {"out.onnx", "stats", "plan.yaml"}
    for name, files in runs.items():
        differ = [f for f in first if files.get(f) != first[f]]
        assert not differ, f"{name} differs from 1-first in {differ}"


@pytest.mark.parametrize("target", TARGETS)
def test_a_staged_compile_gives_the_same_bytes(vitq, tmp_path, target):
    """calibrate, plan and lower, one after the other, are compile."""
    (model,) = VITS
    whole, staged = tmp_path / "whole.onnx", tmp_path / "staged.onnx"
    stats, plan = tmp_path / "stats", tmp_path / "plan.yaml"
    # A search runs the model, which `plan` cannot.
    args = [str(a) for a in compile_args(model, target, whole, "--effort", "fast")]
    vitq(*args)
    images = args[args.index("--calib") : args.index("--target")]
    vitq("calibrate", model, *images, "-o", stats)
    vitq("plan", model, "--stats", stats, "--target", target, "-o", plan)
    vitq("lower", model, "--plan", plan, "-o", staged)
    assert staged.read_bytes() == whole.read_bytes()
