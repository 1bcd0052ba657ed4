"""THE loop: one for both units and both backends.

It is a generator of events. ``fit`` drains it; a user who wants control iterates over it. The unit changes only what
the plan answers, the backend only what the work does. The loop never waits for the device by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import attrs

from parhelion.errors import DataError

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
from ._source import Source
from ._state import TrainingState

__all__ = ["Loop"]


@attrs.define
class Loop:
    """One run of a plan.

    Attributes:
        state: the committed state: what a checkpoint written now would hold.
        wanted: the kinds of event that somebody listens to, out of those that come with every batch.
        stop: set from outside to end the run after the current update, or before the first; says why.
        reason: why the run ended, once it has.
    """

    plan: Plan
    state: TrainingState
    source: Source
    work: Work
    wanted: frozenset[type[Event]] = frozenset()
    stop: str | None = None
    reason: str | None = None
    _save_at: float = math.inf

    def run(self) -> Iterator[Event]:
        """Train until the plan, the model or a plugin says that it is enough."""
        # Nobody is asked here: a resumed run would ask once more than one that never stopped.
        self.reason = self.plan.stop_reason(self.state) or self.stop
        if self._has_ended():
            return
        yield TrainingStarted()
        self._wind_timer()
        while not self._has_ended():
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
        # Spans come first: where they end, no further batch is asked for.
        for span, batch in zip(self.source.spans(state.position), self.source.batches(state.position), strict=False):
            upcoming = state.after(span, seconds)
            prepared = prepare(batch, upcoming)
            if starts:
                yield BatchStarted(upcoming)
            train_step(prepared, upcoming)
            if ends:
                yield BatchEnded(upcoming, span.is_update and plan.due(upcoming).log)
            self.state = state = upcoming
            now = clock()
            seconds, before = now - before, now
            if span.is_update and (
                state.current_iteration >= due_at
                or span.is_last
                or self.stop is not None
                or now >= self._save_at
                or (asks and self._is_asked())
            ):
                yield from self._settle()
                state, due_at, before = self.state, plan.next_due(self.state), clock()
            if commits:
                yield StepCommitted(state)
            if self._has_ended():
                return
        if state.offset != 0:
            yield from self._close_epoch()

    def _close_epoch(self) -> Iterator[Event]:
        """End an epoch of which drop_last leaves nothing, as a larger batch may find it at a resume."""
        if not self.source.is_exhausted(self.state.position):
            raise DataError(
                f"the training loader ended at record {self.state.offset} of {self.source.size} of epoch "
                f"{self.state.epoch + 1}; expected batches to the epoch's end. Its sampler and its batches must have "
                "the same batch size."
            )
        self.state = self.state.at_next_epoch()
        yield from self._settle()

    def _settle(self) -> Iterator[Event]:
        """Do what is due at a step that has just been committed."""
        due = self.plan.due(self.state)
        if self.state.offset == 0:
            yield EpochEnded(self.state.epoch)
        row = self.work.collect() if due.log else {}
        is_best = False
        if due.validate:
            yield from self.work.validate(self.state)
            verdict = self.work.judge()
            self.state = self.state.after_validation(improved=verdict.improved)
            is_best, row = verdict.is_best, row | verdict.values
        if row:
            self.work.report(self.state, row)
        self.reason = self._why_stop()
        if due.save or is_best or time.perf_counter() >= self._save_at:
            self.work.save(self.state, is_best=is_best, is_final=False)
            self._wind_timer()

    def _why_stop(self) -> str | None:
        return self.plan.stop_reason(self.state) or (self.stop if self._is_asked() else None)

    def _has_ended(self) -> bool:
        return self.reason is not None

    def _is_asked(self) -> bool:
        """Ask the model and the plugins, and remember a yes."""
        asks = self.work.stop_asked
        if asks is not None and asks():
            self.stop = self.stop or "early_stop"
        return self.stop is not None

    def _wind_timer(self) -> None:
        if self.plan.chkpt_every_seconds is not None:
            self._save_at = time.perf_counter() + self.plan.chkpt_every_seconds
