"""THE loop: one for both units and both backends.

It is a generator of events. ``fit`` drains it; a user who wants control iterates over it. The unit changes only what
the plan answers, the backend only what the work does and how many iterations it trains in one call: a *chunk*, which
ends where something is due. The loop never waits for the device by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import attrs

from ._events import (
    BatchEnded,
    BatchStarted,
    EpochEnded,
    EpochStarted,
    Event,
    StepCommitted,
    TrainingEnded,
    TrainingStarted,
)
from ._plan import Plan
from ._protocols import Work
from ._source import AnySource
from ._state import TrainingState

__all__ = ["Loop"]


@attrs.define
class Loop:
    """One run of a plan.

    Attributes:
        state: the committed state: what a checkpoint written now would hold.
        wanted: the kinds of event that somebody listens to, out of those that come with every batch.
        chunk_size: the most iterations in one call of the work.
        stop: set from outside to end the run after the current update, or before the first; says why.
        reason: why the run ended, once it has.
    """

    plan: Plan
    state: TrainingState
    source: AnySource
    work: Work
    wanted: frozenset[type[Event]] = frozenset()
    chunk_size: int = 1
    stop: str | None = None
    reason: str | None = None
    _save_at: float = math.inf

    def run(self) -> Iterator[Event]:
        """Train until the plan, the model or a plugin says that it is enough."""
        # Nobody is asked here: a resumed run would ask once more than one that never stopped.
        reason = self.reason = self.plan.stop_reason(self.state) or self.stop
        if reason is not None:
            return
        yield TrainingStarted()
        self._save_at = time.perf_counter() + (self.plan.chkpt_every_seconds or math.inf)
        while self.reason is None:
            if self.state.offset == 0:
                yield EpochStarted(self.state.epoch + 1)
            yield from self._epoch()
        self.work.save(self.state, is_best=False, is_final=True)
        yield TrainingEnded()

    def _epoch(self) -> Iterator[Event]:
        """Train to the end of the epoch, or of the run."""
        plan, work, state, clock = self.plan, self.work, self.state, time.perf_counter
        starts, ends, commits = (kind in self.wanted for kind in (BatchStarted, BatchEnded, StepCommitted))
        prepare, train_step, asks = work.prepare, work.train_step, work.stop_asked is not None
        due_at, seconds, before = plan.next_due(state), state.average_iter_time, clock()
        chunk: list[tuple[Any, TrainingState]] = []
        begin = state
        # Spans come first: where they end, no further batch is asked for.
        for span, batch in zip(self.source.spans(state.position), self.source.batches(state.position), strict=False):
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
            if is_due or (span.is_update and (self._is_wanted() or (asks and self._is_asked()))):
                yield from self._settle()
                state, due_at, before = self.state, plan.next_due(self.state), clock()
            if commits:
                yield StepCommitted(state)
            if self.reason is not None:
                return
        if state.offset != 0 or state is begin:
            yield from self._close_epoch()

    def _is_wanted(self) -> bool:
        """Return whether a stop was requested, or a save by the clock is due."""
        return self.stop is not None or time.perf_counter() >= self._save_at

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
        yield from self._settle()

    def _settle(self) -> Iterator[Event]:
        """Do what is due at a step that has just been committed."""
        due = self.plan.due(self.state)
        if self.state.offset == 0:
            yield EpochEnded(self.state.epoch)
        is_best, row = False, self.work.collect() if due.log else {}
        if due.validate:
            yield from self.work.validate(self.state)
            verdict = self.work.judge()
            self.state = self.state.after_validation(improved=verdict.improved)
            is_best, row = verdict.is_best, row | verdict.values
        if row:
            self.work.report(self.state, row)
        self.reason = self.plan.stop_reason(self.state) or (self.stop if self._is_asked() else None)
        if due.save or is_best or time.perf_counter() >= self._save_at:
            self.work.save(self.state, is_best=is_best, is_final=False)
            self._save_at = time.perf_counter() + (self.plan.chkpt_every_seconds or math.inf)

    def _is_asked(self) -> bool:
        """Ask the model and the plugins, and remember a yes."""
        asks = self.work.stop_asked
        if asks is not None and asks():
            self.stop = self.stop or "early_stop"
        return self.stop is not None
