"""What is done at a step that has just been committed: what is due there, then what was called for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import attrs

from ._calls import Calls
from ._events import EpochEnded, Event, ValidationBatchEnded
from ._plan import Plan
from ._protocols import Work
from ._state import TrainingState

__all__ = ["Settling"]


@attrs.define(kw_only=True)
class Settling:
    """The half of the loop that does what comes behind a step.

    Attributes:
        plan: what is due when.
        state: the committed state: what a checkpoint written now would hold.
        work: does it.
        calls: what is wished for from outside.
        is_pending: whether the validation that is due at the state has been left, and is still to be done.
        reason: why the run ended, once it has.
    """

    plan: Plan
    state: TrainingState
    work: Work
    calls: Calls = attrs.field(factory=Calls)
    is_pending: bool = False
    reason: str | None = None

    def settle(self) -> Iterator[Event]:
        """Do what is due at a step that has just been committed, or the rest of it where a validation was left."""
        due, was_pending = self.plan.due(self.state), self.is_pending
        self.is_pending = False  # also where the resumed run's plan has no validation here
        if self.state.offset == 0 and not was_pending:
            yield EpochEnded(self.state.epoch)
        is_best, row = False, self.work.collect() if due.log and not was_pending else {}
        if due.validate:
            yield from self._validate()
        if due.validate and not self.is_pending:
            verdict = self.work.judge()
            self.state = self.state.after_validation(improved=verdict.improved)
            is_best, row = verdict.is_best, row | verdict.values
        if row:
            self.work.report(self.state, row)
        if self.is_pending:
            self.reason = self.calls.stop
        else:
            self.reason = self.plan.stop_reason(self.state) or (self.calls.stop if self.is_asked() else None)
        if due.save or is_best or self.calls.save:
            self.save(is_best=is_best)

    def _validate(self) -> Iterator[Event]:
        """Run the validation, unless it has to be left because time is short; it is pending then."""
        with closing(self.work.validate(self.state)) as events:
            for event in events:
                yield event
                if type(event) is ValidationBatchEnded and self.calls.hear(time.perf_counter()):
                    self.work.check()
                    if self.calls.leave and self.calls.stop is not None:
                        self.is_pending = True
                        return

    def is_asked(self) -> bool:
        """Ask the model and the plugins, and remember a yes."""
        asks = self.work.stop_asked
        if asks is not None and asks():
            self.calls.stop = self.calls.stop or "early_stop"
        return self.calls.stop is not None

    def answer(self) -> None:
        """Do what was called for, now that all that is due is done."""
        self.work.check()
        self.reason = self.reason or self.calls.stop
        if self.calls.save:
            self.save(is_final=True)

    def save(self, *, is_best: bool = False, is_final: bool = False) -> None:
        """Save the committed state; a final one only if it is not there already."""
        self.work.save(self.state, is_best=is_best, is_final=is_final, is_pending=self.is_pending)
        self.calls.start_clock()
