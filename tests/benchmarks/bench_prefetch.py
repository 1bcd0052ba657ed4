"""What it gives to make jax's batches while the step runs.

A step that waits 5 ms in a callback of jax, and batches that take 4 ms without holding the interpreter (they sleep):
how much longer the loop takes than the steps alone. Every measurement has a process of its own; rounds go through all
loops in turn, so that a busy moment hits all alike.

    python tests/benchmarks/bench_prefetch.py [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from rounds import Rounds, compare

NUM_STEPS, STEP, MAKING = 200, 0.005, 0.004
PEERS: dict[str, Callable[[], Iterable[Any]]] = {}


def peer(name: str) -> Any:
    def add(function: Any) -> Any:
        PEERS[name] = function
        return function

    return add


# Each returns the batches.


def make_slowly() -> Iterator[Any]:
    for k in range(NUM_STEPS):
        time.sleep(MAKING)
        yield np.full((64, 32), k, np.float32)


@peer("steps alone")
def steps_alone() -> Iterable[Any]:
    return [np.full((64, 32), k, np.float32) for k in range(NUM_STEPS)]


@peer("without prefetching")
def no_overlap() -> Iterable[Any]:
    return make_slowly()


@peer("prefetching_map")
def overlap() -> Iterable[Any]:
    from parhelion_jax.prefetch import prefetching_map

    return prefetching_map(make_slowly())


@peer("prefetching_map, to a device")
def overlap_on_device() -> Iterable[Any]:
    import jax

    from parhelion_jax.prefetch import prefetching_map

    return prefetching_map(make_slowly(), jax.devices()[0])


def measure(_: str, name: str) -> list[float]:
    """Return the milliseconds per step by the wall."""
    import jax

    def wait(x: Any) -> Any:
        time.sleep(STEP)
        return np.float32(0)

    @jax.jit
    def step(batch: Any) -> Any:
        return batch.sum() + jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.float32), batch[0, 0])

    step(np.zeros((64, 32), np.float32)).block_until_ready()
    batches, count = PEERS[name](), 0
    began = time.perf_counter()
    for batch in batches:
        step(batch).block_until_ready()
        count += 1
    if count < NUM_STEPS:
        raise SystemExit(f"only {count} of {NUM_STEPS} steps ran")
    return [(time.perf_counter() - began) / NUM_STEPS * 1e3]


def print_overlap(_: str, found: Rounds) -> None:
    """Print medians, and the time over the steps' alone in the same round."""
    print(f"\n### A step of {STEP * 1e3:.0f} ms, a batch of {MAKING * 1e3:.0f} ms\n")
    print("| loop | ms per step, wall | over the steps alone |")
    print("|---|---|---|")
    base = next(iter(found.values()))
    for name, rounds in found.items():
        over = statistics.median(mine[0] / alone[0] for mine, alone in zip(rounds, base, strict=True))
        print(f"| {name} | {statistics.median(each[0] for each in rounds):.2f} | {over:.3f} |")


def main() -> int:
    return compare(__file__, {"overlap": PEERS}, measure, print_overlap, description=__doc__.splitlines()[0])


if __name__ == "__main__":
    raise SystemExit(main())
