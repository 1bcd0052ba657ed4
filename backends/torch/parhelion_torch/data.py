"""Samplers and loaders as torch's users expect them, over the core's samplers and its fetch."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Final

import attrs
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, get_worker_info

from parhelion.data import (
    CollateFn,
    DataLoaderParams,
    DatasetSplit,
    Fetch,
    check_known,
    check_params,
    choose_sampler,
    count_batches,
    get_collate_fn,
)
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.generators import LoadedGenerators
from parhelion.sampling import FetchRequest, ResumableSamplerType
from parhelion.seeds import derive

from .samplers import SAMPLER_REGISTRY, get_group
from .stacking import collate, to_tensors

__all__ = ["collate", "create_dataloader", "loader_for"]

# What concerns workers only, and what this function decides itself.
_WORKER_OPTIONS: Final = (
    "multiprocessing_context",
    "persistent_workers",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
)
_DECIDED: Final = {
    "batch_sampler": "Pass sampler=, which says what is in each batch.",
    "generator": "Pass random_seed=, which keys all that is random.",
    "in_order": "Batches come in order, so that a run can be resumed between any two.",
}


def create_dataloader(  # noqa: PLR0917 - the reference page fixes the arguments
    dataset: Any,
    random_seed: int = 6691,
    batch_size: int = 1,
    shuffle: bool = False,
    num_workers: int = 0,
    pin_memory: bool = True,
    drop_last: bool = False,
    debug_mode: bool = False,
    is_distributed: bool | None = False,
    sampler: ResumableSamplerType | str | None = None,
    collate_fn: CollateFn | str | None = None,
    *,
    split: DatasetSplit = DatasetSplit.TRAIN,
    **options: Any,
) -> tuple[DataLoader[Any], ResumableSamplerType]:
    """Return a ``torch.utils.data.DataLoader`` that can begin anywhere, and the sampler that says where.

    The loader's iterations begin at ``sampler.position``. Batches, and what is drawn while they are made, are
    the same with any number of workers, and making them leaves torch's, NumPy's and Python's generators where
    they were.

    Without a ``sampler`` it is the distributed one where ranks share the data, else the random one for
    ``shuffle``, else the sequential one. Without a ``collate_fn`` numbers and arrays are stacked to tensors:
    float -> float32, int -> int64, bool -> bool, what has a dtype keeps it.

    Args:
        dataset: a map dataset: ``__len__``, and ``__getitem__`` or ``__getitems__``.
        random_seed: keys the order and each sample's randomness.
        batch_size: records per rank and batch.
        shuffle: whether each epoch has a random order.
        num_workers: worker processes; 0 loads in this one.
        pin_memory: whether to copy batches to page-locked memory, where there is an accelerator.
        drop_last: whether to leave out an incomplete last batch.
        debug_mode: whether to load in this process whatever ``num_workers`` says.
        is_distributed: whether ranks share the data; None means if a process group is up.
        sampler: a resumable sampler, or the name of a registered one. Its tail policy is set to the split's.
        collate_fn: makes a batch of a list of records, or the name of a registered function.
        split: what the data is for; evaluation splits never repeat a record.
        options: other arguments of torch's ``DataLoader``, and ``global_rng`` ("batch", "sample" or "off"):
            what keys the generators of torch, NumPy and Python while records are fetched.

    Raises:
        InvalidTypeError: (a TypeError) the sampler is not resumable, the dataset is a stream, or an argument
            has a type that cannot work.
        InvalidValueError: (a ValueError) an argument has a value that cannot work, or an option is unknown.
        UnknownNameError: nothing is registered under a name.
    """
    params = DataLoaderParams(
        random_seed=random_seed,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        pin_memory=pin_memory,
        drop_last=drop_last,
        debug_mode=debug_mode,
        is_distributed=is_distributed,
        sampler=sampler,
        collate_fn=collate_fn,
        options=options,
    )
    return loader_for(dataset, split, params)


def loader_for(
    dataset: Any, split: DatasetSplit, params: DataLoaderParams
) -> tuple[DataLoader[Any], ResumableSamplerType]:
    """Return what :func:`create_dataloader` does, for a data set and its params; it raises the same."""
    check_params(params)
    options = _check_options(params)
    global_rng = options.pop("global_rng", None)
    if issubclass(type(dataset), IterableDataset):
        raise InvalidTypeError(
            f"dataset is a {type(dataset).__name__}, which is an IterableDataset; expected a map dataset, "
            "with __getitem__ and __len__, since a stream cannot be entered at a position. Give it these, or "
            "return another loader and a resumable sampler from the data module."
        )
    world, rank = get_group()
    if params.is_distributed is None:
        params = DataLoaderParams.from_dict(params.to_dict() | {"is_distributed": world > 1})
    sampler = choose_sampler(dataset, params, split, rank=rank, world=world, registry=SAMPLER_REGISTRY)
    collate_fn = get_collate_fn(params.collate_fn)
    batched, returns_batches = _inspect(dataset)
    fetch = Fetch(
        dataset,
        split=split,
        seed=params.random_seed,
        collate_fn=to_tensors if collate_fn is None and returns_batches else collate_fn,
        default_collate=collate,
        generators=LoadedGenerators(),
        global_rng=global_rng,
        batched=batched,
        returns_batches=returns_batches,
    )
    return _PositionedLoader(fetch, sampler, params, options), sampler


class _PositionedLoader(DataLoader[Any]):
    """What a user sees is the dataset, sampler, batch size and collate function as given.

    What is iterated over is a second loader inside, whose batch sampler yields requests, so that the place of
    every sample comes to the worker with its index.
    """

    def __init__(
        self, fetch: Fetch, sampler: ResumableSamplerType, params: DataLoaderParams, options: dict[str, Any]
    ) -> None:
        # A generator of its own: torch would draw the workers' seeds from the one that training draws from.
        generator = torch.Generator()
        shared: dict[str, Any] = {
            **options,
            "num_workers": 0 if params.debug_mode else params.num_workers,
            "pin_memory": params.pin_memory and _can_pin(),
            "generator": generator,
        }
        if shared["num_workers"] and shared.get("multiprocessing_context") is None and _is_jax_running():
            shared["multiprocessing_context"] = _safe_context()
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - torch leaves some of it untyped
            fetch.dataset,
            batch_size=sampler.batch_size,
            sampler=sampler,
            drop_last=params.drop_last,
            collate_fn=fetch.collate_fn,
            **shared,
        )
        self._seed, self._own = params.random_seed, generator
        self._source = sampler
        requests: Any = _Requests(sampler)
        self._inside: DataLoader[Any] = DataLoader(
            _RequestedDataset(fetch), batch_sampler=requests, collate_fn=_get_whole, **shared
        )

    def __len__(self) -> int:
        return len(self._inside)

    def __iter__(self) -> Any:
        position = self._source.position
        self._own.manual_seed(derive(self._seed, "workers", position.epoch, position.offset))
        return _raise_failures(iter(self._inside))


class _Requests(Sampler[FetchRequest]):
    def __init__(self, sampler: ResumableSamplerType) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[FetchRequest]:
        return (request for request in self._sampler.requests() if len(request.indices))

    def __len__(self) -> int:
        return count_batches(self._sampler)


class _RequestedDataset(Dataset[Any]):
    """The user's dataset, asked by request; all else about it shows through, also to ``worker_init_fn``."""

    _fetch: Fetch

    def __init__(self, fetch: Fetch) -> None:
        object.__setattr__(self, "_fetch", fetch)

    def __getitems__(self, request: FetchRequest) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self._fetch(request)
        try:
            return self._fetch(request, in_worker=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
            return _Failure.of(error, worker.id)

    def __getitem__(self, index: int) -> Any:
        return self._fetch.dataset[index]

    def __len__(self) -> int:
        return len(self._fetch.dataset)

    def __getattr__(self, name: str) -> Any:
        # Without the check, unpickling would look for the fetch in the fetch.
        if name.startswith("__") or name == "_fetch":
            raise AttributeError(name)
        return getattr(self._fetch.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._fetch.dataset, name, value)


@attrs.frozen
class _Failure:
    """What a worker sends in place of a batch when it has none.

    torch's own raises an exception that refers to itself, and so to the iterator. That must not be left to
    the garbage collector: it finalizes the queues first, the workers never hear that they should end, and
    each is waited for five seconds.
    """

    kind: type[Exception]
    message: str

    @classmethod
    def of(cls, error: Exception, worker: int) -> _Failure:
        trace = "".join(traceback.format_exception(error))
        message = f"{error}\n\nIt was raised in worker process {worker}:\n{trace}"
        try:
            kind = pickle.loads(pickle.dumps(type(error)))  # noqa: S301 - our own bytes
            kind(message)
        except Exception:  # noqa: BLE001 - a type of any making
            return cls(RuntimeError, message)
        return cls(kind, message)


def _raise_failures(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if type(batch) is _Failure:
            # The traceback will hold what this frame holds, and the iterator should end now.
            del batches
            raise batch.kind(batch.message)
        yield batch


def _get_whole(batch: Any) -> Any:
    return batch


def _check_options(params: DataLoaderParams) -> dict[str, Any]:
    """Return the options without those that concern workers, where debugging does without workers."""
    options = dict(params.options)
    for name in options:
        if name in _DECIDED:
            raise InvalidValueError(f"option {name!r} of the loader is given; expected it left out. {_DECIDED[name]}")
    elsewhere = {"dataset", *_DECIDED, *(field.name for field in attrs.fields(DataLoaderParams))}
    known = set(inspect.signature(DataLoader).parameters) - elsewhere
    check_known(options, {*known, "global_rng"}, "option of the loader")
    if params.debug_mode:
        options = {name: value for name, value in options.items() if name not in _WORKER_OPTIONS}
    return options


def _inspect(dataset: Any) -> tuple[bool, bool]:
    """Return whether the dataset is asked for several records at once, and whether it stacks them itself."""
    while issubclass(type(dataset), Subset):
        # It has __getitems__ whether or not what it is a subset of has.
        dataset = dataset.dataset
    batched = callable(getattr(dataset, "__getitems__", None))
    return batched, batched and bool(getattr(dataset, "returns_batches", False))


def _is_jax_running() -> bool:
    """Return whether jax has started its threads in this process, told without importing it."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bool(bridge.backends_are_initialized())


def _safe_context() -> Any:
    """Return a way to start workers beside jax: a fork of a process with threads may wait for ever for one of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])  # or each worker would take most of a second to import it
    return context


def _can_pin() -> bool:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type != "mps"
