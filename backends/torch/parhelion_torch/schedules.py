"""When a schedule sets the learning rate: per update, per epoch, or on a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import attrs
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from parhelion.errors import CheckpointMismatchError, InvalidTypeError, InvalidValueError
from parhelion.training import TrainingState

__all__ = ["Scheduled", "as_scheduled", "on_metric", "per_epoch", "per_update"]


@attrs.define
class Scheduled:
    """A schedule and what it counts.

    A pure schedule is asked for its value at the update (or epoch) that is about to be made, so it has no state. A
    scheduler of torch is stepped until it has been stepped once for each update (or epoch) completed: it is never one
    behind after a resume.

    Attributes:
        schedule: a function from a count to a learning rate, or a scheduler of torch.
        every: what it counts.
        metric: the validation value that a metric schedule is stepped with.
        done: how often a scheduler of torch has been stepped.
    """

    schedule: Any
    every: Literal["update", "epoch", "metric"]
    metric: str | None = None
    done: int = 0

    def apply(self, optimizer: Optimizer, state: TrainingState) -> None:
        """Set the learning rate for the update that ``state`` counts."""
        if self.every == "metric":
            return
        count = state.current_iteration - 1 if self.every == "update" else state.global_epoch - 1
        if not isinstance(self.schedule, LRScheduler):
            rate = float(self.schedule(count))
            for group in optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            return
        while self.done < count:
            # torch would warn that no step of the optimizer came before: after a resume it did so in another process,
            # and in half precision a scaler may have skipped it.
            optimizer._opt_called = True  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # noqa: SLF001
            self.schedule.step()
            self.done += 1

    def observe(self, values: Mapping[str, float]) -> None:
        """Step a metric schedule with a validation's value.

        Raises:
            InvalidValueError: the validation gave no such value.
        """
        if self.every != "metric":
            return
        if self.metric is None or self.metric not in values:
            raise InvalidValueError(
                f"a schedule is stepped on {self.metric!r}; expected one of the validation's values: "
                f"{', '.join(values)}."
            )
        self.schedule.step(values[self.metric])
        self.done += 1

    def state_dict(self) -> dict[str, Any]:
        """Return how far the schedule is."""
        stateful = hasattr(self.schedule, "state_dict")
        state = self.schedule.state_dict() if stateful else None
        return {"kind": type(self.schedule).__name__, "every": self.every, "done": self.done, "state": state}

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a state of another schedule, or of one that counted something else.

        Raises:
            CheckpointMismatchError: it is of another one. A function has no state, so another may take its place.
        """
        stateful = hasattr(self.schedule, "state_dict") or state["state"] is not None
        here, there = f"{type(self.schedule).__name__} per {self.every}", f"{state['kind']} per {state['every']}"
        if stateful and here != there:
            raise CheckpointMismatchError(
                f"a schedule is {here} here and {there} in the checkpoint; expected the same. Build the model as it "
                "was when it was saved."
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.done = state["done"]
        if state["state"] is not None:
            self.schedule.load_state_dict(state["state"])


def per_update(schedule: Any) -> Scheduled:
    """Return a schedule that counts updates; what a plain one does."""
    return Scheduled(schedule, "update")


def per_epoch(schedule: Any) -> Scheduled:
    """Return a schedule that counts epochs, from 0."""
    return Scheduled(schedule, "epoch")


def on_metric(schedule: ReduceLROnPlateau, metric: str) -> Scheduled:
    """Return a scheduler that is stepped after each validation with one of its values ("valid_loss")."""
    return Scheduled(schedule, "metric", metric)


def as_scheduled(schedules: Any, optimizer: Optimizer, monitor: str | None) -> list[Scheduled]:
    """Return what a model gave as its schedules, each with what it counts.

    Raises:
        InvalidTypeError: one is neither a function nor a scheduler.
        InvalidValueError: a scheduler is of another optimizer, or a plateau has no metric.
    """
    if schedules is None:
        return []
    several = cast("Sequence[Any]", schedules) if isinstance(schedules, (list, tuple)) else [schedules]
    return [_one(schedule, optimizer, monitor) for schedule in several]


def _one(given: Any, optimizer: Optimizer, monitor: str | None) -> Scheduled:
    scheduled = given if isinstance(given, Scheduled) else None
    if scheduled is None and isinstance(given, ReduceLROnPlateau):
        if monitor is None:
            raise InvalidValueError(
                "schedules has a ReduceLROnPlateau and the model monitors nothing; expected on_metric(scheduler, "
                "'valid_loss'), or a LossModel with monitor='valid_loss'."
            )
        scheduled = on_metric(given, monitor)
    scheduled = per_update(given) if scheduled is None else scheduled
    schedule: Callable[[int], float] | LRScheduler = scheduled.schedule
    if (scheduled.every == "metric") != isinstance(schedule, ReduceLROnPlateau):
        raise InvalidTypeError(
            f"a schedule per {scheduled.every} is {schedule!r}; expected a ReduceLROnPlateau on a metric, and nothing "
            "else there. Use on_metric for it, per_update or per_epoch for others."
        )
    if isinstance(schedule, LRScheduler):
        if schedule.optimizer is not optimizer:
            raise InvalidValueError("a scheduler in schedules is of another optimizer; expected self.optimizer.")
    elif not callable(schedule):
        raise InvalidTypeError(
            f"schedules has {schedule!r}; expected a function from a count to a learning rate, or a scheduler of torch."
        )
    elif len(rates := {float(group["lr"]) for group in optimizer.param_groups}) > 1:
        raise InvalidValueError(
            f"schedules has {schedule!r}, which sets one learning rate, and the optimizer's groups have "
            f"{sorted(rates)}; expected the same. Use torch's LambdaLR, which multiplies each group's own."
        )
    return scheduled
