"""The resume property of samplers, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from parhelion.errors import InvalidTypeError, InvalidValueError, ResumeError
from parhelion.sampling import Position, ResumableSampler, Shard

from ._hypothesis import hypothesis
from ._strategies import ResumeCase, Segment, resume_cases

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MakeSampler", "batch_name", "check_sampler_resumes", "run_quietly", "shorten"]

MakeSampler: TypeAlias = Callable[[int, int, int, int, int], ResumableSampler]


def check_sampler_resumes(
    make_sampler: MakeSampler,
    *,
    num_epochs: int = 3,
    max_size: int = 60,
    max_world: int = 4,
    elastic: bool = True,
    max_examples: int = 100,
) -> None:
    """Check that what a sampler gives after any stops is what it gives to a run that never stopped.

    The sampler of a single rank is iterated over all epochs without a stop: that is the order. Then runs on
    several ranks are stopped one to three times, started again from their position, and followed to their end;
    every batch must hold the records at its places of the order. A run that fails is made as small as possible
    before it is reported.

    Args:
        make_sampler: ``make_sampler(size, seed, batch_size, rank, world)`` returns a new sampler over ``size``
            records, with a shard of that batch size, rank and world.
        num_epochs: epochs per run.
        max_size: the most records.
        max_world: the most ranks; 1 for a sampler that knows no ranks.
        elastic: whether batch size and number of ranks change at some of the stops.
        max_examples: how many runs are tried.

    Raises:
        ResumeError: a batch differs; the message says where the run had stopped and what came instead.
        InvalidTypeError: ``make_sampler`` returned no resumable sampler.
        InvalidValueError: it returned one with another shard.
    """
    cases = resume_cases(max_size=max_size, max_world=max_world, elastic=elastic)
    run_quietly(lambda case: _check_case(make_sampler, case, num_epochs), cases, max_examples)


def run_quietly(check: Callable[[Any], None], cases: Any, max_examples: int) -> None:
    """Run ``check`` on drawn cases: the same ones every time, none kept on disk."""
    settings = hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(cases)(check))()


def shorten(values: Sequence[object], most: int = 8) -> str:
    """Return the values as text, the first few of many."""
    shown = ", ".join(map(str, values[:most]))
    return f"[{shown}, ... {len(values)} in all]" if len(values) > most else f"[{shown}]"


def batch_name(shard: Shard, size: int, position: Position) -> str:
    """Return what to call the global batch that begins at ``position``."""
    count, rest = divmod(position.offset, shard.global_batch)
    number = f"batch {count + 1}" if rest == 0 else "the batch"
    return f"{number} of epoch {position.epoch} (from offset {position.offset} of {size})"


def _check_case(make_sampler: MakeSampler, case: ResumeCase, num_epochs: int) -> None:
    orders = _uninterrupted(make_sampler, case, num_epochs)
    position, samplers, stopped = Position(), list[ResumableSampler](), "started"
    for segment in case.segments:
        is_same = any(each.shard.world == segment.world for each in samplers) and all(
            each.batch_size == segment.batch_size for each in samplers
        )
        if not (segment.reuse and is_same):
            samplers = [
                _make(make_sampler, case, segment.batch_size, rank, segment.world) for rank in range(segment.world)
            ]
        run = _Run(samplers, segment, orders, f"with {case.size} records and seed {case.seed}, {stopped}")
        last = run.follow(position, segment is case.segments[-1])
        position, stopped = run.position, f"stopped after {last}, started again"


def _uninterrupted(make_sampler: MakeSampler, case: ResumeCase, num_epochs: int) -> list[list[int]]:
    """Return the order of each epoch; with single records as batches no tail is ever left out."""
    sampler = _make(make_sampler, case, 1, 0, 1)
    orders: list[list[int]] = []
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        if len(orders[-1]) != sampler.size:
            raise ResumeError(
                f"with {case.size} records and seed {case.seed}, epoch {epoch} of a run that never stopped should "
                f"have {sampler.size} indices, the sampler's size, and has {len(orders[-1])}: {shorten(orders[-1])}"
            )
    return orders


def _make(make_sampler: MakeSampler, case: ResumeCase, batch_size: int, rank: int, world: int) -> ResumableSampler:
    sampler = make_sampler(case.size, case.seed, batch_size, rank, world)
    if not isinstance(sampler, ResumableSampler):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise InvalidTypeError(
            f"make_sampler returned {sampler!r}; expected a ResumableSampler. Derive the sampler from it."
        )
    shard = sampler.shard
    if (shard.batch_size, shard.rank, shard.world) != (batch_size, rank, world):
        raise InvalidValueError(
            f"make_sampler returned a sampler with {shard}; expected batch_size {batch_size}, rank {rank} and "
            f"world {world}. Call sampler.reshard(Shard(batch_size, rank, world)), or check with max_world=1."
        )
    return sampler


class _Run:
    """One segment of a run, followed batch by batch on all ranks."""

    def __init__(
        self, samplers: list[ResumableSampler], segment: Segment, orders: list[list[int]], story: str
    ) -> None:
        self.samplers = samplers
        self.segment = segment
        self.orders = orders
        self.shard = samplers[0].shard
        self.size = samplers[0].size
        self.position = Position()
        self.way = "by start_iter" if segment.by_start_iter else "by seek"
        ranks = "1 rank" if segment.world == 1 else f"{segment.world} ranks"
        self.story = f"{story} {{way}} with batch_size {segment.batch_size} on {ranks}"

    def follow(self, position: Position, to_the_end: bool) -> str:
        """Start at ``position``, go on to the stop, and return the name of the last batch."""
        self.position = position
        self._start()
        left = -1 if to_the_end else self.segment.num_batches
        last = "no batch"
        while left and self.position.epoch < len(self.orders):
            epoch = self.position.epoch
            for sampler in self.samplers:
                sampler.set_epoch(epoch)
            streams = [_Stream(sampler, self.segment.by_index) for sampler in self.samplers]
            while left and self.position.epoch == epoch:
                ...
        return last
