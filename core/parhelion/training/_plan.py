"""The plan of a run: how far it goes and when something is due."""

from __future__ import annotations

import math
from typing import Any

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._state import TrainingState, TrainingUnit

__all__ = ["Due", "Plan"]


def _unit(value: TrainingUnit | str) -> TrainingUnit:
    return value if isinstance(value, TrainingUnit) else TrainingUnit.from_str(value)


def _count(minimum: int, *, optional: bool) -> Any:
    """Return an attrs validator for an integer of at least ``minimum``."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None and optional:
            return
        none = " or None" if optional else ""
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(f"{attribute.name} is {value!r}; expected an integer >= {minimum}{none}.")
        if value < minimum:
            never = " None means never." if optional else ""
            raise InvalidValueError(f"{attribute.name} is {value}; expected an integer >= {minimum}{none}.{never}")

    return check


@attrs.frozen
class Due:
    """What is due at one step, in the order in which it is done.

    Attributes:
        log: print the values since the last print.
        validate: run the validation.
        save: write a checkpoint.
    """

    log: bool = False
    validate: bool = False
    save: bool = False


@attrs.frozen(kw_only=True)
class Plan:
    """How far a run goes and when something is due: pure functions of the counters.

    Nothing is "every n since the last time": ``n % frequency == 0`` decides, so a frequency that is changed at a resume
    changes when things happen and nothing else.

    Attributes:
        unit: what ``total_steps``, ``valid_frequency`` and ``chkpt_frequency`` count: epochs, or updates.
        total_steps: where the run ends; ``math.inf`` for never.
        accumulation_steps: batches per update.
        valid_frequency: units between validations.
        chkpt_frequency: units between checkpoints.
        print_frequency: updates between prints.
        chkpt_every_iterations: updates between checkpoints, beside ``chkpt_frequency``.
        chkpt_every_seconds: wall-clock seconds after which the next update saves a checkpoint.
        early_stop_cycles: validations without an improvement after which the run stops; None or 0 for never.
    """

    unit: TrainingUnit = attrs.field(default=TrainingUnit.EPOCH, converter=_unit)
    total_steps: int | float = 0
    accumulation_steps: int = attrs.field(default=1, validator=_count(1, optional=False))
    valid_frequency: int | None = attrs.field(default=None, validator=_count(1, optional=True))
    chkpt_frequency: int | None = attrs.field(default=None, validator=_count(1, optional=True))
    print_frequency: int | None = attrs.field(default=None, validator=_count(1, optional=True))
    chkpt_every_iterations: int | None = attrs.field(default=None, validator=_count(1, optional=True))
    chkpt_every_seconds: float | None = None
    early_stop_cycles: int | None = attrs.field(default=None, validator=_count(0, optional=True))

    def __attrs_post_init__(self) -> None:
        total = self.total_steps
        if isinstance(total, bool) or not (isinstance(total, int) or total == math.inf):
            raise InvalidValueError(
                f"total_steps is {total!r}; expected an integer >= 0, or math.inf to train until something stops it."
            )
        if total < 0:
            raise InvalidValueError(f"total_steps is {total}; expected an integer >= 0, or math.inf.")
        if total == math.inf and self.early_stop_cycles == 0:
            raise InvalidValueError(
                "total_steps is inf and early_stop_cycles is 0, so nothing would end the run; "
                "expected early_stop_cycles >= 1 or None. Pass None if the model or a signal stops it."
            )
        if self.early_stop_cycles and self.valid_frequency is None:
            raise InvalidValueError(
                f"early_stop_cycles is {self.early_stop_cycles} and valid_frequency is None, so no validation would "
                "ever be counted; expected valid_frequency >= 1."
            )
        seconds = self.chkpt_every_seconds
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if seconds is not None and not (is_number and seconds > 0):
            raise InvalidValueError(f"chkpt_every_seconds is {seconds!r}; expected a number > 0 or None.")

    def steps_done(self, state: TrainingState) -> int:
        """Return how many of ``total_steps`` a state has done."""
        return state.epoch if self.unit is TrainingUnit.EPOCH else state.current_iteration

    def stop_reason(self, state: TrainingState) -> str | None:
        """Return why a run in this state goes no further ("finished", "early_stop"), or None if it goes on."""
        if self.early_stop_cycles and state.early_stop_count >= self.early_stop_cycles:
            return "early_stop"
        return "finished" if self.steps_done(state) >= self.total_steps else None

    def due(self, state: TrainingState) -> Due:
        """Return what is due at a state that has just completed an update."""
        if self.unit is TrainingUnit.ITERATION:
            unit = state.current_iteration
        else:
            unit = state.epoch if state.offset == 0 else -1  # an epoch counts when its data is exhausted

        def at(frequency: int | None, count: int) -> bool:
            return frequency is not None and count > 0 and count % frequency == 0

        return Due(
            log=at(self.print_frequency, state.current_iteration),
            validate=at(self.valid_frequency, unit),
            save=at(self.chkpt_frequency, unit) or at(self.chkpt_every_iterations, state.current_iteration),
        )

    def next_due(self, state: TrainingState) -> int | float:
        """Return the first update after ``state`` at which anything can be due within this epoch, or inf.

        Until then a step has nothing to do but train; the end of the epoch is looked at by itself.
        """
        frequencies = [self.print_frequency, self.chkpt_every_iterations]
        ends: list[int | float] = [math.inf]
        if self.unit is TrainingUnit.ITERATION:
            frequencies += [self.valid_frequency, self.chkpt_frequency]
            ends.append(self.total_steps)
        now = state.current_iteration
        return min(*ends, *(now - now % each + each for each in frequencies if each is not None), math.inf)
