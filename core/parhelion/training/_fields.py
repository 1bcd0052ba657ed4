"""What the fields of a schedule may be: converters and validators with designed messages."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    import attrs

__all__ = ["check_count", "check_real", "check_schedule", "count", "positive", "real", "to_float"]


def to_float(value: Any) -> Any:
    """Return a number as a float, and anything else as it is, for the check that follows."""
    return value if isinstance(value, bool) or not isinstance(value, Real) else float(value)


def check_real(what: str, value: Any) -> None:
    """Raise unless ``value`` is a finite float."""
    if not isinstance(value, float):
        raise InvalidTypeError(f"{what} is {value!r}; expected a number.")
    if not math.isfinite(value):
        raise InvalidValueError(f"{what} is {value}; expected a finite number.")


def check_count(what: str, value: Any, minimum: int) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidTypeError(f"{what} is {value!r}; expected an integer >= {minimum}.")
    if value < minimum:
        raise InvalidValueError(f"{what} is {value}; expected an integer >= {minimum}.")


def check_schedule(what: str, value: Any) -> None:
    """Raise unless ``value`` can be called."""
    if not callable(value):
        raise InvalidTypeError(
            f"{what} is {value!r}; expected a schedule or another function of the update. "
            "Write constant(value) to hold one value."
        )


def real(schedule: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Validate a field that is a finite number."""
    check_real(f"{attribute.name} of {type(schedule).__name__}", value)


def positive(schedule: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Validate a field that is a finite number > 0."""
    real(schedule, attribute, value)
    if value <= 0:
        what = f"{attribute.name} of {type(schedule).__name__}"
        raise InvalidValueError(f"{what} is {value}; expected a number > 0.")


def count(schedule: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Validate a field that is an integer >= 1."""
    check_count(f"{attribute.name} of {type(schedule).__name__}", value, 1)
