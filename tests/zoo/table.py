"""The sweep's results as a Markdown page: percentages by family, every model, the misses with their reasons."""
import re
import statistics
from collections import defaultdict

LOW = 20.0  # dB of logit SQNR below which a compiled model does not count


def verdict(r):
    """(state, reason in one line) of one result. States: good, not exported, failed, blocks missing, left in float, low."""
    if r.get("phase") in ("export", "original") or str(r.get("phase", "")).startswith(("create", "export")):
        return "not exported", r["error"]
    if "error" in r:
        return "failed", f"{r['phase']}: {r['error']}"
    if "blocks" not in r:
        return "exported", ""
    if r["blocks"] != r["expected"]:
        first = r["near_misses"][0] if r["near_misses"] else "no near miss"
        return "blocks missing", f"{r['blocks']} of {r['expected']} blocks; {first}"
    layers = r["ops"].get("Conv", 0) + r["ops"].get("Gemm", 0)
    if not r["expected"] and r["convolutions"] + r["linears"] < layers:
        return "left in float", f"{r['convolutions']} convolutions and {r['linears']} linears of {layers}"
    if "sqnr" not in r:
        return "recognised", ""
    if r["sqnr"] < LOW:
        return "low", f"{r['sqnr']} dB"
    return "good", ""


def group(reason):
    """A reason without names, numbers and shapes, so that equal causes group."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"[\w.-]+\.onnx|'[^']*'", "'…'", reason))


def markdown(rows, families, target):
    rows = [r | dict(zip(("state", "reason"), verdict(r))) for r in rows]
    out = [
        "# timm's models, compiled",
        "",
        f"Made by `tests/zoo/run.sh sweep` for `--target {target}`. Each model has random weights, two blocks (Swin: two a stage;",
        "CaiT: two and two with class attention; ResNet: one a stage), ten classes and its own image size up to 256 pixels (else",
        "192 to 256), and is exported with a symbolic batch by the first of `ts17`, `ts17-unfused` (TorchScript, opset 17) and `dy20`",
        "(dynamo, opset 20) that torch can make. Calibration and comparison use four images of smooth noise each; the SQNR is that of",
        "the logits in onnxruntime against the original. *Recognised*: every block found, no more and no fewer (for CNNs: every",
        f"convolution and Linear). *Good*: also compiled, run, SQNR at least {LOW:g} dB. Percentages are of what torch exports.",
        "",
    ]
    looked = sum(r["state"] == "recognised" for r in rows)
    if looked:
        out += [f"**{looked} models were only looked at (`vitq inspect`), not compiled**: *recognised* below, and not counted as good.", ""]
    out += [
        "| family | models | exported | recognised | | good | | blocks found | median SQNR | lowest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for f in families:
        out.append(summary(f, [r for r in rows if r["family"] == f]))
    out += ["", "## Every model", "", "| model | export | pixels | blocks | sites | near misses | SQNR, dB | seconds | |"]
    out.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for f in families:
        out += [line(r) for r in sorted(rows, key=lambda r: r["model"]) if r["family"] == f]
    out += ["", "## What is missing", ""]
    groups = defaultdict(list)
    for r in rows:
        if r["state"] not in ("good", "recognised", "exported"):
            groups[r["state"], group(r["reason"])].append(r)
    for (state, _), members in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])):
        named = ", ".join(f"`{r['model']}`" for r in members)
        out += [f"- **{state}**, {len(members)}: {escape(members[0]['reason'])}", f"  {named}"]
    if not groups:
        out.append("Nothing.")
    remarks = [r for r in rows if r.get("remarks")]
    if remarks:
        out += ["", "## Not reduced", ""]
        out += [f"- `{r['model']}`: {'; '.join(r['remarks'])}" for r in remarks]
    return "\n".join(out) + "\n"


def summary(family, rows):
    exported = [r for r in rows if r["state"] != "not exported"]
    good = [r for r in exported if r["state"] == "good"]
    found = sum(r.get("blocks", 0) for r in exported)
    expected = sum(r.get("expected", 0) for r in exported)
    sqnr = [r["sqnr"] for r in exported if r.get("sqnr") is not None]
    recognised = [r for r in exported if r["state"] not in ("blocks missing", "left in float") and "blocks" in r]

    def share(part):
        return f"{len(part)} | {100 * len(part) / len(exported):.1f} %" if exported else "– | –"

    median, lowest = (f"{statistics.median(sqnr):.1f} dB", f"{min(sqnr):.1f} dB") if sqnr else ("–", "–")
    blocks = f"{found} of {expected}" if expected else "–"
    shares = f"{share(recognised)} | {share(good)}"
    return f"| {family} | {len(rows)} | {len(exported)} | {shares} | {blocks} | {median} | {lowest} |"


def line(r):
    if r["state"] == "not exported":
        return f"| {r['model']} | – | | | | | | | not exported |"
    blocks = f"{r['blocks']}/{r['expected']}" if "blocks" in r else f"–/{r.get('expected', '–')}"
    sqnr = f"{r['sqnr']:.1f}" if r.get("sqnr") is not None else "–"
    seconds = sum(v for k, v in r.get("seconds", {}).items() if k in ("inspect", "compile"))
    state = "" if r["state"] == "good" else r["state"]
    near = len(r.get("near_misses", []))
    cells = [r["model"], r.get("export", "–"), r.get("size", ""), blocks, r.get("sites", ""), near or "", sqnr, f"{seconds:.1f}", state]
    return "| " + " | ".join(map(str, cells)) + " |"


def escape(text):
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
