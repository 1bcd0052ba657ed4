"""One pass over an evaluation split: the same for validation and test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any, Final

from parhelion.errors import InvalidValueError
from parhelion.sampling import Position, Tail

from ._events import Event
from ._protocols import World
from ._source import AnySource
from ._together import check_agreement
from ._window import Window

__all__ = ["evaluate"]


_OVER: Final = object()
_log = logging.getLogger("parhelion")


def evaluate(
    source: AnySource,
    prepare: Callable[[Any, int, bool], Any],
    step: Callable[[Any, int], Any],
    idle_step: Callable[[int], None],
    window: Window,
    started: Callable[[int], Event],
    ended: Callable[[int], Event],
) -> Iterator[Event]:
    """Run ``step`` on every batch of a split, in order, each record once.

    Values are averaged over records, so a short last batch counts for what it holds. Ranks that each compute on their
    own make the same number of steps: one that has no record left makes ``idle_step`` instead, and counts nothing.

    Args:
        source: the split.
        prepare: places a batch, given its number and whether all ranks have all of it, and lets plugins process it.
        step: the model's step.
        idle_step: what the model does in place of a step where this rank has no batch.
        window: where values go; it knows the ranks that they are merged over.
        started: makes the event in front of a step.
        ended: makes the event behind it.

    Raises:
        DataError: the loader ended early.
        InvalidValueError: the ranks share the split and do not agree on it, or some records would count twice or not at
            all.
    """
    goes_whole = source.shard.tail is Tail.WHOLE
    own = _own_batches(source, window.world)
    for number, (num_records, batch) in enumerate(own if window.world is None else _in_step(own, source, window.world)):
        window.weight = num_records
        window.iteration = number
        if num_records:
            prepared = prepare(batch, number, goes_whole and num_records < source.shard.global_batch)
            yield started(number)
            window.add(step(prepared, number))
        else:
            yield started(number)
            idle_step(number)
        yield ended(number)
    # What is logged at the end of the pass stands for all of it.
    window.weight = 1


def _own_batches(source: AnySource, world: World | None) -> Iterator[tuple[int, Any]]:
    """Yield this rank's batches, each behind the number of records that it counts for; 0 where there is no batch.

    Ranks that compute as one (``world`` is None) all count for the records of all.
    """
    offset = passes = 0
    spans, batches = source.spans(Position()), source.batches(Position())
    for span in spans:
        num_records = span.num_records if world is None else source.count_own(offset, span)
        batch = next(batches, _OVER) if num_records else None
        if batch is _OVER:
            break
        yield num_records, batch
        offset += span.num_records
        passes += 1
    source.check_complete(passes)


def _in_step(own: Iterator[tuple[int, Any]], source: AnySource, world: World) -> Iterator[tuple[int, Any]]:
    """Yield this rank's batches, then blanks for as long as another rank has batches."""
    blank: tuple[int, Any] = (0, None)
    _check_shared(source, world)
    counts = world.gather(source.num_batches())
    if None not in counts:
        yield from islice(chain(own, repeat(blank)), max(counts))
        next(own, None)  # the end, where what was loaded is found to be complete
        return
    batch = next(own, None)
    while any(world.gather(batch is not None)):
        yield blank if batch is None else batch
        batch = next(own, None)


def _check_shared(source: AnySource, world: World) -> None:
    """Refuse a split of which some record would count twice, or not at all, by the number of ranks.

    Raises:
        InvalidValueError: the ranks do not share the same records, or its tail is not masked.
    """
    shard, size = source.shard, source.size
    facts = {"the number of ranks that share the evaluation split": shard.world}
    if shard.world > 1:
        facts |= {"the number of its records": size or 0, "its batch_size": shard.batch_size}
    check_agreement(world, facts)
    if shard.world > 1 and (size or 0) % shard.global_batch and shard.tail not in (Tail.MASK, Tail.WHOLE):
        raise InvalidValueError(
            f"the evaluation split has {size} records, {shard.world} ranks share it in batches of {shard.batch_size}, "
            f"and its sampler has {shard.tail}; expected {Tail.MASK}, so that each record counts once. Leave the "
            "sampler's shard to create_dataloader, or call sampler.reshard(Shard(..., tail=Tail.MASK))."
        )
    if shard.world == 1 and not source.is_own and world.rank == 0:
        _log.warning(
            "the evaluation split is not shared by the %d ranks, so each evaluates all of it, and sums and counts add "
            "up; leave is_distributed out of its params to have each record evaluated once", world.size,
        )  # fmt: skip
