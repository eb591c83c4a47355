#!/usr/bin/env python3
"""Calibrate on a Ray cluster: every shard is a task, the statistics are merged at the end.

    pip install ray
    python examples/ray_calibrate.py --shards 16 -o model.stats -- model.onnx --calib images/ --preprocess imagenet

What follows `--` are the arguments of `vitq calibrate`. The result has the same bytes as one run of it, whatever the number
of shards and workers. The model and the images must be readable under the same path on every node (a network file system); the
statistics, a megabyte or so a shard, travel through Ray. A task that fails (a node that is lost) is run again.

Without --address a local Ray is started. Each task takes --cpus processors and runs as many threads.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import ray


@ray.remote(max_retries=3)
def calibrate(vitq, arguments, shard, shards, cpus):
    """The statistics of one shard, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shard.stats"
        command = [vitq, "calibrate", *arguments, "--shard", f"{shard}/{shards}", "--threads", str(cpus), "--quiet", "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        # Not an exception: what vitq refuses, it refuses on every node, and Ray would try again.
        return shard, out.read_bytes() if done.returncode == 0 else None, done.stderr.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, required=True, help="how many tasks; some for each worker")
    parser.add_argument("--address", help="of a running cluster, `auto` inside one (default: a local Ray)")
    parser.add_argument("--cpus", type=int, default=1, help="processors of a task")
    parser.add_argument("--vitq", default="vitq", help="the binary, as every node finds it")
    parser.add_argument("-o", "--output", required=True, help="the merged statistics")
    parser.add_argument("arguments", nargs="+", help="after `--`: the arguments of `vitq calibrate`, without -o and --shard")
    args = parser.parse_args()

    ray.init(address=args.address, log_to_driver=False)
    # Tasks run in folders of their own.
    arguments = [str(Path(a).resolve()) if Path(a).exists() else a for a in args.arguments]
    task = calibrate.options(num_cpus=args.cpus)
    waiting = [task.remote(args.vitq, arguments, k, args.shards, args.cpus) for k in range(1, args.shards + 1)]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        while waiting:
            (ready,), waiting = ray.wait(waiting)
            shard, stats, said = ray.get(ready)
            if said:
                print(f"shard {shard}: {said}", file=sys.stderr)
            if stats is None:
                return 1
            files.append(Path(folder) / f"{shard}.stats")
            files[-1].write_bytes(stats)
            print(f"{len(files)} of {args.shards} shards are done", file=sys.stderr)
        # In the order in which they came: the order does not matter.
        return subprocess.run([args.vitq, "merge", *map(str, files), "-o", args.output]).returncode


if __name__ == "__main__":
    sys.exit(main())
