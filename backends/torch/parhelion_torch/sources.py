"""Datasets of tensors, gathered by a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from parhelion.data import as_batched as as_batched_by_the_core

__all__ = ["TensorRows", "as_batched"]

# The stub does not say what it takes.
_from_numpy: Callable[[Any], Tensor] = cast("Any", torch).from_numpy
_get_type: Callable[[Any], Any] = type


class TensorRows:
    """The records of a ``TensorDataset``, of which a batch is selected at once, where the tensors are.

    It is for what NumPy has no arrays for: tensors on a device, or of bfloat16. Others are gathered by NumPy, which
    takes as long and wakes none of torch's threads.

    Args:
        tensors: of shapes (records, ...).
    """

    returns_batches = True
    global_rng = "off"
    is_table = True

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index].clone() for tensor in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        rows = _from_numpy(np.asarray(indices, np.int64))
        return tuple(tensor.index_select(0, rows.to(tensor.device)) for tensor in self.tensors)


def as_batched(dataset: Any) -> Any:
    """Return what the core's ``as_batched`` does, and a quicker dataset for every ``TensorDataset``.

    Batches are NumPy's where NumPy can gather them; the loader makes tensors of them, in the same memory.

    Raises:
        InvalidTypeError: an array holds objects, or a column has a type that has no place in a batch.
        InvalidValueError: arrays differ in their first axes, or a column has a null.
    """
    found = as_batched_by_the_core(dataset)
    return TensorRows(*found.tensors) if _get_type(found) is TensorDataset else found
