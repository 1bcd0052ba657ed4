"""Records to one batch of tensors."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any, Final, cast

import numpy as np
import torch
from torch.utils.data import get_worker_info

from parhelion.data import collate as collate_records
from parhelion.data import stack_arrays

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
    if get_worker_info() is None:
        return _from_numpy(stack_arrays(values))
    shared: list[torch.Tensor] = []

    def empty(shape: tuple[int, ...], dtype: Any) -> Any:
        shared.append(_make_shared(shape, _from_numpy(np.empty(0, dtype)).dtype))
        return shared[0].numpy()

    stacked = stack_arrays(values, empty=empty)
    return shared[0] if shared else _from_numpy(stacked)


def _stack_tensors(tensors: list[torch.Tensor]) -> torch.Tensor:
    first = tensors[0]
    if list(map(_get_dtype, tensors)).count(first.dtype) != len(tensors):
        raise TypeError("the dtypes differ")
    in_worker = get_worker_info() is not None
    many = first.numel() * len(tensors) >= _PARALLEL_ELEMENTS
    if first.device.type != "cpu" or not (in_worker or (many and torch.get_num_threads() > 1)):
        return torch.stack(tensors)
    try:
        if in_worker:
            return torch.stack(tensors, out=_make_shared((len(tensors), *first.shape), first.dtype))
        return _stack_quietly(tensors)
    except (TypeError, RuntimeError):
        # NumPy has no such dtype, or a gradient is wanted, or it is no ordinary tensor.
        return torch.stack(tensors)


def _make_shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor in shared memory: a worker sends it without a copy. torch does the same."""
    kind = cast("Any", torch.UntypedStorage)
    storage = kind._new_shared(math.prod(shape) * dtype.itemsize)  # noqa: SLF001 - there is no public way
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def _stack_quietly(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stack in one thread: torch's others would spin on afterwards, in the process that trains."""
    count = tensors[0].numel()
    if count > _PARALLEL_ELEMENTS // 4:
        return _from_numpy(stack_arrays([tensor.numpy() for tensor in tensors]))
    out = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype)
    step = (_PARALLEL_ELEMENTS - 1) // count
    for start in range(0, len(tensors), step):
        torch.stack(tensors[start : start + step], out=out[start : start + step])
    return out


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
