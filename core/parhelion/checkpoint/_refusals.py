"""Why a value has no place in a checkpoint, and what to save in its stead."""

from __future__ import annotations

import datetime as dt
import enum
import types
from typing import Any

import numpy as np
import numpy.typing as npt

from ._types import exact_type, takes_fields

__all__ = ["refusal"]

_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
_PLAIN_BASES = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex)


def refusal(value: Any) -> tuple[str, str]:
    """Return what ``value`` is and a way out, both as they read in a message."""
    cls = exact_type(value)
    if issubclass(cls, _CODE):
        what = f"the class {value.__qualname__}" if issubclass(cls, type) else "a function"
        return what, "Save its name and look it up in a registry after loading."
    if issubclass(cls, np.ndarray):
        return _array_refusal(value)
    if issubclass(cls, np.void):
        return f"a NumPy scalar of {value.dtype}", "Save its fields as separate values (value.item())."
    if cls is dt.datetime:
        return f"a datetime in the time zone {value.tzinfo!r}", "Save value.astimezone(datetime.UTC)."
    return _class_refusal(cls)


def _class_refusal(cls: type[Any]) -> tuple[str, str]:
    name = cls.__qualname__
    if issubclass(cls, enum.Enum) or takes_fields(cls):
        way_out = f"Call parhelion.checkpoint.register_value_type({name}) where it is defined."
        return f"a value of the unregistered type {name}", way_out
    for base in _PLAIN_BASES:
        if issubclass(cls, base):
            return f"a {name}, a subclass of {base.__name__}", f"Save {base.__name__}(value)."
    return (
        f"a value of type {cls.__module__}.{name}",
        "Save its plain parts (a state_dict), or pass the backend's adapter if it is an array.",
    )


def _array_refusal(array: npt.NDArray[Any]) -> tuple[str, str]:
    if exact_type(array) is not np.ndarray:
        what = f"an array of the subclass {exact_type(array).__qualname__}"
        return what, "Save np.array(value), and apart from it what the subclass adds."
    if array.dtype.fields is not None:
        return f"a structured array of {array.dtype}", "Save one array per field, in a dict."
    if array.dtype.hasobject:
        return f"an array of {array.dtype}", "Save value.tolist(), or an array of numbers."
    return f"an array of {array.dtype}", "Save a view of it as unsigned integers (value.view(np.uint8))."
