"""How many samples per second a loader gives once it runs, what CPU time that takes, and the table of it."""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from typing import Any, NamedTuple

import numpy as np
import psutil
from loaders import Epochs
from records import BATCH
from rounds import Rounds

WARM = 0.2  # seconds that do not count
TICKS = 25  # looks at the clock in that time


class Target(NamedTuple):
    """What the best of ours should come to.

    Attributes:
        ratio: so many times the rate, at least.
        rival: whose: the "best peer"'s, "torch"'s best or the "floor"'s.
    """

    ratio: float
    rival: str


def read_cpu() -> float:
    """Return the CPU seconds of this process and all that descend from it, also of those that are gone."""
    own = psutil.Process()
    total = time.process_time() + sum(own.cpu_times()[2:4])
    for process in own.children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue
    return total


def read_clocks() -> tuple[float, float]:
    return time.perf_counter(), read_cpu()


def drain(batches: Iterator[Any], number: int) -> None:
    """Take so many batches and keep none."""
    collections.deque(islice(batches, number), maxlen=0)


def touch(batch: Any) -> Any:
    """Read something of every page, as whoever uses the batch does: memory may be mapped before it is there."""
    return np.asarray(batch["x"]).reshape(-1)[::1024].sum()


def check(batch: Any, stored: int) -> None:
    """Raise unless this is a whole batch of the records that its labels name."""
    x, y = np.asarray(batch["x"]), np.asarray(batch["y"])
    if len(x) != BATCH or y.shape != (BATCH,) or (x.reshape(BATCH, -1)[:, 0] != y % stored % 251).any():
        raise SystemExit(f"wrong batch: x of shape {x.shape}, y {y}")


def measure_rate(
    epochs: Epochs, box: float, *, use: Callable[[Any], Any] | None = None, size: int = BATCH
) -> list[float]:
    """Return samples per second, by the wall, and the microseconds of CPU time per sample.

    Epochs follow each other without a pause, so that opening one counts unless it is the first.

    Args:
        epochs: what is measured.
        box: seconds that it is measured for.
        use: is called with each batch.
        size: samples of a batch; 1 for the rate of batches.
    """
    batches = chain.from_iterable(map(epochs, count()))
    if use is not None:
        batches = map(use, batches)
    drain(batches, 1)
    seen, end = 0, time.perf_counter() + WARM
    while time.perf_counter() < end:
        drain(batches, 1)
        seen += 1
    block, seen = max(1, seen // TICKS), 0
    began = read_clocks()
    while time.perf_counter() < began[0] + box:
        drain(batches, block)
        seen += block * size
    wall, cpu = (after - before for before, after in zip(began, read_clocks(), strict=True))
    return [seen / wall, cpu / seen * 1e6]


def print_rates(title: str, found: Rounds, targets: Iterable[Target], units: str = "samples") -> None:
    """Print medians, and rates over those of others in the same round: by the wall, and by CPU time in brackets."""
    rivals = find_rivals(found)
    print(f"\n### {title}\n")
    print(f"| loader | {units}/s, wall | best | CPU us for one |{''.join(f' over {name} |' for name in rivals)}")
    print("|---" * (4 + len(rivals)) + "|")
    for name, rounds in found.items():
        rate, cpu = ([each[k] for each in rounds] for k in range(2))
        over = "".join(f" {write_ratio(rounds, found, pair)} |" for pair in rivals.values())
        print(f"| {name} | {statistics.median(rate):,.0f} | {max(rate):,.0f} | {statistics.median(cpu):.3g} |{over}")
    print()
    by_wall, by_cpu = rivals.get("best peer", ("none", "none"))
    print(f"* best peer: {by_wall}" + (f"; by CPU time {by_cpu}" if by_cpu != by_wall else ""))
    for target in targets:
        print(f"* {judge(target, found, rivals)}")


def find_rivals(found: Rounds) -> dict[str, tuple[str, str]]:
    """Return whom ours are held against: who is best by the wall, and who is by CPU time."""
    groups = {
        "floor": [name for name in found if name.startswith("floor")][:1],
        "torch": [name for name in found if name.startswith("torch ")],
        "best peer": [name for name in found if not name.startswith(("floor", "Parhelion", "beside"))],
    }
    return {
        rival: (
            max(names, key=lambda name: statistics.median(each[0] for each in found[name])),
            min(names, key=lambda name: statistics.median(each[1] for each in found[name])),
        )
        for rival, names in groups.items()
        if names
    }


def get_ratio(mine: list[list[float]], found: Rounds, rivals: tuple[str, str]) -> tuple[float, float]:
    """Return the median ratios of the rates of the same round, by the wall and by CPU time."""
    wall = statistics.median(me[0] / they[0] for me, they in zip(mine, found[rivals[0]], strict=True))
    cpu = statistics.median(they[1] / me[1] for me, they in zip(mine, found[rivals[1]], strict=True))
    return wall, cpu


def write_ratio(mine: list[list[float]], found: Rounds, rivals: tuple[str, str]) -> str:
    wall, cpu = get_ratio(mine, found, rivals)
    return f"{wall:.2f} ({cpu:.2f})"


def judge(target: Target, found: Rounds, rivals: dict[str, tuple[str, str]]) -> str:
    """Return what ours come to, the best first, beside what they should come to."""
    wanted = f"wanted: {target.ratio:g} x {target.rival}"
    if target.rival not in rivals:
        return f"{wanted}, which is not here"
    pair = rivals[target.rival]
    ours = {name: get_ratio(rounds, found, pair) for name, rounds in found.items() if name.startswith("Parhelion")}
    ranked = sorted(ours.items(), key=lambda item: -item[1][0])
    return f"{wanted}; " + ", ".join(f"{name} {wall:.2f} ({cpu:.2f})" for name, (wall, cpu) in ranked)
