"""Records to one batch of tensors, here and in worker processes."""

from __future__ import annotations

import functools
import logging
import operator
import pickle
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor

from parhelion.data import collate as collate_records
from parhelion.data import empty, register_leaves, stack_arrays

from .placement import map_leaves, to_tensor

__all__ = ["collate", "rebuild_tensor", "to_tensors"]

# From as many elements on torch copies with several threads, which spin on afterwards beside the loop.
_PARALLEL_ELEMENTS: Final = 32768
# The stub does not say what it takes.
_from_numpy: Callable[[Any], Tensor] = cast("Any", torch).from_numpy
_log = logging.getLogger("parhelion")
_get_dtype = operator.attrgetter("dtype")


def collate(records: list[Any]) -> Any:
    """Return one batch of tensors; the rules are those of the core's ``collate``.

    Raises:
        CollateError: the records do not fit together; the record, the sample index and the field are named.
    """
    return to_tensors(collate_records(records))


def to_tensors(batch: Any) -> Any:
    """Return a finished batch with tensors for its arrays, sharing their memory if it may be written to.

    Arrays of what torch has no dtype for, such as strings or dates, stay arrays.
    """
    return map_leaves(batch, to_tensor)


def _stack_tensors(tensors: list[Tensor]) -> Any:
    """Return an array, in memory that a worker shares with its parent; a tensor where NumPy has no such kind."""
    first = tensors[0]
    if list(map(_get_dtype, tensors)).count(first.dtype) != len(tensors):
        raise TypeError("the dtypes differ")
    dtype = _numpy_dtype(first.dtype)
    if dtype is not None:
        try:
            return _stack_in_array(tensors, dtype)
        except (TypeError, RuntimeError):
            pass  # a gradient is wanted, or it is no ordinary tensor
    return torch.stack(tensors)


def _stack_in_array(tensors: list[Tensor], dtype: Any) -> Any:
    first = tensors[0]
    if first.numel() * len(tensors) >= _PARALLEL_ELEMENTS and torch.get_num_threads() > 1:
        return stack_arrays([tensor.numpy() for tensor in tensors])
    out = empty((len(tensors), *first.shape), dtype)
    torch.stack(tensors, out=_from_numpy(out))
    return out


def _is_special(tensor: Tensor) -> bool:
    return tensor.requires_grad or tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_conj()


@functools.cache
def _numpy_dtype(dtype: torch.dtype) -> Any | None:
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        return None


def _reduce_tensor(tensor: Any) -> Any:
    """Return how a tensor is pickled: its bytes as a buffer, which a loader's processes share."""
    if _is_special(tensor) or tensor.is_neg() or tensor.is_quantized or not tensor.numel():
        return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if tensor.is_shared():
        _tell_shared()
    raw: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return rebuild_tensor, (pickle.PickleBuffer(raw), tensor.dtype, tuple(tensor.shape))


@functools.cache
def _tell_shared() -> None:
    # Cached, so that it is said once.
    _log.warning(
        "a tensor in shared memory is sent to a loader's workers as a copy: what is changed in it later they do not "
        "see; workers of worker_type='torch' do"
    )


def rebuild_tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that lies in a buffer."""
    if memoryview(buffer).readonly:
        buffer = bytearray(buffer)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


register_leaves(Tensor, stack=_stack_tensors, reduce=_reduce_tensor)
