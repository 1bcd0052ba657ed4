"""The training state: an immutable value; a step returns the next one."""

from __future__ import annotations

import enum
from typing import Any

import attrs

from parhelion.checkpoint import register_value_type
from parhelion.errors import InvalidValueError
from parhelion.sampling import Position

__all__ = ["BatchSpan", "TrainingState", "TrainingUnit"]


class TrainingUnit(enum.Enum):
    """What a training step is when totals and frequencies count steps."""

    ITERATION = 0
    EPOCH = 1

    @classmethod
    def from_str(cls, label: str) -> TrainingUnit:
        """Return the unit called ``label``: "iteration" or "epoch".

        Raises:
            InvalidValueError: (a ValueError) ``label`` is neither.
        """
        try:
            return cls[label.upper()]
        except (KeyError, AttributeError):
            raise InvalidValueError(f"train_unit is {label!r}; expected 'iteration' or 'epoch'.") from None


@attrs.frozen
class BatchSpan:
    """What one global batch takes from the epoch and means for its accumulation group.

    Attributes:
        num_records: records of all ranks that it consumes, padding not counted.
        is_update: whether it completes its group, so that the optimizer steps.
        is_last: whether it is the last of the epoch.
        loss_weight: its share of the group's records, in (0, 1]; 1.0 without accumulation.
    """

    num_records: int
    is_update: bool
    is_last: bool
    loss_weight: float


@attrs.frozen
class TrainingState:
    """How far a run has come.

    The loop computes the next state with :meth:`after`, hands it to the hooks, and makes it its own once they have
    returned. Two states are equal when they say the same about the run; wall-clock time is left out.

    Attributes:
        current_iteration: optimizer updates made.
        global_iteration: batches trained on, over all epochs.
        global_epoch: epochs begun; the 1-based number of the running one.
        validation_cycles: validations completed.
        dataset_iter: batches delivered in this epoch. Never a position: it depends on the batch size.
        early_stop_count: validations in a row without an improvement.
        average_iter_time: mean wall-clock seconds per batch.
        running_iter: batches since the last validation.
        epoch: 0-based epoch of the position.
        offset: records that all ranks have consumed in that epoch.
        is_update: whether the optimizer steps in this iteration (always, without accumulation).
        loss_weight: what the loss of this batch is multiplied with before the backward pass: its share of the
            accumulation group's records.
    """

    current_iteration: int = 0
    global_iteration: int = 0
    global_epoch: int = 0
    validation_cycles: int = 0
    dataset_iter: int = 0
    early_stop_count: int = 0
    average_iter_time: float = attrs.field(default=0.0, eq=False)
    running_iter: int = 0
    epoch: int = 0
    offset: int = 0
    is_update: bool = True
    loss_weight: float = 1.0

    @property
    def position(self) -> Position:
        """Where the next batch begins."""
        return Position(self.epoch, self.offset)

    def dict(self) -> dict[str, Any]:
        """Return the eight counters as a dictionary."""
        return {
            "current_iteration": self.current_iteration,
            "global_iteration": self.global_iteration,
            "global_epoch": self.global_epoch,
            "validation_cycles": self.validation_cycles,
            "dataset_iter": self.dataset_iter,
            "early_stop_count": self.early_stop_count,
            "average_iter_time": self.average_iter_time,
            "running_iter": self.running_iter,
        }

    def after(self, span: BatchSpan, seconds: float) -> TrainingState:
        """Return the state once a batch has been trained on. The position advances here and nowhere else.

        Args:
            span: what the batch takes from the epoch.
            seconds: wall-clock time of the iteration before this one.
        """
        # Called once per batch: positional, which takes a third of the time of attrs.evolve.
        iteration = self.global_iteration + 1
        return TrainingState(
            self.current_iteration + span.is_update,
            iteration,
            self.epoch + 1,
            self.validation_cycles,
            self.dataset_iter + 1 if self.offset else 1,
            self.early_stop_count,
            self.average_iter_time + (seconds - self.average_iter_time) / iteration,
            self.running_iter + 1,
            self.epoch + span.is_last,
            0 if span.is_last else self.offset + span.num_records,
            span.is_update,
            span.loss_weight,
        )

    def at_next_epoch(self) -> TrainingState:
        """Return the state at the start of the next epoch, where nothing of this one is left to deliver."""
        return attrs.evolve(self, epoch=self.epoch + 1, offset=0)

    def after_validation(self, *, improved: bool) -> TrainingState:
        """Return the state once a validation has been completed."""
        return attrs.evolve(
            self,
            validation_cycles=self.validation_cycles + 1,
            early_stop_count=0 if improved else self.early_stop_count + 1,
            running_iter=0,
        )


register_value_type(TrainingUnit, name="parhelion.TrainingUnit")
register_value_type(TrainingState, name="parhelion.TrainingState")
