"""One pass over an evaluation split: the same for validation and test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from parhelion.sampling import Position, Tail

from ._events import Event
from ._source import AnySource
from ._window import Window

__all__ = ["evaluate"]


def evaluate(
    source: AnySource,
    prepare: Callable[[Any, int, bool], Any],
    step: Callable[[Any, int], Any],
    window: Window,
    started: Callable[[int], Event],
    ended: Callable[[int], Event],
) -> Iterator[Event]:
    """Run ``step`` on every batch of a split, in order, each record once.

    Values are averaged over records, so a short last batch counts for what it holds.

    Args:
        source: the split.
        prepare: places a batch, given its number and whether all ranks have all of it, and lets plugins process it.
        step: the model's step.
        window: where values go.
        started: makes the event in front of a step.
        ended: makes the event behind it.

    Raises:
        DataError: the loader ended early.
    """
    batches = 0
    goes_whole = source.shard.tail is Tail.WHOLE
    passes = zip(source.spans(Position()), source.batches(Position()), strict=False)
    for number, (span, batch) in enumerate(passes):
        window.weight = span.num_records
        window.iteration = number
        prepared = prepare(batch, number, goes_whole and span.num_records < source.shard.global_batch)
        yield started(number)
        window.add(step(prepared, number))
        yield ended(number)
        batches += 1
    # What is logged at the end of the pass stands for all of it.
    window.weight = 1
    source.check_complete(batches)
