"""One row: the step and its values, checked and made plain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from parhelion.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

# NumPy's are no subclass of int.
_INTEGERS: tuple[type[Any], ...] = (int, np.integer)


def check_step(step: Any) -> int:
    """Return ``step`` as a plain int >= 0.

    Raises:
        InvalidTypeError: it is no integer.
        InvalidValueError: it is negative.
    """
    if isinstance(step, bool) or not isinstance(step, _INTEGERS):
        raise InvalidTypeError(f"step is {step!r}; expected an integer >= 0.")
    if step < 0:
        raise InvalidValueError(f"step is {step}; expected an integer >= 0. A fresh run is announced with None.")
    return int(step)


def plain_row(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values as Python numbers, under the same names and in the same order.

    Integers stay integers; NumPy's numbers, and 0-d arrays of any framework, become what Python would make of
    them.

    Raises:
        InvalidTypeError: a name is no string or a value no real number.
        InvalidValueError: a value is named ``step``.
    """
    row: dict[str, float] = {}
    for name, value in values.items():
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users have no checker
            raise InvalidTypeError(f"the name of a value is {name!r}; expected a string.")
        if name == "step":
            raise InvalidValueError(
                "a value is named 'step'; expected any other name, that one is the row's own. Rename the value."
            )
        row[name] = _number(name, value)
    return row


def _number(name: str, value: Any) -> float:
    if isinstance(value, _INTEGERS):
        return int(value)
    # float() also takes text, and the real part of NumPy's complex numbers; a row must not.
    if hasattr(value, "__float__") and not isinstance(value, (str, bytes, np.complexfloating)):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise InvalidTypeError(
        f"the value {name!r} is {value!r}; expected a real number. Log one number per name, such as its mean."
    )
