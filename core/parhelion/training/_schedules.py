# ruff: noqa: N801 - a schedule is written like the function that it is: cosine(0.1, 1000)(update)
"""Schedules: pure functions from the number of optimizer updates made so far to a value.

A schedule is a frozen value that can be called, compared, pickled and read in a log. It keeps no count of its
own, so there is nothing to save or restore: a resumed run asks for ``schedule(update)`` and gets what it
would have got.

Every schedule takes a number and returns a float, or takes an array and returns an array of its shape
(NumPy's: in float64, equal to the scalar results bit for bit). Arrays of other libraries work through
``__array_namespace__``, also while they are traced, so a schedule can stand inside a compiled function.

Updates count from 0. Before 0 a schedule holds its first value, after its end its last.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, overload

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.registry import Registry

from ._elementwise import apply, clip, operand, power, where
from ._fields import check_count, check_real, check_schedule, count, positive, real, to_float

__all__ = [
    "SCHEDULE_REGISTRY",
    "Schedule",
    "chain",
    "constant",
    "cosine",
    "create_schedule",
    "exponential",
    "inverse_sqrt",
    "linear",
    "piecewise",
    "polynomial",
    "step",
    "warmup",
]

SCHEDULE_REGISTRY: Registry[Callable[..., Any]] = Registry("schedule")


def create_schedule(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new schedule of the kind registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no schedule has that name; near matches are named.
    """
    return SCHEDULE_REGISTRY.get(type_name)(*args, **kwargs)


def _fraction(update: Any, num_updates: int) -> Any:
    """Return how much of ``num_updates`` is over, in [0, 1]."""
    # Clipped after the division: a compiler may multiply by the rounded reciprocal instead, and land above 1.
    return clip(update / num_updates, 0, 1)


def _line(start: float, stop: float, fraction: Any) -> Any:
    return _within(start, stop, start + (stop - start) * fraction)


def _within(start: float, stop: float, value: Any) -> Any:
    """Return ``value``, carried past neither end by rounding."""
    return clip(value, min(start, stop), max(start, stop))


@attrs.frozen
class Schedule(ABC):
    """A value for every number of updates made so far.

    Where a schedule is taken, any function from an update to a value will do; this class is what the ones
    here are.
    """

    @overload
    def __call__(self, update: int) -> float: ...
    @overload
    def __call__(self, update: Any) -> Any: ...
    def __call__(self, update: Any) -> Any:
        """Return the value after ``update`` updates; an array gives an array of the same shape.

        Raises:
            InvalidTypeError: ``update`` is neither a number nor an array with ``__array_namespace__``.
        """
        return self._at(operand(update, "update"))

    @abstractmethod
    def _at(self, update: Any) -> Any:
        """Return the value at a Python number, a float64 NumPy array or another library's array."""


@SCHEDULE_REGISTRY.register
@attrs.frozen
class constant(Schedule):
    """Always ``value``."""

    value: float = attrs.field(converter=to_float, validator=real)

    def _at(self, update: Any) -> Any:
        return where(update >= 0, self.value, self.value)  # an array in gives an array out


@SCHEDULE_REGISTRY.register
@attrs.frozen
class linear(Schedule):
    """A straight line from ``start`` at update 0 to ``stop`` at update ``num_updates``, then ``stop``."""

    start: float = attrs.field(converter=to_float, validator=real)
    stop: float = attrs.field(converter=to_float, validator=real)
    num_updates: int = attrs.field(validator=count)

    def _at(self, update: Any) -> Any:
        value = _line(self.start, self.stop, _fraction(update, self.num_updates))
        return where(update >= self.num_updates, self.stop, value)


@SCHEDULE_REGISTRY.register
@attrs.frozen
class cosine(Schedule):
    """Half a cosine wave from ``start`` at update 0 to ``stop`` at update ``num_updates``, then ``stop``.

    One cycle of Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017; a
    :class:`chain` of several gives the restarts.
    """

    start: float = attrs.field(converter=to_float, validator=real)
    num_updates: int = attrs.field(validator=count)
    stop: float = attrs.field(default=0.0, converter=to_float, validator=real)

    def _at(self, update: Any) -> Any:
        wave = apply("sin", math.pi / 2 * _fraction(update, self.num_updates))
        value = _line(self.start, self.stop, wave * wave)  # (1 - cos(2 x)) / 2, without its cancellation
        return where(update >= self.num_updates, self.stop, value)


@SCHEDULE_REGISTRY.register
@attrs.frozen
class polynomial(Schedule):
    """``stop + (start - stop) * (1 - update / num_updates) ** power``, then ``stop``; ``power`` > 0."""

    start: float = attrs.field(converter=to_float, validator=real)
    num_updates: int = attrs.field(validator=count)
    power: float = attrs.field(converter=to_float, validator=positive)
    stop: float = attrs.field(default=0.0, converter=to_float, validator=real)

    def _at(self, update: Any) -> Any:
        left = 1 - _fraction(update, self.num_updates)
        value = _line(self.start, self.stop, 1 - power(left, self.power))
        return where(update >= self.num_updates, self.stop, value)


@SCHEDULE_REGISTRY.register
@attrs.frozen
class exponential(Schedule):
    """From ``start`` to ``stop``, both > 0, by one factor in each of ``num_updates`` updates; then ``stop``.

    With ``stop`` above ``start`` it grows, as a search for a learning rate wants. For a factor without an end
    write ``step(start, every=1, factor=factor)``.
    """

    start: float = attrs.field(converter=to_float, validator=positive)
    stop: float = attrs.field(converter=to_float, validator=positive)
    num_updates: int = attrs.field(validator=count)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.stop / self.start < math.inf:
            raise InvalidValueError(
                f"start and stop of exponential are {self.start} and {self.stop}; expected a ratio that "
                "a float can hold. Chain two schedules."
            )

    def _at(self, update: Any) -> Any:
        growth = power(self.stop / self.start, _fraction(update, self.num_updates))
        value = _within(self.start, self.stop, self.start * growth)
        return where(update >= self.num_updates, self.stop, value)


@SCHEDULE_REGISTRY.register
@attrs.frozen
class inverse_sqrt(Schedule):
    """``start * sqrt(timescale / (timescale + update))``: half of ``start`` after three timescales.

    Behind a :class:`warmup` of ``timescale`` updates it is the schedule of Vaswani et al., "Attention is all
    you need", NeurIPS 2017.
    """

    start: float = attrs.field(converter=to_float, validator=real)
    timescale: int = attrs.field(validator=count)

    def _at(self, update: Any) -> Any:
        return self.start * apply("sqrt", self.timescale / (self.timescale + clip(update, 0, None)))


@SCHEDULE_REGISTRY.register
@attrs.frozen
class step(Schedule):
    """``start``, multiplied by ``factor`` (0 < factor <= 1) after every ``every`` updates."""

    start: float = attrs.field(converter=to_float, validator=real)
    every: int = attrs.field(validator=count)
    factor: float = attrs.field(converter=to_float, validator=positive)

    def __attrs_post_init__(self) -> None:
        if self.factor > 1:
            raise InvalidValueError(
                f"factor of step is {self.factor}; expected 0 < factor <= 1. Write exponential(...) to grow."
            )

    def _at(self, update: Any) -> Any:
        return self.start * power(self.factor, clip(update, 0, None) // self.every)


def _to_floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(to_float(value) for value in _to_tuple(values))


def _to_tuple(values: Iterable[Any]) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise InvalidTypeError(
            f"an argument of piecewise is {values!r}; expected two lists of numbers. "
            "Write piecewise([0.1, 0.01], [1000])."
        ) from None


@SCHEDULE_REGISTRY.register
@attrs.frozen
class piecewise(Schedule):
    """``values[0]``, and from update ``boundaries[i]`` on ``values[i + 1]``.

    Attributes:
        values: one more than there are boundaries.
        boundaries: updates, the first >= 1, each larger than the one before.
    """

    values: tuple[float, ...] = attrs.field(converter=_to_floats)
    boundaries: tuple[int, ...] = attrs.field(converter=_to_tuple)

    def __attrs_post_init__(self) -> None:
        for i, value in enumerate(self.values):
            check_real(f"values[{i}] of piecewise", value)
        for i, boundary in enumerate(self.boundaries):
            check_count(f"boundaries[{i}] of piecewise", boundary, 1)
        if any(a >= b for a, b in pairwise(self.boundaries)):
            raise InvalidValueError(
                f"boundaries of piecewise are {self.boundaries}; expected each larger than the one before."
            )
        if len(self.values) != len(self.boundaries) + 1:
            raise InvalidValueError(
                f"piecewise has {len(self.values)} values and {len(self.boundaries)} boundaries; "
                "expected one value more than boundaries."
            )

    def _at(self, update: Any) -> Any:
        value = where(update >= 0, self.values[0], self.values[0])
        for boundary, following in zip(self.boundaries, self.values[1:], strict=True):
            value = where(update >= boundary, following, value)
        return value


@SCHEDULE_REGISTRY.register
@attrs.frozen
class warmup(Schedule):
    """A straight line from ``start`` to ``schedule(0)`` over ``num_updates`` updates, then ``schedule``.

    ``schedule`` is shifted: it begins, at its own update 0, where the line ends.

    Attributes:
        schedule: what follows; its first value is asked for once, here.
        num_updates: >= 0; with 0 there is no line.
        start: the value at update 0. A learning rate of 0.0 makes the first update change nothing.
    """

    schedule: Callable[[Any], Any]
    num_updates: int = attrs.field()
    start: float = attrs.field(default=0.0, converter=to_float, validator=real)
    _target: float = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        check_schedule("schedule of warmup", self.schedule)
        check_count("num_updates of warmup", self.num_updates, 0)
        first = self.schedule(0)
        target = float(first) if hasattr(first, "__float__") else first  # another library's may give an array
        check_real("schedule(0) of warmup", target)
        object.__setattr__(self, "_target", target)

    def _at(self, update: Any) -> Any:
        update = clip(update, 0, None)  # without a line there is no start to hold before 0
        line = _line(self.start, self._target, _fraction(update, max(self.num_updates, 1)))
        after = self.schedule(clip(update, self.num_updates, None) - self.num_updates)
        return where(update >= self.num_updates, after, line)


def _to_parts(
    parts: Iterable[tuple[int, Callable[[Any], Any]]],
) -> tuple[tuple[int, Callable[[Any], Any]], ...]:
    try:
        return tuple((num_updates, schedule) for num_updates, schedule in parts)
    except (TypeError, ValueError):
        raise InvalidTypeError(
            f"parts of chain is {parts!r}; expected pairs (num_updates, schedule). "
            "Write chain([(100, constant(0.1)), (900, cosine(0.1, 900))])."
        ) from None


@SCHEDULE_REGISTRY.register
@attrs.frozen
class chain(Schedule):
    """Each part's schedule for its number of updates, one after the other, then the last part's end.

    Every schedule begins at its own update 0. At the update where two parts meet the later one speaks; after
    all of them the value is what the last schedule says at its part's ``num_updates``.

    Attributes:
        parts: pairs ``(num_updates, schedule)``, at least one, each ``num_updates`` >= 1.
    """

    parts: tuple[tuple[int, Callable[[Any], Any]], ...] = attrs.field(converter=_to_parts)

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            raise InvalidValueError("parts of chain is empty; expected at least one pair (num_updates, schedule).")
        for i, (num_updates, schedule) in enumerate(self.parts):
            check_count(f"num_updates of chain part {i}", num_updates, 1)
            check_schedule(f"schedule of chain part {i}", schedule)

    def _at(self, update: Any) -> Any:
        num_updates, schedule = self.parts[0]
        value = schedule(clip(update, 0, num_updates))
        begin = num_updates
        for num_updates, schedule in self.parts[1:]:
            local = clip(update, begin, begin + num_updates) - begin
            value = where(update >= begin, schedule(local), value)
            begin += num_updates
        return value
