"""What is no dataset yet, and what has a quicker way than one record after the other, told by its looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from ._arrays import ArrayDataset
from ._huggingface import HuggingFaceDataset, is_huggingface
from ._protocols import CollateFn
from ._tables import ArrowDataset
from ._transforms import Collate, TransformedDataset
from ._trees import name_leaves

__all__ = ["as_batched", "as_source"]

_get_type: Callable[[Any], Any] = type
_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any


def as_batched(dataset: Any) -> Any:
    """Return a dataset that gathers whole batches, where ``dataset`` is of a known kind; anything else as it is.

    Known are: a NumPy array, and arrays in a dict by name, a tuple, a named tuple, an attrs or dataclass record; a
    ``pyarrow.Table``; a Hugging Face ``datasets.Dataset``; a torch ``TensorDataset`` whose tensors NumPy can share the
    memory of. A list stays a map dataset of its entries, and so does a tuple that has as many entries as its arrays
    rows, or more. Use it only where no collate function wants records.

    Raises:
        InvalidTypeError: an array holds objects, or a column has a type that has no place in a batch.
        InvalidValueError: arrays differ in their first axes, or a column has a null.
    """
    kind = _get_type(dataset)
    if _is_of(kind, "Table", "pyarrow."):
        return ArrowDataset(dataset)
    if is_huggingface(dataset):
        source = HuggingFaceDataset(dataset)
        return source if source.returns_batches else dataset
    if _is_of(kind, "TensorDataset", "torch.utils.data."):
        arrays = _share(dataset.tensors)
        return dataset if arrays is None else ArrayDataset(arrays)
    return ArrayDataset(dataset) if _is_arrays(dataset, kind) else dataset


def as_source(dataset: Any, collate_fn: CollateFn | None, recognize: Callable[[Any], Any] = as_batched) -> Any:
    """Return what a loader asks: one that gathers whole batches, if no collate function wants records.

    Args:
        dataset: a dataset, or arrays.
        collate_fn: the user's.
        recognize: :func:`as_batched`, or a backend's own.

    Raises:
        InvalidTypeError: as :func:`as_batched` does.
        InvalidValueError: likewise.
    """
    if collate_fn is None or _is(collate_fn, Collate):
        return recognize(dataset)
    # Arrays are no dataset of records by themselves.
    return TransformedDataset(as_batched(dataset)) if _is_arrays(dataset, _get_type(dataset)) else dataset


def _is_of(kind: type, name: str, module: str) -> bool:
    """Return whether it is that class and no derived one, which may do otherwise; nothing is imported for that."""
    return kind.__name__ == name and kind.__module__.startswith(module)


def _share(tensors: Any) -> tuple[Any, ...] | None:
    try:
        return tuple([tensor.numpy() for tensor in tensors])
    except (TypeError, RuntimeError):
        return None  # on another device, of a dtype that NumPy has not, or wanting a gradient


def _is_arrays(dataset: Any, kind: Any) -> bool:
    if _is(dataset, np.ndarray):
        return not np.ma.isMaskedArray(dataset) and dataset.dtype.kind != "O" and dataset.ndim > 0
    is_record = attrs.has(kind) or hasattr(kind, "__dataclass_fields__")
    is_dict = kind is dict and all(_is(key, str) for key in dataset)
    if not is_dict and not _is(dataset, tuple) and not (is_record and not hasattr(kind, "__getitem__")):
        return False
    leaves = name_leaves(dataset, lists=False)
    if not leaves or not all(_is(leaf, np.ndarray) and leaf.ndim for leaf in leaves.values()):
        return False
    is_plain = kind is tuple
    return not is_plain or min(map(len, leaves.values())) > len(dataset)
