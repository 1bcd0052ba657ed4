"""Hypothesis strategies for whatever a position, an order or a shard depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ._hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = [
    "ResumeCase",
    "Segment",
    "batch_sizes",
    "resume_cases",
    "seeds",
    "sizes",
    "stop_points",
    "worlds",
]


def sizes(max_size: int = 60) -> SearchStrategy[int]:
    """Return a strategy for numbers of records, from 1."""
    return st.integers(1, max_size)


def seeds() -> SearchStrategy[int]:
    """Return a strategy for seeds: integers in [0, 2**64)."""
    return st.integers(0, 2**64 - 1)


def worlds(max_world: int = 4) -> SearchStrategy[int]:
    """Return a strategy for numbers of ranks, from 1."""
    return st.integers(1, max_world)


def batch_sizes(max_batch_size: int = 9) -> SearchStrategy[int]:
    """Return a strategy for batch sizes, from 1."""
    return st.integers(1, max_batch_size)


def stop_points(num_batches: int, max_stops: int = 3) -> SearchStrategy[list[int]]:
    """Return a strategy for where a run is stopped: after how many batches from its start, in order.

    Args:
        num_batches: batches of the whole run, at least 2.
        max_stops: the most stops in one run.
    """
    points = st.integers(1, num_batches - 1)
    return st.lists(points, min_size=1, max_size=max_stops, unique=True).map(sorted)


@attrs.frozen
class Segment:
    """One part of a run, from a start to a stop.

    Attributes:
        num_batches: batches until the stop; the last segment of a run goes on to the run's end.
        batch_size: records per batch and rank.
        world: number of ranks.
        by_start_iter: start by ``start_iter`` where it can say the place, otherwise by ``seek``.
        by_index: iterate over the sampler's indices, otherwise over its requests.
        reuse: start the samplers of the segment before again, if batch size and world are the same; otherwise
            new ones.
    """

    num_batches: int
    batch_size: int
    world: int
    by_start_iter: bool = False
    by_index: bool = False
    reuse: bool = False


@attrs.frozen
class ResumeCase:
    """A run that is stopped and started again.

    Attributes:
        size: number of records.
        seed: seed of the order.
        segments: its parts; between two of them it stopped.
    """

    size: int
    seed: int
    segments: tuple[Segment, ...]


@st.composite
def resume_cases(draw: DrawFn, *, max_size: int = 60, max_world: int = 4, elastic: bool = True) -> ResumeCase:
    """Draw a run with one to three stops.

    Args:
        draw: given by Hypothesis.
        max_size: the most records.
        max_world: the most ranks.
        elastic: whether batch size and number of ranks may change at a stop.
    """
    shapes = st.tuples(batch_sizes(), worlds(max_world))
    shape = draw(shapes)
    segments: list[Segment] = []
    for _ in range(draw(st.integers(2, 4))):
        if segments and elastic and draw(st.booleans()):
            shape = draw(shapes)
        flags = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
        segments.append(Segment(draw(st.integers(1, 12)), *shape, *flags))
    return ResumeCase(draw(sizes(max_size)), draw(seeds()), tuple(segments))
