"""What a user says about a data set: which one it is, and how to load it."""

from __future__ import annotations

import builtins
import difflib
import enum
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.registry import Registry
from parhelion.sampling import ResumableSamplerType
from parhelion.seeds import get_default_seed

from ._collate import collate
from ._protocols import CollateFn

__all__ = [
    "COLLATE_FN_REGISTRY",
    "DATASET_REGISTRY",
    "DataLoaderParams",
    "Dataset",
    "DatasetSplit",
    "check_known",
    "create_collate_fn",
    "create_dataset",
]

DATASET_REGISTRY: Registry[Callable[..., Any]] = Registry("dataset")
"""Datasets by name: classes, or functions that return one."""

COLLATE_FN_REGISTRY: Registry[Callable[..., Any]] = Registry("collate function")
"""Collate functions by name, and classes whose instances are collate functions."""

COLLATE_FN_REGISTRY.register(collate, name="default")


def create_dataset(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return what the dataset registered as ``type_name`` gives for the arguments.

    Raises:
        UnknownNameError: nothing has that name.
    """
    return DATASET_REGISTRY.get(type_name)(*args, **kwargs)


def create_collate_fn(type_name: str, *args: Any, **kwargs: Any) -> CollateFn:
    """Return the collate function registered as ``type_name``.

    A class is constructed with the arguments. A function is returned as it is, or, where there are arguments,
    with these bound to it.

    Raises:
        UnknownNameError: nothing has that name.
        InvalidTypeError: the function cannot be called with these arguments and a list of records, or what
            the class makes cannot be called.
    """
    entry = COLLATE_FN_REGISTRY.get(type_name)
    if inspect.isclass(entry):
        made = entry(*args, **kwargs)
        if not callable(made):
            raise InvalidTypeError(
                f"collate function {type_name!r} is a {entry.__name__}, which cannot be called; expected an "
                "object that takes a list of records. Give the class a __call__(records)."
            )
        return made
    if not args and not kwargs:
        return entry
    bound = functools.partial(entry, *args, **kwargs)
    try:
        inspect.signature(bound).bind([])
    except (TypeError, ValueError) as error:
        given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        raise InvalidTypeError(
            f"arguments of collate function {type_name!r} are ({given}), which leave no way to call it with "
            f"the list of records ({error}); expected arguments for its other parameters. Pass them by name."
        ) from error
    return bound


class DatasetSplit(enum.Enum):
    """What a data set is for."""

    TRAIN = 0
    VALID = 1
    TEST = 2

    @staticmethod
    def from_str(label: str) -> DatasetSplit:
        """Return the split called ``label``: "train", "valid" or "test".

        Raises:
            InvalidValueError: (a ValueError) ``label`` is none of them.
        """
        for split in DatasetSplit:
            if label == split.name.lower():
                return split
        raise InvalidValueError(f"dataset split is {label!r}; expected 'train', 'valid' or 'test'.")


@attrs.define
class DataLoaderParams:
    """How to load a data set; a loader is made from the values these have at that moment.

    Attributes:
        random_seed: keys the order and each sample's randomness.
        batch_size: records per rank and batch.
        shuffle: whether each epoch has a random order.
        num_workers: worker processes; with 0 the records are fetched in the loop's process.
        pin_memory: whether to copy batches to page-locked memory, where there is an accelerator to do so for.
        drop_last: whether to leave out a last batch that is incomplete.
        debug_mode: whether to load without workers whatever ``num_workers`` says.
        is_distributed: whether ranks share the data; None asks the trainer, or whether a process group is up.
        sampler: a resumable sampler, or the name of a registered one; None chooses by the flags above.
        collate_fn: makes a batch of a list of records, or the name of a registered function; None stacks
            arrays.
        options: the loader's other arguments by name, such as ``{"prefetch_factor": 4}``.
    """

    random_seed: int = attrs.field(factory=get_default_seed)
    batch_size: int = 1
    shuffle: bool = False
    num_workers: int = 0
    pin_memory: bool = True
    drop_last: bool = False
    debug_mode: bool = False
    is_distributed: bool | None = None
    sampler: ResumableSamplerType | str | None = None
    collate_fn: CollateFn | str | None = None
    options: builtins.dict[str, Any] = attrs.Factory(builtins.dict[str, Any])

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name; they are the same objects, ``options`` apart, which is a copy."""
        table = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return table | {"options": dict(self.options)}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> DataLoaderParams:
        """Return the params with the values of ``table``, and the defaults for what it does not have.

        Raises:
            InvalidValueError: a key is unknown; a near match is named.
        """
        check_known(table, [field.name for field in attrs.fields(cls)], "data loader parameter")
        values: builtins.dict[str, Any] = {**table, "options": dict(table.get("options") or {})}
        return cls(**values)


@attrs.define
class Dataset:
    """A data set and how to load it.

    Attributes:
        dataset: the data set itself.
        params: how to load it.
    """

    dataset: Any
    params: DataLoaderParams

    def dict(self) -> builtins.dict[str, Any]:
        """Return the arguments of ``create_dataloader``: dataset, params, and the options beside them."""
        table = self.params.to_dict()
        options = table.pop("options")
        return {"dataset": self.dataset, **table, **options}


def check_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Do nothing if all names are known.

    Raises:
        InvalidValueError: one is not; a near match is named.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else " Remove it."
            raise InvalidValueError(f"{what} is {name!r}; expected one of {', '.join(known)}.{guess}")
