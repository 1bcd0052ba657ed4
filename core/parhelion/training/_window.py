"""Values logged since the last print, kept on the device until somebody asks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError, NonFiniteLossError

from ._protocols import Placement, World
from ._tally import ExactSum

__all__ = ["Reduce", "Window"]

Reduce: TypeAlias = Literal["mean", "sum", "last"]

_MOST_PENDING = 1_000


class Window:
    """Collects what steps return and log, and reduces it to one row of floats.

    Reading a value would wait for the device, so values are kept as they are and read together: at a print, a
    validation, a save, or when a thousand have come up. Their sums are exact (:class:`~._tally.ExactSum`), so neither
    when they are read nor how they were split over ranks changes a bit of the result.

    Over ranks, a mean is that of all values by their weights, a sum that of all, and a last value that of the first
    rank that has one. A name that some ranks have not logged is that of the others.

    Args:
        placement: how to keep values and to read them.
        guard: whether a loss that is NaN or infinite raises when it is read.
        world: processes whose values make one row: each logs its own; None where what one logs is everybody's.

    Attributes:
        iteration: what the guard calls the step that is logged now.
        weight: what that step counts for in a mean, such as its records. With 0 nothing is taken.
        world: the processes whose values make one row.
    """

    def __init__(self, placement: Placement, *, guard: bool = True, world: World | None = None) -> None:
        self._hold = placement.hold
        self._to_host = placement.to_host
        self._guard = guard
        self._pending: list[tuple[int, int, float, str, str, Any]] = []
        self._num_pending = 0
        self._folded: dict[str, _Entry] = {}
        self.iteration = 0
        self.weight: float = 1
        self.world = world

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
        if not self.weight:
            return
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
        for entry in self._folded.values():
            entry.settle()

    def _fold_one(self, iteration: int, weight: float, reduce: str, name: str, value: float) -> None:
        if self._guard and not math.isfinite(value) and "loss" in name:
            raise NonFiniteLossError(
                f"{name} is {value} at iteration {iteration}; expected a finite number. No checkpoint was written "
                "after it. Lower the learning rate, clip gradients, or pass nan_guard=False to go on regardless."
            )
        entry = self._folded.get(name)
        if entry is None or reduce == "last":
            self._folded[name] = _Entry(reduce, [value * weight if reduce == "mean" else value], weight)
            return
        entry.reduce = reduce
        entry.terms.append(value * weight if reduce == "mean" else value)
        if reduce == "mean":
            entry.weight += weight

    def flush(self) -> dict[str, float]:
        """Return the row of reduced values, the same on every rank, and begin a new one; all ranks must ask.

        Raises:
            NonFiniteLossError: as :meth:`fold` does.
            InvalidValueError: ranks have logged a value with different reductions.
        """
        self.fold()
        entries, self._folded = self._folded, {}
        if self.world is not None:
            entries = _merge(self.world.gather(_encode(entries)))
        return {name: entry.value() for name, entry in entries.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what each rank has collected since the last flush, by rank; all must ask.

        Where what one has is everybody's, that is the first one's.
        """
        self.fold()
        mine = _encode(self._folded)
        return {str(rank): each for rank, each in enumerate([mine] if self.world is None else self.world.gather(mine))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, on any number of ranks.

        On as many as there were, each has its own back. On others the first has what all had, so that the next row is
        that of all.
        """
        self._pending, self._num_pending = [], 0
        # Before ranks had states of their own there was one, of entries that are lists.
        is_by_rank = all(isinstance(each, Mapping) for each in state.values())
        states: list[Mapping[str, Any]] = [state[key] for key in sorted(state, key=int)] if is_by_rank else [state]
        if self.world is None:
            self._folded = _merge(states)
        elif len(states) == self.world.size:
            self._folded = _merge([states[self.world.rank]])
        else:
            self._folded = _merge(states if self.world.rank == 0 else [])


@attrs.define
class _Entry:
    """What was logged under one name.

    Attributes:
        reduce: "mean", "sum" or "last".
        terms: floats whose exact sum is that of the values, each times its weight for a mean.
        weight: the sum of the weights.
    """

    reduce: str
    terms: list[float]
    weight: float

    def settle(self) -> None:
        """Keep as few terms as make the sum; equal sums are then equal terms."""
        if self.reduce != "last":
            self.terms = [*ExactSum.of(self.terms).parts]

    def value(self) -> float:
        """Return what the row says."""
        if self.reduce == "last":
            return self.terms[-1]
        total = float(ExactSum.of(self.terms))
        return total / self.weight if self.reduce == "mean" else total


def _encode(entries: Mapping[str, _Entry]) -> dict[str, list[Any]]:
    return {name: [entry.reduce, list(entry.terms), entry.weight] for name, entry in entries.items()}


def _merge(states: Sequence[Mapping[str, Any]]) -> dict[str, _Entry]:
    """Return the entries of all ranks, in rank order, from their states."""
    merged: dict[str, _Entry] = {}
    for state in states:
        for name, (reduce, total, weight) in state.items():
            entry = merged.setdefault(name, _Entry(reduce, [], 0))
            if entry.reduce != reduce:
                raise InvalidValueError(
                    f"reduce of {name!r} is {reduce!r} in one process and {entry.reduce!r} in another; expected the "
                    "same in every process that logs it."
                )
            if reduce != "last" or not entry.terms:
                # Before sums were exact they were one float.
                entry.terms += total if isinstance(total, Sequence) else [total]
                entry.weight += weight
    for entry in merged.values():
        entry.settle()
    return merged


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
