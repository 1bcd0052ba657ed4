"""Arithmetic that Python numbers, NumPy arrays and traced arrays share.

Nothing here branches on the value of an array, so a formula written with these functions can stand inside a
compiled function. Scalars and NumPy arrays agree bit for bit: NumPy's own vectorized functions differ from
:mod:`math` in the last bit, and from processor to processor, so its arrays go through :mod:`math` element by
element.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidTypeError

__all__ = ["apply", "clip", "operand", "power", "where"]


def operand(value: Any, what: str) -> Any:
    """Return ``value`` as what to calculate with: a number, a float64 NumPy array, or another library's.

    Raises:
        InvalidTypeError: it is neither a number nor an array with ``__array_namespace__``; ``what`` names it.
    """
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        array: npt.NDArray[np.float64] = np.asarray(value, np.float64)  # small integers would wrap around
        return array if array.ndim else float(array)
    if hasattr(value, "__array_namespace__"):
        return value
    raise InvalidTypeError(
        f"{what} is {value!r}; expected a number, or an array with __array_namespace__. Pass int({what})."
    )


def clip(value: Any, low: float, high: float | None) -> Any:
    """Return ``value`` held within ``[low, high]``; None is no upper limit."""
    if isinstance(value, (int, float)):
        return max(value, low) if high is None else min(max(value, low), high)
    return _namespace(value).clip(value, low, high)


def where(condition: Any, chosen: Any, other: Any) -> Any:
    """Return ``chosen`` where ``condition`` holds, ``other`` elsewhere."""
    if isinstance(condition, (bool, np.bool_)):
        return chosen if condition else other
    return _namespace(condition).where(condition, chosen, other)


def apply(name: str, value: Any) -> Any:
    """Return the function that both :mod:`math` and array namespaces call ``name`` of every element."""
    if isinstance(value, (int, float)):
        return getattr(math, name)(value)
    if _is_ndarray(value):
        return np.asarray(np.frompyfunc(getattr(math, name), 1, 1)(value), np.float64)
    return getattr(_namespace(value), name)(value)


def power(base: Any, exponent: Any) -> Any:
    """Return ``base ** exponent``, elementwise."""
    if _is_ndarray(base) or _is_ndarray(exponent):
        return np.asarray(np.frompyfunc(math.pow, 2, 1)(base, exponent), np.float64)
    return base**exponent


def _is_ndarray(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _namespace(array: Any) -> Any:
    return np if _is_ndarray(array) else array.__array_namespace__()
