"""Saving and loading against the least that any durable, or any complete, way must do.

Run ``python tests/benchmarks/bench_checkpoint.py``. The floors write (and fsync) or read the same bytes and
do nothing else: no hash, no manifest, no rename. All cases take turns, because a disk's mood changes from
second to second; medians are compared. The first round warms up and is left out.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from parhelion.checkpoint import load_checkpoint, save_checkpoint

META = {"run_name": "bench", "global_epoch": 1, "global_iteration": 1}


def make_state(megabytes, arrays):
    rng = np.random.default_rng(0)
    size = megabytes * 1_000_000 // arrays // 4
    return {f"layer_{index:03d}.weight": rng.standard_normal(size, dtype=np.float32) for index in range(arrays)}


def write_floor(state, path):
    with path.open("wb", buffering=0) as stream:
        for array in state.values():
            stream.write(array.data.cast("B"))
        os.fsync(stream.fileno())


def read_floor(state, path):
    read = {}
    with path.open("rb", buffering=0) as stream:
        for name, array in state.items():
            read[name] = np.empty_like(array)
            stream.readinto(read[name].data.cast("B"))
    return read


def timed(function, *arguments):
    begin = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - begin, result


def drop_cache(*files):
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def one_round(state, root):
    """Return the seconds of each case, and check what was loaded."""
    raw, times = root / "raw", {}
    os.sync()
    times["write + fsync"], _ = timed(write_floor, state, raw)
    os.sync()
    times["save"], path = timed(save_checkpoint, root, "checkpoint", state, META)
    for kind in ("warm", "cold"):
        if kind == "cold":
            drop_cache(raw, *path.iterdir())
        times[f"read, {kind}"], _ = timed(read_floor, state, raw)
        times[f"verified load, {kind}"], loaded = timed(load_checkpoint, path)
    if not all(np.array_equal(loaded.tree[name], array) for name, array in state.items()):
        raise SystemExit("what was loaded is not what was saved")
    shutil.rmtree(path)
    raw.unlink()
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--arrays", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dir", default=tempfile.gettempdir())
    options = parser.parse_args()
    state = make_state(options.megabytes, options.arrays)
    with tempfile.TemporaryDirectory(dir=options.dir) as root:
        rounds = [one_round(state, Path(root)) for _ in range(options.rounds + 1)][1:]
    median = {case: statistics.median(times[case] for times in rounds) for case in rounds[0]}
    floors = {"save": "write + fsync"} | {f"verified load, {kind}": f"read, {kind}" for kind in ("warm", "cold")}
    print(f"{options.megabytes} MB in {options.arrays} arrays, medians of {options.rounds} interleaved rounds\n")
    print("| case | ms | floor | ms | ratio |")
    print("|---|---|---|---|---|")
    for case, floor in floors.items():
        ratio = median[case] / median[floor]
        print(f"| {case} | {median[case] * 1e3:.0f} | {floor} | {median[floor] * 1e3:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
