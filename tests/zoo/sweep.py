#!/usr/bin/env python3
"""Compiles every timm model of some families, runs the results in onnxruntime, and writes a table.

    sweep.py --work DIR [--only REGEX] [-j N]        tests/zoo/run.sh sweep … prepares the environment

Models have random weights (so that every branch shows in the logits), two blocks (one a kind of block at least), ten
classes, and images of smooth noise: 4 to calibrate, 4 others to compare the result with the original. DIR keeps the exports
and results.json; a second run goes on where the first ended, and measures again what another vitq binary measured.
"""
import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import jobs
import table
import zoo

DEFAULT = "ts17,ts17-unfused,dy20"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, required=True, help="keeps exports/ and results.json between runs")
    p.add_argument("--family", help="comma-separated modules of timm.models [default: the eight of the table]")
    p.add_argument("--only", default="", help="names that match this regular expression")
    p.add_argument("--export", default=DEFAULT, help=f"the first of these that torch can make [default: {DEFAULT}]")
    p.add_argument("--target", default="onnxruntime", help="of vitq compile [default: onnxruntime]")
    p.add_argument("-j", "--jobs", type=int, default=1)
    p.add_argument("--timeout", type=int, default=900, help="seconds for one model")
    p.add_argument("--memory", type=float, default=14, help="GB of address space for one process")
    p.add_argument("--keep", type=float, default=250, help="exports above this many MB are not kept")
    p.add_argument("--export-only", action="store_true", help="fill the cache and compile nothing")
    p.add_argument("--inspect-only", action="store_true", help="recognise and compile nothing")
    p.add_argument("--fresh", action="store_true", help="measure again what this binary has measured")
    p.add_argument("--results", type=Path, help="[default: WORK/results.json]")
    p.add_argument("--table", type=Path, help="write the Markdown table here, from all results")
    p.add_argument("--table-only", action="store_true", help="write the table and measure nothing")
    a = p.parse_args()
    (a.work / "exports").mkdir(parents=True, exist_ok=True)
    results_path = a.results or a.work / "results.json"
    known = json.loads(results_path.read_text()) if results_path.exists() else {}
    families = a.family.split(",") if a.family else zoo.FAMILIES
    names = [n for n in zoo.names(families) if re.search(a.only, n)]
    if not a.table_only:
        measure(a, names, known, results_path)
    if a.table:
        rows = [known[key(n, a)] for n in names if key(n, a) in known]
        a.table.write_text(table.markdown(rows, families, a.target))


def key(name, a):
    return f"{name} {a.target}"


def measure(a, names, known, results_path):
    exports = a.export.split(",")
    for e in exports:
        zoo.Export.parse(e)
    binary = None if a.export_only else zoo.find_vitq()
    digest = None if a.export_only else hashlib.sha256(binary.read_bytes()).hexdigest()[:16]
    todo = [n for n in names if a.fresh or a.export_only or known.get(key(n, a), {}).get("binary") != digest]
    todo = [n for n in todo if not (a.export_only and cached(a, n, exports))]
    todo.sort(key=weight)
    if any(not cached(a, n, exports) for n in todo):
        import torch  # once here, not in every subprocess

        torch.set_num_threads(1)
    ended = 0

    def done(name, result):
        nonlocal ended
        ended += 1
        result = {"model": name, "family": zoo.family(name), "target": a.target, "binary": digest} | result
        state, reason = table.verdict(result)
        print(f"[{ended}/{len(todo)}] {name}: {state}{': ' + reason if reason else ''}"[:240], flush=True)
        if not a.export_only:
            known[key(name, a)] = result
            part = results_path.with_suffix(".part")
            part.write_text(json.dumps(dict(sorted(known.items())), indent=1))
            part.rename(results_path)

    jobs.run_all(todo, lambda n, phase: one(a, binary, n, exports, phase), done, a.jobs, a.timeout, a.memory)


def weight(name):
    """Small widths first: a rough width from the name, for the order alone."""
    sizes = ["test", "tiny", "xxs", "xs", "pwee", "wee", "small", "little", "medium", "s24", "s36", "base", "b", "large"]
    huge = re.search(r"huge|giant|gigantic|enormous|so400m|5b|7b|_1b|_3b|m36|m48", name)
    return (99 if huge else next((i for i, s in enumerate(sizes) if s in name), 50), name)


def cached(a, name, exports):
    """The metadata of the first export that could be made, if it and the failures before it are in the cache."""
    for e in exports:
        meta = a.work / "exports" / f"{name}.{e}.json"
        if not meta.exists():
            return None
        found = json.loads(meta.read_text())
        if "error" not in found:
            return found if (a.work / "exports" / f"{name}.{e}.onnx").exists() else None
    return {"error": "no export"}


def exported(a, name, exports, phase):
    """(metadata, path) of the first export that torch makes; metadata with the errors of all if it makes none."""
    tried = {}
    for e in exports:
        path = a.work / "exports" / f"{name}.{e}.onnx"
        meta = path.with_suffix(".json")
        found = json.loads(meta.read_text()) if meta.exists() else None
        if found is None or ("error" not in found and not path.exists()):
            found = export(name, e, path, phase)
            meta.write_text(json.dumps(found))
        if "error" not in found:
            return found | {"tried": tried}, path
        tried[e] = found["error"]
    return {"error": "; ".join(f"{e}: {why}" for e, why in tried.items()), "tried": tried}, None


def export(name, how, path, phase):
    import torch
    from timm.layers import set_fused_attn

    torch.set_num_threads(1)
    how = zoo.Export.parse(how)
    set_fused_attn(not how.unfused)
    phase(f"create {how}")
    try:
        model, size, remarks = zoo.create(name)
        phase(f"export {how}")
        part = path.with_suffix(".part")
        zoo.export(model, size, part, how)
        phase(f"check {how}")
        zoo.check(model, size, part)
    except MemoryError:
        raise
    except Exception as e:
        part.unlink(missing_ok=True)
        return {"export": str(how), "error": jobs.one_line(e)}
    part.rename(path)
    parameters = sum(p.numel() for p in model.parameters())
    found = {"size": size, "expected": zoo.expected_blocks(model), "parameters": parameters, "remarks": remarks}
    return {"export": str(how)} | found


def one(a, binary, name, exports, phase):
    meta, path = exported(a, name, exports, phase)
    if path is None or a.export_only:
        return meta | ({"phase": "export"} if path is None else {})
    result = dict(meta)
    try:
        with tempfile.TemporaryDirectory(prefix="vitq-zoo-") as folder:
            compile_and_run(a, binary, path, Path(folder), result, phase)
    finally:
        if path.stat().st_size > a.keep * 1e6:
            path.unlink()
    phase("end")
    return result | {"seconds": phase.seconds}


def compile_and_run(a, binary, path, folder, result, phase):
    phase("inspect")
    done = vitq(binary, "inspect", "--json", path)
    if done.returncode:
        result.update(error=failure(done), phase="inspect")
        return
    seen = json.loads(done.stdout)
    result.update(
        blocks=len(seen["blocks"]), sites=len(seen["sites"]), near_misses=seen["near_misses"],
        convolutions=seen["convolutions"], linears=seen["linears"], ops=seen["ops"], left_alone=seen["ops_left_alone"],
        kinds=sorted({b.get("kind", "") for b in seen["blocks"]}), bytes=seen["bytes"],
    )  # fmt: skip
    if a.inspect_only:
        return
    phase("original")
    x = zoo.images(4, result["size"], seed=2)
    reference = zoo.run_ort(path, x)
    if not np.isfinite(reference).all():
        result.update(error="the original's logits are not finite", phase="original")
        return
    phase("compile")
    calib, out = folder / "calib.npy", folder / "out.onnx"
    np.save(calib, zoo.images(4, result["size"], seed=1))
    done = vitq(
        binary, "compile", path, "--calib", calib, "--target", a.target, "--threads", "1", "--json", "-o", out
    )
    if done.returncode:
        result.update(error=failure(done), phase="compile")
        return
    phase("run")
    got = zoo.run_ort(out, x)
    result["sqnr"] = round(min(zoo.sqnr_db(reference, got), 999.0), 2) if np.isfinite(got).all() else None
    result["size_ratio"] = round(out.stat().st_size / path.stat().st_size, 3)
    if result["sqnr"] is None or math.isnan(result["sqnr"]):
        result.update(sqnr=None, error="the result's logits are not finite", phase="run")


def vitq(binary, *args):
    return subprocess.run(
        [str(binary), *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip


def failure(done):
    lines = [x.strip() for x in done.stderr.splitlines() if x.strip()]
    errors = [i for i, x in enumerate(lines) if x.lower().startswith("error")]
    text = " ".join(lines[errors[-1] :] if errors else lines[-3:])
    text = re.sub(r"^error: ", "", re.sub(r"\S*/([\w.-]+\.onnx)", r"\1", text))
    return (text if done.returncode == 1 else f"exit code {done.returncode}: {text}")[:500]


if __name__ == "__main__":
    sys.exit(main())
