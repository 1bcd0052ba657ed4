"""A shuffled order beside its peers: whole, its first index, its first index after a resume, and its memory.

Every peer and size runs in a process of its own; the figures are medians. Prints a Markdown table, or JSON
lines.

    python tests/benchmarks/bench_sampler.py --sizes 1e6 1e7 1e8 --repeat 5
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

SEED = 7
BATCH = 64
CHUNK = 1 << 16
FAR = 1 << 22  # indices that stand for an order too large to walk


class Records:
    """A dataset that only has a length."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def sampler(size):
    from parhelion.sampling import ResumableRandomSampler

    return ResumableRandomSampler(Records(size), SEED, BATCH)


def walk(size):
    made = sampler(size)
    for start in range(0, size, CHUNK):
        yield made.indices(0, start, min(start + CHUNK, size))


def resumed(size, place):
    made = sampler(size)
    made.start_iter = place // BATCH
    return next(iter(made))


def torch_sampler(size):
    import torch

    generator = torch.Generator()
    generator.manual_seed(SEED)
    return torch.utils.data.RandomSampler(Records(size), generator=generator)


def numpy_order(size):
    return np.random.default_rng(SEED).permutation(size)


# name: (whole order, first index, index at a place)
PEERS = {
    "parhelion, arrays": (walk, lambda n: next(iter(sampler(n))), resumed),
    "parhelion, iterated": (lambda n: iter(sampler(n)), lambda n: next(iter(sampler(n))), resumed),
    "NumPy permutation": (
        lambda n: [numpy_order(n)],
        lambda n: numpy_order(n)[0],
        lambda n, k: numpy_order(n)[k],
    ),
    "NumPy permutation, iterated": (
        lambda n: iter(numpy_order(n).tolist()),
        lambda n: numpy_order(n).tolist()[0],
        lambda n, k: numpy_order(n).tolist()[k],
    ),
    "torch RandomSampler": (
        lambda n: iter(torch_sampler(n)),
        lambda n: next(iter(torch_sampler(n))),
        lambda n, k: next(islice(iter(torch_sampler(n)), k, None)),
    ),
}


def status_mb(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def measure(call, repeat):
    """Return the medians of wall seconds, CPU seconds and peak MB above idle."""
    rows = []
    for _ in range(repeat):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        idle, wall, cpu = status_mb("VmRSS"), time.perf_counter(), time.process_time()
        call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rows.append((wall, cpu, max(0.0, status_mb("VmHWM") - idle)))
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def drain(order, count=None):
    collections.deque(order if count is None else islice(order, count), maxlen=0)


def child(name, size, repeat):
    """Measure one peer at one size; print the figures as JSON."""
    whole, first, at = PEERS[name]
    place = size * 9 // 10 // BATCH * BATCH
    first(1000), at(1000, 900)  # importing is not the order's cost
    is_far = size > 10**9
    row = {"peer": name, "size": size}
    quick = 101 if "parhelion" in name else repeat
    row["first_us"] = measure(lambda: first(size), quick)[0] * 1e6
    row["resumed_us"] = measure(lambda: at(size, place), quick)[0] * 1e6
    units = FAR // CHUNK if "arrays" in name else FAR
    _, cpu, peak = measure(lambda: drain(whole(size), units if is_far else None), repeat)
    row |= {
        "cpu_s": None if is_far else cpu,
        "ns_per_index": cpu / (FAR if is_far else size) * 1e9,
        "peak_mb": peak,
    }
    print(json.dumps(row))


def run_child(name, size, repeat):
    command = [sys.executable, __file__, "--child", name, "--sizes", str(size), "--repeat", str(repeat)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(rows):
    heads = [
        "order of",
        "peer",
        "whole, CPU s",
        "x NumPy",
        "ns per index",
        "first, us",
        "first at 90 %, us",
        "peak MB",
    ]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    floor = {row["size"]: row["cpu_s"] for row in rows if row["peer"] == "NumPy permutation"}
    for row in rows:
        whole = "" if row["cpu_s"] is None else f"{row['cpu_s']:.3f}"
        ratio = f"{row['cpu_s'] / floor[row['size']]:.2f}" if row["cpu_s"] and row["size"] in floor else ""
        yield (
            f"| {row['size']:.3g} | {row['peer']} | {whole} | {ratio} | {row['ns_per_index']:.1f} "
            f"| {row['first_us']:.0f} | {row['resumed_us']:.0f} | {row['peak_mb']:.1f} |"
        )


def main():
    parser = argparse.ArgumentParser(description="How a shuffled order compares.")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--far", type=float, nargs="*", default=[1e12, 2**62], help="sizes for ours alone")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="parts of the names of peers to run")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, int(given.sizes[0]), given.repeat)
        return
    names = [n for n in PEERS if "torch" not in n or importlib.util.find_spec("torch")]
    names = [n for n in names if not given.only or any(part in n for part in given.only)]
    jobs = [(name, int(size)) for size in given.sizes for name in names]
    jobs += [(name, int(size)) for size in given.far for name in names if "parhelion" in name]
    rows = [run_child(name, size, given.repeat) for name, size in jobs]
    print("\n".join(map(json.dumps, rows) if given.json else table(rows)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "core"))
    main()
