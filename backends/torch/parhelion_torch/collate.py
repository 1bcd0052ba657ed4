"""Records to one batch of tensors."""

from __future__ import annotations

import copy
import dataclasses
import operator
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from parhelion.data import collate as collate_records
from parhelion.data import stack_arrays

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["collate", "to_tensors"]

# From as many elements on torch copies with several threads.
_PARALLEL_ELEMENTS: Final = 32768
# The stub does not say what it takes.
_from_numpy: Callable[[Any], torch.Tensor] = cast("Any", torch).from_numpy
_get_dtype = operator.attrgetter("dtype")
_get_type: Callable[[Any], Any] = type


def collate(records: list[Any]) -> Any:
    """Return one batch of tensors; the rules are those of the core's ``collate``.

    Raises:
        CollateError: the records do not fit together; the record, the sample index and the field are named.
    """
    return collate_records(records, stack=_stack_leaves)


def _stack_leaves(values: list[Any]) -> torch.Tensor:
    if isinstance(values[0], torch.Tensor):
        return _stack_tensors(values)
    return _from_numpy(stack_arrays(values))


def _stack_tensors(tensors: list[torch.Tensor]) -> torch.Tensor:
    first = tensors[0]
    if list(map(_get_dtype, tensors)).count(first.dtype) != len(tensors):
        raise TypeError("the dtypes differ")
    if first.numel() * len(tensors) >= _PARALLEL_ELEMENTS and torch.get_num_threads() > 1:
        # torch would wake its threads here, in the process that trains; they spin, and copying needs none.
        try:
            return _from_numpy(stack_arrays([tensor.numpy() for tensor in tensors]))
        except (TypeError, RuntimeError):
            # NumPy does not know the dtype or the layout, or a gradient is wanted.
            pass
    return torch.stack(tensors)


def to_tensors(batch: Any) -> Any:
    """Return a finished batch with tensors for its arrays, sharing their memory if it may be written to."""
    kind = _get_type(batch)
    if issubclass(kind, np.ndarray):
        return _from_numpy(batch if batch.flags.writeable and batch.flags.c_contiguous else batch.copy())
    if issubclass(kind, dict):
        return {key: to_tensors(value) for key, value in batch.items()}
    if hasattr(kind, "_fields"):
        return kind(*map(to_tensors, batch))
    if issubclass(kind, (list, tuple)):
        parts = [to_tensors(part) for part in batch]
        return parts if issubclass(kind, list) else tuple(parts)
    fields: Any = getattr(kind, "__attrs_attrs__", ())
    if hasattr(kind, "__dataclass_fields__"):
        fields = dataclasses.fields(kind)
    if fields:
        batch = copy.copy(batch)
        for field in fields:
            object.__setattr__(batch, field.name, to_tensors(getattr(batch, field.name)))
    return batch
