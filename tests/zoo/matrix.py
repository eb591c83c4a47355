#!/usr/bin/env python3
"""Architectures by exporters: is every block found, are the sites the same, is the canonical graph the original's equal?

    matrix.py [--variants REGEX] [--exports REGEX] [-j N]        tests/zoo/run.sh matrix … prepares the environment

Every variant of variants.py, two blocks wide as little as it may be, is exported by TorchScript and dynamo at several opsets,
with fused and explicit attention, with a symbolic and a fixed batch, with weights inside and in a file beside. What torch
cannot export is counted apart. Exit code 1 if any export fails in vitq.
"""
import argparse
import itertools
import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

import jobs
import zoo
from sweep import failure, vitq
from variants import VARIANTS

OPSETS = ["ts11", "ts13", "ts14", "ts16", "ts17", "ts18", "ts20", "dy18", "dy20", "dy21", "dy23"]
CROSS = ["".join(flags) for flags in itertools.product(("", "-fixed"), ("", "-unfused"), ("", "-external"))]
SINGLE = ["", "-fixed", "-unfused", "-external"]
TOLERANCE = 1e-4  # of the canonical graph's logits, relative to the original's largest


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--variants", default="", help="a regular expression for variants.py's names")
    p.add_argument("--exports", default="", help="a regular expression for exports such as ts17-fixed-unfused-external")
    p.add_argument("--cross", action="store_true", help="every combination of fixed, unfused, external, not one at a time")
    p.add_argument("-j", "--jobs", type=int, default=1)
    p.add_argument("--timeout", type=int, default=1800, help="seconds for one variant")
    p.add_argument("--memory", type=float, default=12, help="GB of address space for one process")
    p.add_argument("--json", type=Path, help="write every cell here")
    p.add_argument("--keep", type=Path, help="keep the exports in this folder")
    a = p.parse_args()
    binary = zoo.find_vitq()
    names = [n for n in VARIANTS if re.search(a.variants, n)]
    exports = [o + flags for o in OPSETS for flags in (CROSS if a.cross else SINGLE)]
    exports = [e for e in exports if re.search(a.exports, e)]
    warm_up(exports)
    cells = {}

    def done(name, result):
        cells[name] = result.get("cells") or {"all": {"state": "failed", "reason": f"{result['phase']}: {result['error']}"}}
        settle(VARIANTS[name], cells[name])
        print(row(name, cells[name]), flush=True)

    print(f"{'variant':22}{'good':>6}{'failed':>8}{'no export':>11}  sites")
    jobs.run_all(names, lambda n, phase: one(n, exports, binary, a.keep, phase), done, a.jobs, a.timeout, a.memory)
    if a.json:
        a.json.write_text(json.dumps(cells, indent=1))
    return summary(cells)


def warm_up(exports):
    """Loads torch and its exporters once here, not in every subprocess."""
    import torch

    torch.set_num_threads(1)
    for how in ("ts17", "dy20"):
        if any(e.startswith(how[:2]) for e in exports):
            with tempfile.TemporaryDirectory(prefix="vitq-zoo-") as folder:
                model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten(1)).eval()
                zoo.export(model, 8, Path(folder) / "warm.onnx", zoo.Export.parse(how), "input")


def one(name, exports, binary, keep, phase):
    """{export: {state, reason, sites}} of one variant."""
    import torch
    from timm.layers import set_fused_attn

    torch.set_num_threads(1)
    variant, cells, models = VARIANTS[name], {}, {}
    x = zoo.images(2, variant.size, seed=2)
    with tempfile.TemporaryDirectory(prefix="vitq-zoo-") as folder:
        folder = Path(folder)
        if keep:
            folder = keep / name
            folder.mkdir(parents=True, exist_ok=True)
        for e in exports:
            how = zoo.Export.parse(e)
            path = folder / f"{name}.{e}.onnx"
            inside = folder / f"{name}.{e.removesuffix('-external')}.onnx"
            phase(f"export {e}")
            try:
                if how.external and inside.exists():
                    path.write_bytes(inside.read_bytes())
                    zoo.externalise(path, threshold=0)
                elif not path.exists():
                    set_fused_attn(not how.unfused)
                    if how.unfused not in models:
                        models[how.unfused] = zoo.create(variant.model, reduced=False, **variant.arguments)[0]
                    zoo.export(models[how.unfused], variant.size, path, how)
                    zoo.check(models[how.unfused], variant.size, path)
            except Exception as error:
                cells[e] = {"state": "no export", "reason": jobs.one_line(error)}
                path.unlink(missing_ok=True)
                continue
            phase(f"inspect {e}")
            try:
                cells[e] = look(variant, binary, path, x)
            except Exception as error:
                cells[e] = {"state": "failed", "reason": jobs.one_line(error)}
    return {"cells": cells}


def look(variant, binary, path, x):
    done = vitq(binary, "inspect", "--json", path)
    if done.returncode:
        return {"state": "failed", "reason": failure(done)}
    seen = json.loads(done.stdout)
    cell = {"sites": len(seen["sites"]), "blocks": len(seen["blocks"]), "left": seen["ops_left_alone"]}
    out = path.with_suffix(".canonical.onnx")
    done = vitq(binary, "canon", path, "-o", out)
    if done.returncode:
        return cell | {"state": "failed", "reason": f"canon: {failure(done)}"}
    a, b = zoo.run_ort(path, x), zoo.run_ort(out, x)
    out.unlink()
    cell["difference"] = float(np.abs(a - b).max() / np.abs(a).max())
    if not cell["difference"] <= TOLERANCE:
        return cell | {"state": "failed", "reason": f"the canonical graph differs by {cell['difference']:.1e}"}
    near = seen["near_misses"]
    if cell["blocks"] != variant.blocks:
        first = near[0] if near else "no near miss"
        return cell | {"state": "failed", "reason": f"{cell['blocks']} of {variant.blocks} blocks; {first}"}
    layers = seen["ops"].get("Conv", 0) + seen["ops"].get("Gemm", 0)
    if not variant.blocks and seen["convolutions"] + seen["linears"] < layers:
        return cell | {"state": "failed", "reason": f"{seen['convolutions']} convolutions and {seen['linears']} linears of {layers}"}
    if near:
        return cell | {"state": "failed", "reason": f"near miss: {near[0]}"}
    return cell | {"state": "good", "reason": ""}


def settle(variant, cells):
    """Fails the exports whose sites are not as many as agreed, or as most of the variant's exports have."""
    counts = Counter(c["sites"] for c in cells.values() if c["state"] == "good")
    if not counts:
        return
    wanted = variant.sites or counts.most_common(1)[0][:1]
    for c in cells.values():
        if c["state"] == "good" and c["sites"] not in wanted:
            c.update(state="failed", reason=f"{c['sites']} sites, {' or '.join(map(str, wanted))} expected")


def row(name, cells):
    states = Counter(c["state"] for c in cells.values())
    sites = sorted({c["sites"] for c in cells.values() if "sites" in c})
    return f"{name:22}{states['good']:6}{states['failed']:8}{states['no export']:11}  {', '.join(map(str, sites))}"


def summary(cells):
    groups, refused = defaultdict(list), defaultdict(list)
    for name, exports in cells.items():
        for e, c in exports.items():
            text = re.sub(r"\d+(\.\d+)?", "N", re.sub(r"[\w.-]+\.onnx|'[^']*'", "'…'", c["reason"]))
            if c["state"] != "good":
                (groups if c["state"] == "failed" else refused)[text].append((f"{name}.{e}", c["reason"]))
    for title, found in (("Failed", groups), ("torch cannot export", refused)):
        if found:
            print(f"\n{title}")
        for members in sorted(found.values(), key=lambda m: (-len(m), m[0])):
            variants = Counter(n.split(".")[0] for n, _ in members)
            print(f"- {len(members)}: {members[0][1]}")
            print(f"  {', '.join(f'{v} {n}' for v, n in variants.items())}; for instance {members[0][0]}")
    failed = sum(map(len, groups.values()))
    good = sum(c["state"] == "good" for e in cells.values() for c in e.values())
    print(f"\n{good} good, {failed} failed, {sum(map(len, refused.values()))} that torch cannot export")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
