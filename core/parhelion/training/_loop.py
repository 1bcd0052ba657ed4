"""THE loop: one for both units and both backends.

It is a generator of events. ``fit`` drains it; a user who wants control iterates over it. The unit changes only what
the plan answers, the backend only what the work does and how many iterations it trains in one call: a *chunk*, which
ends where something is due. The loop never waits for the device by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import attrs

from ._calls import WaitEnded
from ._events import (
    BatchEnded,
    BatchStarted,
    EpochStarted,
    Event,
    StepCommitted,
    TrainingEnded,
    TrainingStarted,
)
from ._settling import Settling
from ._source import AnySource
from ._state import TrainingState

__all__ = ["Loop"]


@attrs.define(kw_only=True)
class Loop(Settling):
    """One run of a plan.

    Attributes:
        source: the training data.
        wanted: the kinds of event that somebody listens to, out of those that come with every batch.
        chunk_size: the most iterations in one call of the work.
    """

    source: AnySource
    wanted: frozenset[type[Event]] = frozenset()
    chunk_size: int = 1

    def run(self) -> Iterator[Event]:
        """Train until the plan, the model or a plugin says that it is enough."""
        if not self.is_pending:
            # Nobody is asked here: a resumed run would ask once more than one that never stopped.
            self.reason = self.plan.stop_reason(self.state) or self.calls.stop
            if self.reason is not None:
                return
        yield TrainingStarted()
        self.calls.start_clock()
        if self.is_pending:
            yield from self.settle()
        if self.calls.hear(time.perf_counter()):
            self.answer()
        while self.reason is None:
            if self.state.offset == 0:
                yield EpochStarted(self.state.epoch + 1)
            try:
                yield from self._epoch()
            except WaitEnded:  # no data came until there was no time left to wait for it
                self.calls.hear(time.perf_counter())
                self.reason = self.calls.stop
        if self.state.is_update:  # no checkpoint holds the gradients of half an accumulation group
            self.save(is_final=True)
        yield TrainingEnded()

    def _epoch(self) -> Iterator[Event]:  # noqa: C901 - the loop, in one piece
        """Train to the end of the epoch, or of the run."""
        plan, work, calls, state, clock = self.plan, self.work, self.calls, self.state, time.perf_counter
        starts, ends, commits = (kind in self.wanted for kind in (BatchStarted, BatchEnded, StepCommitted))
        prepare, train_step, asks = work.prepare, work.train_step, work.stop_asked is not None
        due_at, seconds, before = plan.next_due(state), state.average_iter_time, clock()
        chunk: list[tuple[Any, TrainingState]] = []
        begin = state
        batches = calls.await_each(self.source.batches(state.position))
        # Spans come first: where they end, no further batch is asked for.
        for span, batch in zip(self.source.spans(state.position), batches, strict=False):
            state = state.after(span, seconds)
            is_due = span.is_update and (span.is_last or state.current_iteration >= due_at)
            prepared = prepare(batch, state)
            if self.chunk_size == 1:
                if starts:
                    yield BatchStarted(state)
                train_step(prepared, state)
                if ends:
                    yield BatchEnded(state, span.is_update and plan.due(state).log)
            else:
                chunk.append((prepared, state))
                if len(chunk) < self.chunk_size and not is_due:  # by counters alone: a resumed run has the same chunks
                    continue
                yield from self._train_together(chunk)
            self.state = state
            seconds, before = (clock() - before) / (len(chunk) or 1), clock()
            chunk.clear()
            if is_due or (asks and span.is_update and self.is_asked()):
                yield from self.settle()
                state, due_at, before = self.state, plan.next_due(self.state), clock()
            if span.is_update and calls.hear(before):
                self.answer()
            if commits:
                yield StepCommitted(state)
            if self.reason is not None:
                return
        if state.offset != 0 or state is begin:
            yield from self._close_epoch()

    def _train_together(self, chunk: list[tuple[Any, TrainingState]]) -> Iterator[Event]:
        """Train on the batches of a chunk in one call, then say of each that it was."""
        self.work.train_steps(chunk)
        for _, state in chunk if self.wanted & {BatchStarted, BatchEnded} else ():
            yield BatchStarted(state)
            yield BatchEnded(state, state.is_update and self.plan.due(state).log)

    def _close_epoch(self) -> Iterator[Event]:
        """End an epoch of which drop_last leaves nothing, as a larger batch may find it at a resume."""
        self.source.check_exhausted(self.state.position)
        self.state = self.state.at_next_epoch()
        yield from self.settle()
