"""Loaders beside their peers: rates, the first batch, memory, growth, busy cores, and a resume far into an epoch.

Tables, to be chosen by ``--kinds``; all are of shuffled batches of 64 from arrays in memory unless they say otherwise:

* rows: whole batches are gathered. samples: record by record, without workers. workers: with two.
* images: 0.4 ms of work for each record, without workers and with two.
* transport: batches of 16 MiB through two workers.
* first: the time to the first batch with two workers. memory: what these take.
* growth: the first batch and the later ones as the dataset grows.
* busy: stacking images in the loop's process while every core has other work.
* resume: the first batch at step 1,000,000 of an epoch of 1e9 records, and how many records were asked for.

Every measurement has a process of its own; rounds go through all peers in turn, so that a busy moment hits all alike.
A peer that is not installed is left out.

    python tests/benchmarks/bench_data.py [--kinds rows,samples] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import data_costs as costs
import data_peers as peers
from rates import Target, measure_rate, print_rates, touch
from records import TITLES
from rounds import Rounds, compare


class Table(NamedTuple):
    """One comparison.

    Attributes:
        peers: those compared, by name.
        measure: returns the figures of one of them.
        show: prints what all came to.
    """

    peers: dict[str, Any]
    measure: Callable[[Any], list[float]]
    show: Callable[[Rounds], None]


def measure_open(peer: peers.Open, **options: Any) -> list[float]:
    with ExitStack() as stack:
        return measure_rate(peer(stack), **options)


def rate(title: str, offered: dict[str, peers.Open], *targets: Target, box: float = 0.4) -> Table:
    """Return a table of rates."""
    return Table(offered, partial(measure_open, box=box), partial(print_rates, title, targets=[*targets]))


def make_tables() -> dict[str, Table]:
    """Return every table by its kind."""
    gather, one = Target(0.9, "floor"), Target(1.2, "best peer")
    two = (Target(1.5, "best peer"), Target(5, "torch"))
    tables: dict[str, Table] = {}
    for kind in "ab":
        tables[f"rows-{kind}"] = rate(f"Whole batches, {TITLES[kind]}", peers.rows(kind), gather)
    for kind in "ab":
        tables[f"samples-{kind}"] = rate(f"Record by record, no workers, {TITLES[kind]}", peers.samples(kind), one)
    for kind in "ab":
        tables[f"workers-{kind}"] = rate(f"Record by record, two workers, {TITLES[kind]}", peers.workers(kind), *two)
    tables["images-0"] = rate(f"No workers, {TITLES['c']}", peers.images(0), box=0.8)
    tables["images-2"] = rate(f"Two workers, {TITLES['c']}", peers.images(2), Target(1.3, "best peer"), box=0.8)
    tables["transport"] = Table(
        peers.transport(),
        partial(measure_open, box=0.5, use=touch, size=1),
        partial(print_rates, peers.TRANSPORT, targets=(), units="batches"),
    )
    tables["first"] = Table(costs.WITH_WORKERS, costs.measure_first, costs.print_first)
    for kind, (make, what) in costs.IN_MEMORY.items():
        measure, show = partial(costs.measure_memory, make=make), partial(costs.print_memory, what=what)
        tables[f"memory-{kind}"] = Table(costs.WITH_WORKERS, measure, show)
    tables["growth"] = Table(costs.growth_peers(), costs.measure_growth, costs.print_growth)
    tables["busy"] = Table(costs.BUSY, costs.measure_busy, costs.print_busy)
    tables["resume"] = Table(costs.resume_peers(), costs.measure_resume, costs.print_resume)
    return tables


def main() -> int:
    # Who starts this may hold torch to one thread; what it does by itself is measured here, so before it is imported.
    os.environ.pop("OMP_NUM_THREADS", None)
    tables = make_tables()
    return compare(
        __file__,
        {kind: table.peers for kind, table in tables.items()},
        lambda kind, name: tables[kind].measure(tables[kind].peers[name]),
        lambda kind, found: tables[kind].show(found),
        description=__doc__.splitlines()[0],
        rounds=5,
    )


if __name__ == "__main__":
    raise SystemExit(main())
