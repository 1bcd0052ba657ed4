"""Saving and loading against the least that any durable, or any complete, way must do, and against other libraries.

Run ``python tests/benchmarks/bench_checkpoint.py``. The floors write (and fsync), read or copy the same bytes and
do nothing else: no hash, no manifest, no rename. All cases take turns, because a disk's mood changes from
second to second; medians are compared. The first round warms up and is left out.

*Blocked* is how long the caller cannot go on; *durable* how long until the bytes outlive a power cut. Libraries that
are not installed are left out.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from checkpoint_peers import META, PEERS, memcpy_floor, ours, write_floor

from parhelion.checkpoint import Hold, Saver, load_checkpoint, save_checkpoint

FLOORS = {
    "save, at once": "write + fsync",
    "save, behind: durable": "write + fsync",
    "save, behind: blocked": "memcpy",
    "verified load, warm": "read, warm",
    "verified load, cold": "read, cold",
}


def make_state(megabytes, arrays):
    rng = np.random.default_rng(0)
    size = megabytes * 1_000_000 // arrays // 4
    return {f"layer_{index:03d}.weight": rng.standard_normal(size, dtype=np.float32) for index in range(arrays)}


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


def one_round(state, root, kept, saver, hold):
    """Return the seconds of each case, and check what was loaded."""
    raw, times = root / "raw", {}
    times["memcpy"], _ = timed(memcpy_floor, state, kept)
    os.sync()
    times["write + fsync"], _ = timed(write_floor, state, raw)
    os.sync()
    times["save, at once"], path = timed(save_checkpoint, root, "checkpoint", state, META)
    for kind in ("warm", "cold"):
        if kind == "cold":
            drop_cache(raw, *path.iterdir())
        # Nothing of one is kept while the other is read: finding memory costs more than reading from the page cache.
        times[f"read, {kind}"] = timed(read_floor, state, raw)[0]
        times[f"verified load, {kind}"], loaded = timed(load_checkpoint, path)
        if not all(np.array_equal(loaded.tree[name], array) for name, array in state.items()):
            raise SystemExit("what was loaded is not what was saved")
        del loaded
    shutil.rmtree(path)
    raw.unlink()
    os.sync()
    times["save, behind: blocked"], times["save, behind: durable"] = ours(state, root, saver, hold)
    shutil.rmtree(root / "ours")
    return times


def peer_round(state, root, peers):
    """Return the blocked and the durable seconds of each library."""
    times = {}
    for name in peers:
        path = root / "peer"
        path.mkdir()
        os.sync()
        times[f"{name}: blocked"], times[f"{name}: durable"] = PEERS[name](state, path)
        shutil.rmtree(path)
    return times


def installed(state, root, names):
    """Return which libraries save here; they are warmed up by it."""
    found = []
    for name in names:
        try:
            peer_round({"w": next(iter(state.values()))[:1000].copy()}, root, [name])
        except ImportError as error:
            print(f"without {name}: {error}")
            shutil.rmtree(root / "peer", ignore_errors=True)
        else:
            found.append(name)
    return found


def report(median, peers):
    print("| case | ms | floor | ms | ratio |")
    print("|---|---|---|---|---|")
    rows = FLOORS | {f"{name}: durable": "write + fsync" for name in peers}
    rows |= {f"{name}: blocked": "memcpy" for name in peers}
    for case, floor in rows.items():
        ratio = median[case] / median[floor]
        print(f"| {case} | {median[case] * 1e3:.0f} | {floor} | {median[floor] * 1e3:.0f} | {ratio:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--arrays", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--dir", default=tempfile.gettempdir())
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    state = make_state(options.megabytes, options.arrays)
    kept = {name: array.copy() for name, array in state.items()}
    with tempfile.TemporaryDirectory(dir=options.dir) as folder, Saver() as saver:
        root, hold = Path(folder), Hold()
        peers = installed(state, root, options.peers)
        rounds = [
            one_round(state, root, kept, saver, hold) | peer_round(state, root, peers)
            for _ in range(options.rounds + 1)
        ]
    median = {case: statistics.median(times[case] for times in rounds[1:]) for case in rounds[0]}
    print(f"{options.megabytes} MB in {options.arrays} arrays, medians of {options.rounds} interleaved rounds\n")
    report(median, peers)


if __name__ == "__main__":
    main()
