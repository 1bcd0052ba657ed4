"""Values logged since the last print, kept on the device until somebody asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from parhelion.errors import InvalidTypeError, InvalidValueError, NonFiniteLossError

from ._protocols import Placement

__all__ = ["Reduce", "Window"]

Reduce: TypeAlias = Literal["mean", "sum", "last"]

_MOST_PENDING = 1_000


class Window:
    """Collects what steps return and log, and reduces it to one row of floats.

    Reading a value would wait for the device, so values are kept as they are and read together: at a print, a
    validation, a save, or when a thousand have come up. They are added one by one in float64, so when they are read
    changes no bit of the result.

    Args:
        placement: how to keep values and to read them.
        guard: whether a loss that is NaN or infinite raises when it is read.
    """

    def __init__(self, placement: Placement, *, guard: bool = True) -> None:
        self._hold = placement.hold
        self._to_host = placement.to_host
        self._guard = guard
        self._pending: list[tuple[int, int, float, str, str, Any]] = []
        self._num_pending = 0
        self._folded: dict[str, tuple[str, float, float]] = {}
        self.iteration = 0
        self.weight: float = 1

    def add(self, outcome: Any) -> None:
        """Take what a step returned: None, a scalar loss, or a mapping of scalars."""
        if outcome is None:
            return
        if isinstance(outcome, Mapping):
            for name, value in outcome.items():  # pyright: ignore[reportUnknownVariableType]
                self.log(str(name), value)  # pyright: ignore[reportUnknownArgumentType]
            return
        if isinstance(outcome, (str, bytes, list, tuple)):
            raise InvalidTypeError(
                f"a step returned {outcome!r}; expected None, a scalar loss, or a mapping from names to scalars."
            )
        self.log("loss", outcome)

    def add_many(self, outcome: Any, count: int) -> None:
        """Take what ``count`` steps in one call returned, of which :attr:`iteration` is the first.

        Args:
            outcome: None, a vector of losses, or a mapping from names to vectors; each of shape ``(count,)``.
            count: how many steps they were.
        """
        values: Mapping[str, Any] = {} if outcome is None else outcome if _is_mapping(outcome) else {"loss": outcome}
        for name, vector in values.items():
            self._keep(name, vector, "mean", count)

    def log(self, name: str, value: Any, reduce: Reduce = "mean") -> None:
        """Take one scalar.

        Raises:
            InvalidValueError: ``reduce`` is none of "mean", "sum" and "last".
            InvalidTypeError: ``value`` is no scalar.
        """
        if reduce not in ("mean", "sum", "last"):
            raise InvalidValueError(f"reduce of {name!r} is {reduce!r}; expected 'mean', 'sum' or 'last'.")
        self._keep(name, value, reduce, 1)

    def _keep(self, name: str, value: Any, reduce: str, count: int) -> None:
        try:
            held = self._hold(value)
        except InvalidTypeError as error:
            raise InvalidTypeError(f"{name!r} of a row cannot be used: {error}") from None
        self._pending.append((self.iteration, count, self.weight, reduce, name, held))
        self._num_pending += count
        if self._num_pending >= _MOST_PENDING:
            self.fold()

    def fold(self) -> None:
        """Read all pending values.

        Raises:
            NonFiniteLossError: a loss among them is NaN or infinite; names the first bad iteration. A value is a loss
                when its name contains "loss".
        """
        pending, self._pending, self._num_pending = self._pending, [], 0
        values = iter(self._to_host([value for *_, value in pending]))
        for first, count, weight, reduce, name, _ in pending:
            for iteration in range(first, first + count):
                self._fold_one(iteration, weight, reduce, name, next(values))

    def _fold_one(self, iteration: int, weight: float, reduce: str, name: str, value: float) -> None:
        if self._guard and not math.isfinite(value) and "loss" in name:
            raise NonFiniteLossError(
                f"{name} is {value} at iteration {iteration}; expected a finite number. No checkpoint was written "
                "after it. Lower the learning rate, clip gradients, or pass nan_guard=False to go on regardless."
            )
        if reduce == "last" or name not in self._folded:
            self._folded[name] = (reduce, value * weight if reduce == "mean" else value, weight)
            return
        _, total, weights = self._folded[name]
        self._folded[name] = (
            (reduce, total + value * weight, weights + weight) if reduce == "mean" else (reduce, total + value, weights)
        )

    def flush(self) -> dict[str, float]:
        """Return the row of reduced values and begin a new one."""
        self.fold()
        row = {
            name: total / weights if reduce == "mean" else total
            for name, (reduce, total, weights) in self._folded.items()
        }
        self._folded.clear()
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return what has been collected since the last flush."""
        self.fold()
        return {name: list(entry) for name, entry in self._folded.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._pending, self._num_pending = [], 0
        self._folded = {name: (entry[0], entry[1], entry[2]) for name, entry in state.items()}


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
