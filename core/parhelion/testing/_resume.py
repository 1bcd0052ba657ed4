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

__all__ = ["MakeSampler", "batch_name", "check_sampler_resumes", "run_quietly", "shorten", "start_samplers"]

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
    several ranks are stopped one to three times, started again from their position, and followed to their
    end; every batch must hold the records at its places of the order. A run that fails is made as small as
    possible before it is reported.

    Args:
        make_sampler: ``make_sampler(size, seed, batch_size, rank, world)`` returns a new sampler over
            ``size`` records, with a shard of that batch size, rank and world.
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

    @hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(cases)
    def run(case: Any) -> None:
        check(case)

    try:
        run()
    except ResumeError as error:
        raise ResumeError(str(error)) from None  # without Hypothesis's notes, which tell of its own calls


def shorten(values: Sequence[object], most: int = 8) -> str:
    """Return the values as text, the first few of many."""
    shown = ", ".join(map(str, values[:most]))
    return f"[{shown}, ... {len(values)} in all]" if len(values) > most else f"[{shown}]"


def batch_name(shard: Shard, size: int, position: Position) -> str:
    """Return a name for the global batch that begins at ``position``."""
    count, rest = divmod(position.offset, shard.global_batch)
    number = f"batch {count + 1}" if rest == 0 else "the batch"
    return f"{number} of epoch {position.epoch} (from offset {position.offset} of {size})"


def _check_case(make_sampler: MakeSampler, case: ResumeCase, num_epochs: int) -> None:
    orders = _uninterrupted(make_sampler, case, num_epochs)
    position, samplers, story = Position(), list[ResumableSampler](), "started"
    for segment in case.segments:
        shape = [(sampler.batch_size, sampler.shard.world) for sampler in samplers[:1]]
        if not (segment.reuse and shape == [(segment.batch_size, segment.world)]):
            samplers = [_make(make_sampler, case, segment, rank) for rank in range(segment.world)]
        way = start_samplers(samplers, position, by_start_iter=segment.by_start_iter)
        ranks = "1 rank" if segment.world == 1 else f"{segment.world} ranks"
        shape_now = f"batch_size {segment.batch_size} on {ranks}"
        story = f"{case.size} records, seed {case.seed}, {story} {way}, {shape_now}"
        is_last = segment is case.segments[-1]
        position, last = _follow(samplers, segment, orders, position, 0 if is_last else segment.num_batches, story)
        story = f"stopped after {last}, started again"


def _uninterrupted(make_sampler: MakeSampler, case: ResumeCase, num_epochs: int) -> list[list[int]]:
    """Return the order of each epoch; with single records as batches no tail is ever left out."""
    sampler = _make(make_sampler, case, Segment(0, batch_size=1, world=1), 0)
    orders: list[list[int]] = []
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        if len(orders[-1]) != sampler.size:
            raise ResumeError(
                f"{case.size} records, seed {case.seed}: epoch {epoch} of a run that never stopped should "
                f"have {sampler.size} indices, the sampler's size; it has {shorten(orders[-1])}"
            )
    return orders


def _make(make_sampler: MakeSampler, case: ResumeCase, segment: Segment, rank: int) -> ResumableSampler:
    sampler = make_sampler(case.size, case.seed, segment.batch_size, rank, segment.world)
    if not isinstance(sampler, ResumableSampler):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped
        raise InvalidTypeError(
            f"make_sampler returned {sampler!r}; expected a ResumableSampler. Derive the sampler from it."
        )
    shard = sampler.shard
    if (shard.batch_size, shard.rank, shard.world) != (segment.batch_size, rank, segment.world):
        raise InvalidValueError(
            f"make_sampler returned a sampler with {shard}; expected batch_size {segment.batch_size}, "
            f"rank {rank} and world {segment.world}. Call sampler.reshard(Shard(batch_size, rank, world)), "
            "or check with max_world=1."
        )
    return sampler


def start_samplers(samplers: list[ResumableSampler], position: Position, *, by_start_iter: bool) -> str:
    """Make the next iteration of all samplers begin at ``position``; return what was done as text."""
    count, rest = divmod(position.offset, samplers[0].shard.global_batch)
    for sampler in samplers:
        if by_start_iter and rest == 0:
            sampler.start_iter = count
        else:
            sampler.seek(position)
    return f"by start_iter = {count}" if by_start_iter and rest == 0 else f"by seek({position})"


def _follow(
    samplers: list[ResumableSampler],
    segment: Segment,
    orders: list[list[int]],
    position: Position,
    limit: int,
    story: str,
) -> tuple[Position, str]:
    """Compare ``limit`` batches (all that come, if 0); return where that ends and the last batch's name."""
    shard, size, last = samplers[0].shard, samplers[0].size, "no batch"
    for epoch in range(position.epoch, len(orders)):
        streams = [_begin(sampler, epoch, by_index=segment.by_index) for sampler in samplers]
        for place in _batches(shard, size, position):
            last = batch_name(shard, size, place)
            for sampler, take in zip(samplers, streams, strict=True):
                _compare(sampler.shard, orders[epoch], place, take, f"{story}: {last}")
            limit -= 1
            position = shard.after(size, place)
            if limit == 0:
                return position, last
        for rank, take in enumerate(streams):
            if more := take(1):
                raise ResumeError(
                    f"{story}: epoch {epoch} should end after {last}, but goes on with {more} on rank {rank}"
                )
        position = Position(epoch + 1)
    return position, last


def _batches(shard: Shard, size: int, position: Position) -> Iterator[Position]:
    """Yield the positions of the batches of one epoch, from ``position`` on."""
    for _ in range(shard.num_batches(size, position.offset)):
        yield position
        position = shard.after(size, position)


def _begin(sampler: ResumableSampler, epoch: int, *, by_index: bool) -> Callable[[int], list[int]]:
    """Begin an iteration; return what takes the next batch from it, given its length; [] at the end."""
    sampler.set_epoch(epoch)
    if by_index:
        indices = iter(sampler)
        return lambda length: list(islice(indices, length))
    requests = sampler.requests()

    def take(_length: int) -> list[int]:
        request = next(requests, None)
        return [] if request is None else request.indices.tolist()

    return take


def _compare(shard: Shard, order: list[int], position: Position, take: Callable[[int], list[int]], story: str) -> None:
    block = shard.block(len(order), position.offset)
    expected = [order[place % len(order)] for place in range(block.start, block.stop)]
    found = take(len(expected))
    if found != expected:
        rank = f" on rank {shard.rank}" if shard.world > 1 else ""
        raise ResumeError(f"{story}{rank} should hold {shorten(expected)} and holds {shorten(found)}")
