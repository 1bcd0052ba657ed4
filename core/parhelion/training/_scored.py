"""Scored: what short models of every backend have in common: checked settings, metrics, and a monitored value."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, cast

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._merging import check_counted, check_mergeable
from ._model import Model

__all__ = ["Scored"]


class Scored(Model):
    """A model that is evaluated by a loss and metrics; a backend's ``LossModel`` derives from it.

    Args:
        save_name: names the folder of this model's checkpoints.
        clip_norm: the largest allowed norm of the whole gradient; None for no clipping.
        ema_decay: decay in (0, 1) of a moving average of the weights; None for none.
        monitor: the validation value that says whether a validation is an improvement.
        mode: whether a "min" or a "max" of it is better.

    Attributes:
        metrics: metrics by name.

    Raises:
        InvalidValueError: an argument is out of range.
    """

    def __init__(
        self,
        save_name: str,
        *,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        super().__init__(save_name)
        if clip_norm is not None and not (_is_number(clip_norm) and clip_norm > 0):
            raise InvalidValueError(f"clip_norm is {clip_norm!r}; expected a number > 0, or None for no clipping.")
        if ema_decay is not None and not (_is_number(ema_decay) and 0 < ema_decay < 1):
            raise InvalidValueError(f"ema_decay is {ema_decay!r}; expected a number between 0 and 1, such as 0.999.")
        if mode not in ("min", "max"):
            raise InvalidValueError(f"mode is {mode!r}; expected 'min' or 'max'.")
        self.monitor = monitor
        self.metrics: dict[str, Any] = {}
        self._mode = mode
        self._clip_norm = clip_norm
        self._ema_decay = ema_decay
        self._best: float | None = None

    @abstractmethod
    def examine(self, batch: Any) -> tuple[Any, Any]:
        """Return the loss of one batch in evaluation, and what the metrics are updated with; None for nothing."""

    def valid_step(self, batch: Any, step: int) -> Any:
        """Return the loss of one validation batch and update the metrics."""
        return self._evaluate(batch)

    def test_step(self, batch: Any, step: int) -> Any:
        """Return the loss of one test batch and update the metrics."""
        return self._evaluate(batch)

    def _evaluate(self, batch: Any) -> Any:
        loss, outputs = self.examine(batch)
        if self.metrics and outputs is None:
            raise InvalidTypeError(
                f"loss returned no outputs and there are metrics ({', '.join(self.metrics)}); expected (loss, "
                "outputs), with outputs as the metrics' arguments."
            )
        for name, metric in self.metrics.items():
            metric.update(*(outputs[name] if isinstance(outputs, Mapping) else outputs))
        return loss

    def start_evaluation(self) -> None:
        """Forget the metrics of the pass before.

        Raises:
            InvalidTypeError: ranks each count their own records, and a metric cannot put them together.
        """
        world = None if self._window is None else self._window.world
        for name, metric in self.metrics.items():
            check_mergeable(f"metric {name!r}", metric, world)
            metric.reset()

    def finish_evaluation(self) -> Mapping[str, Any]:
        """Return the metrics of a whole pass; one with several values gives a value for each.

        From here to the next pass each has counted the records of all ranks.

        Raises:
            InvalidValueError: a metric that asks the other ranks itself cannot, since one of them had no record.
        """
        world = None if self._window is None else self._window.world
        values: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            check_counted(f"metric {name!r}", metric, world)
            whole = self.merged(metric)
            if whole is not metric:
                metric.load_state_dict(whole.state_dict())
            value = metric.compute()
            if isinstance(value, Mapping):
                parts = cast("Mapping[str, Any]", value)
                values |= {f"{name}_{part}": each for part, each in parts.items()}
            else:
                values[name] = value
        return values

    def have_metrics_improved(self) -> bool:
        """Say whether the monitored value is the best so far; without one, always yes.

        Raises:
            InvalidValueError: the validation gave no such value.
        """
        if self.monitor is None:
            return True
        if self.monitor not in self.validated:
            raise InvalidValueError(
                f"monitor is {self.monitor!r}; expected one of the validation's values: "
                f"{', '.join(self.validated) or 'there were none, so return or log one in valid_step'}."
            )
        value = self.validated[self.monitor]
        if self._best is None or (value < self._best if self._mode == "min" else value > self._best):
            self._best = value
            return True
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
