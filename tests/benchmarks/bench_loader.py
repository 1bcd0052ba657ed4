"""What minibatches cost: rows gathered from memory beside a bare gather, and batches made while the step runs.

"rows": a whole shuffled epoch over 500 000 rows of float32[32] and a label, in batches of 64. The floor indexes both
arrays with an order that is there already; everybody else makes the order within the time. "overlap": a step that
waits 5 ms in a callback of jax, and batches that take 4 ms without holding the interpreter (they sleep): how much
longer the loop takes than the steps alone. Every measurement has a process of its own; rounds go through all peers in
turn, so that a busy moment hits all alike. A peer that is not installed is left out.

    python tests/benchmarks/bench_loader.py [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import collections
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from rounds import Rounds, compare

SIZE, BATCH = 500_000, 64
NUM_STEPS, STEP, MAKING = 200, 0.005, 0.004
PEERS: dict[str, dict[str, Callable[[], Any]]] = {"rows": {}, "overlap": {}}


def peer(kind: str, name: str) -> Any:
    def add(function: Any) -> Any:
        PEERS[kind][name] = function
        return function

    return add


def make_arrays() -> dict[str, Any]:
    return {"x": np.arange(SIZE * 32, dtype=np.float32).reshape(SIZE, 32), "y": np.arange(SIZE)}


# Each returns what gives the batches of an epoch.


@peer("rows", "floor: x[order[k]] for both arrays")
def floor() -> Callable[[int], Iterable[Any]]:
    arrays, order = make_arrays(), np.random.default_rng(0).permutation(SIZE)
    x, y = arrays["x"], arrays["y"]

    def epoch(_: int) -> Iterator[Any]:
        for start in range(0, SIZE, BATCH):
            rows = order[start : start + BATCH]
            yield {"x": x[rows], "y": y[rows]}

    return epoch


@peer("rows", "floor: x.take(order[k], mode='clip')")
def take_floor() -> Callable[[int], Iterable[Any]]:
    arrays, order = make_arrays(), np.random.default_rng(0).permutation(SIZE)
    x, y = arrays["x"], arrays["y"]

    def epoch(_: int) -> Iterator[Any]:
        for start in range(0, SIZE, BATCH):
            rows = order[start : start + BATCH]
            yield {"x": x.take(rows, 0, None, "clip"), "y": y.take(rows, 0, None, "clip")}

    return epoch


@peer("rows", "Parhelion InMemoryDataLoader")
def parhelion() -> Callable[[int], Iterable[Any]]:
    from parhelion_jax.minibatches import InMemoryDataLoader

    return InMemoryDataLoader(make_arrays(), BATCH, drop_last=False).minibatches


@peer("rows", "Parhelion, in the dataset's order")
def parhelion_in_order() -> Callable[[int], Iterable[Any]]:
    from parhelion_jax.minibatches import InMemoryDataLoader

    loader = InMemoryDataLoader(make_arrays(), BATCH, drop_last=False)
    return lambda _: loader.minibatches(None)


@peer("rows", "fifteen InMemoryDataLoader")
def fifteen() -> Callable[[int], Iterable[Any]]:
    # It imports a module that jax no longer has.
    gone: Any = types.ModuleType("jax.experimental.host_callback")
    gone.id_tap = None
    sys.modules.setdefault(gone.__name__, gone)
    import fifteen.data

    return fifteen.data.InMemoryDataLoader(make_arrays(), BATCH, drop_last=False).minibatches


class Together:
    """Gathers a batch at once, which is the quickest that torch's loader can do."""

    def __init__(self) -> None:
        self.arrays = make_arrays()

    def __len__(self) -> int:
        return SIZE

    def __getitems__(self, rows: list[int]) -> Any:
        return {name: array[rows] for name, array in self.arrays.items()}


class OneByOne(Together):
    __getitems__ = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        return {name: array[index] for name, array in self.arrays.items()}


def torch_loader(dataset: Any, collate_fn: Any) -> Callable[[int], Iterable[Any]]:
    import torch

    def epoch(seed: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed)
        return iter(torch.utils.data.DataLoader(dataset, BATCH, True, generator=generator, collate_fn=collate_fn))

    return epoch


@peer("rows", "torch DataLoader, __getitems__")
def torch_together() -> Callable[[int], Iterable[Any]]:
    return torch_loader(Together(), lambda batch: batch)


@peer("rows", "torch DataLoader")
def torch_one_by_one() -> Callable[[int], Iterable[Any]]:
    return torch_loader(OneByOne(), None)


def measure_rows(open_epoch: Callable[[int], Iterable[Any]]) -> list[float]:
    """Return the nanoseconds per row, by the wall and of CPU, and the microseconds until the first batch."""
    collections.deque(zip(open_epoch(0), range(500), strict=False), maxlen=0)
    began = time.perf_counter(), time.process_time()
    batches = iter(open_epoch(1))
    next(batches)
    first = time.perf_counter() - began[0]
    collections.deque(batches, maxlen=0)
    ended = time.perf_counter(), time.process_time()
    return [*((end - begin) / SIZE * 1e9 for begin, end in zip(began, ended, strict=True)), first * 1e6]


# Each returns the batches.


def make_slowly() -> Iterator[Any]:
    for k in range(NUM_STEPS):
        time.sleep(MAKING)
        yield np.full((64, 32), k, np.float32)


@peer("overlap", "steps alone")
def steps_alone() -> Iterable[Any]:
    return [np.full((64, 32), k, np.float32) for k in range(NUM_STEPS)]


@peer("overlap", "without prefetching")
def no_overlap() -> Iterable[Any]:
    return make_slowly()


@peer("overlap", "prefetching_map")
def overlap() -> Iterable[Any]:
    from parhelion_jax.prefetch import prefetching_map

    return prefetching_map(make_slowly())


@peer("overlap", "prefetching_map, to a device")
def overlap_on_device() -> Iterable[Any]:
    import jax

    from parhelion_jax.prefetch import prefetching_map

    return prefetching_map(make_slowly(), jax.devices()[0])


def measure_overlap(make_batches: Callable[[], Iterable[Any]]) -> list[float]:
    """Return the milliseconds per step by the wall."""
    import jax

    def wait(x: Any) -> Any:
        time.sleep(STEP)
        return np.float32(0)

    @jax.jit
    def step(batch: Any) -> Any:
        return batch.sum() + jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.float32), batch[0, 0])

    step(np.zeros((64, 32), np.float32)).block_until_ready()
    batches, count = make_batches(), 0
    began = time.perf_counter()
    for batch in batches:
        step(batch).block_until_ready()
        count += 1
    if count < NUM_STEPS:
        raise SystemExit(f"only {count} of {NUM_STEPS} steps ran")
    return [(time.perf_counter() - began) / NUM_STEPS * 1e3]


def measure(kind: str, name: str) -> list[float]:
    """Return the figures of one peer."""
    made = PEERS[kind][name]
    return measure_rows(made()) if kind == "rows" else measure_overlap(made)


def main() -> int:
    return compare(__file__, PEERS, measure, print_table, description=__doc__.splitlines()[0])


def print_table(kind: str, found: Rounds) -> None:
    (print_rows if kind == "rows" else print_overlap)(found)


def print_rows(found: Rounds) -> None:
    """Print medians, and the rate over the floor's of the same round."""
    print("\n### Rows of float32[32] with a label, batches of 64, shuffled\n")
    print("| loader | ns per row, CPU | best | rate over the floor's | million rows/s, wall | first batch, us |")
    print("|---|---|---|---|---|---|")
    base = next(iter(found.values()))
    for name, rounds in found.items():
        wall, cpu, first = ([each[k] for each in rounds] for k in range(3))
        rate = statistics.median(floor[1] / mine[1] for mine, floor in zip(rounds, base, strict=True))
        print(
            f"| {name} | {statistics.median(cpu):.1f} | {min(cpu):.1f} | {rate:.2f} "
            f"| {1e3 / statistics.median(wall):.2f} | {statistics.median(first):.0f} |"
        )


def print_overlap(found: Rounds) -> None:
    """Print medians, and the time over the steps' alone in the same round."""
    print(f"\n### A step of {STEP * 1e3:.0f} ms, a batch of {MAKING * 1e3:.0f} ms\n")
    print("| loop | ms per step, wall | over the steps alone |")
    print("|---|---|---|")
    base = next(iter(found.values()))
    for name, rounds in found.items():
        over = statistics.median(mine[0] / alone[0] for mine, alone in zip(rounds, base, strict=True))
        print(f"| {name} | {statistics.median(each[0] for each in rounds):.2f} | {over:.3f} |")


if __name__ == "__main__":
    raise SystemExit(main())
