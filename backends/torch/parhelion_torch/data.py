"""Samplers and loaders as torch's users expect them, over the core's samplers and its engine."""

from __future__ import annotations

import inspect
from typing import Any, Final, Self, cast

import attrs
import torch
import torch.utils.data
from torch.utils.data import IterableDataset

from parhelion.data import (
    SAMPLER_OPTIONS,
    Collate,
    CollateFn,
    DataLoaderParams,
    DatasetSplit,
    Fetch,
    Framework,
    Loader,
    LoaderStats,
    StreamCursor,
    as_source,
    check_known,
    check_params,
    choose_sampler,
    count_batches,
    create_stream_loader,
    get_collate_fn,
    is_stream,
    take_ahead,
)
from parhelion.errors import InvalidValueError
from parhelion.generators import LoadedGenerators
from parhelion.sampling import ResumableSamplerType

from .placement import pin
from .samplers import SAMPLER_REGISTRY, get_group
from .sources import as_batched
from .stacking import collate, to_tensors
from .torch_workers import TorchEngine

__all__ = ["DataLoader", "collate", "create_dataloader", "loader_for"]

# What concerns workers only, and what is decided here.
_WORKER_OPTIONS: Final = (
    "multiprocessing_context",
    "persistent_workers",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
    "worker_type",
)
_DECIDED: Final = {
    "batch_sampler": "Pass sampler=, which says what is in each batch.",
    "generator": "Pass random_seed=, which keys all that is random.",
    "in_order": "Batches come in order, so that a run can be resumed between any two.",
}
_DEFAULTS: Final = (("batch_sampler", None), ("generator", None), ("in_order", True))
_FRAMEWORK: Final = Framework(finish=to_tensors, companions={"torch": "parhelion_torch.stacking"})
_PINNED_AHEAD: Final = 3  # batches: in use, ready, and being copied


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
) -> tuple[DataLoader, ResumableSamplerType]:
    """Return a ``torch.utils.data.DataLoader`` that can begin anywhere, and the sampler that says where.

    The loader's iterations begin at ``sampler.position``. Batches, and what is drawn while they are made, are
    the same with any number of workers, and making them leaves torch's, NumPy's and Python's generators where
    they were.

    Without a ``sampler`` it is the distributed one where ranks share the data, else the random one for
    ``shuffle``, else the sequential one. Without a ``collate_fn`` numbers and arrays are stacked to tensors:
    float -> float32, int -> int64, bool -> bool, what has a dtype keeps it.

    Args:
        dataset: a map dataset: ``__len__``, and ``__getitem__`` or ``__getitems__``; arrays by name, and what else
            :func:`parhelion.data.as_batched` knows; or a stream.
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
        options: other arguments of :class:`DataLoader`, such as ``prefetch_factor``, ``worker_type``, ``global_rng``,
            and ``sampler_options``, the arguments of a sampler that is given by its name.

    Raises:
        InvalidTypeError: (a TypeError) the sampler is not resumable, or an argument has a type that cannot work.
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


def loader_for(dataset: Any, split: DatasetSplit, params: DataLoaderParams) -> tuple[DataLoader, ResumableSamplerType]:
    """Return what :func:`create_dataloader` does, for a data set and its params; it raises the same."""
    loader = DataLoader.from_params(dataset, split, params)
    return loader, loader.sampler


class DataLoader(torch.utils.data.DataLoader[Any]):
    """A ``torch.utils.data.DataLoader`` that can begin anywhere, on the engine of :class:`parhelion.data.Loader`.

    It takes torch's arguments, has its attributes, and gives the same batches with any number of workers, from
    ``sampler.position`` on. Making them leaves torch's, NumPy's and Python's generators where they were.

    Workers are fresh processes that share the memory of batches with this one; they load torch only if the dataset or a
    function does. They outlive an epoch unless ``persistent_workers=False``, and end with :meth:`close`, at the end of
    a ``with`` block, or with the loader.

    Args:
        dataset: a map dataset: ``__len__``, and ``__getitem__`` or ``__getitems__``; what
            :func:`parhelion.data.as_batched` knows, such as arrays by name; or a stream.
        batch_size: records per rank and batch.
        shuffle: whether each epoch has a random order; of a stream, its shards.
        sampler: a resumable sampler, or the name of a registered one.
        num_workers: workers; 0 loads in this process.
        collate_fn: makes a batch of a list of records, or the name of a registered function; None makes tensors: float
            -> float32, int -> int64, bool -> bool, what has a dtype keeps it.
        pin_memory: whether to copy batches to page-locked memory, where there is an accelerator; a thread does so.
        drop_last: whether to leave out an incomplete last batch.
        timeout: seconds to wait for a worker's batch; 0 waits as long as it takes.
        worker_init_fn: called in each worker with its number, from 0, before its first batch.
        multiprocessing_context: how torch's own workers are started; for ``worker_type="torch"``.
        prefetch_factor: batches that each worker makes ahead; None is 2, and up to 8 where they are quick to make.
        persistent_workers: whether workers outlive an epoch; None means that they do, torch's own that they do not.
        worker_type: "process", "thread" (see :class:`parhelion.data.Loader`), or "torch" for torch's own workers.
        random_seed: keys the order and each sample's randomness.
        split: what the data is for; evaluation splits never repeat a record.
        is_distributed: whether ranks share the data; None means if a process group is up.
        global_rng: what keys the generators of torch, NumPy and Python while records are fetched: "batch", "sample" or
            "off".
        options: other arguments of torch's ``DataLoader``; and ``sampler_options``, those of a sampler that is given by
            its name.

    Attributes:
        sampler: says where the next iteration begins; of a stream, its cursor.
        engine: what makes the batches.

    Raises:
        InvalidTypeError: (a TypeError) the sampler is not resumable, or an argument has a type that cannot work.
        InvalidValueError: (a ValueError) an argument has a value that cannot work, or an option is unknown.
        UnknownNameError: nothing is registered under a name.
    """

    sampler: Any
    engine: Any

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: ResumableSamplerType | str | None = None,
        *,
        num_workers: int = 0,
        collate_fn: CollateFn | str | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        random_seed: int = 6691,
        split: DatasetSplit = DatasetSplit.TRAIN,
        is_distributed: bool | None = False,
        **options: Any,
    ) -> None:
        self._build(
            dataset,
            split,
            DataLoaderParams(
                random_seed=random_seed,
                batch_size=batch_size,
                shuffle=shuffle,
                num_workers=num_workers,
                pin_memory=pin_memory,
                drop_last=drop_last,
                is_distributed=is_distributed,
                sampler=sampler,
                collate_fn=collate_fn,
                options=options,
            ),
        )

    @classmethod
    def from_params(cls, dataset: Any, split: DatasetSplit, params: DataLoaderParams) -> Self:
        """Return the loader of a data set for what its params ask for; it raises what the constructor does."""
        loader = cls.__new__(cls)
        loader._build(dataset, split, params)  # noqa: SLF001 - it is this class
        return loader

    def _build(self, dataset: Any, split: DatasetSplit, params: DataLoaderParams) -> None:
        world, rank = get_group()
        if params.is_distributed is None:
            params = attrs.evolve(params, is_distributed=world > 1)
        if is_stream(dataset):
            self._build_stream(dataset, split, params, rank, world)
            return
        given = _check_options(params)
        collate_fn = get_collate_fn(params.collate_fn)
        source = as_source(dataset, collate_fn, as_batched)
        sampler = choose_sampler(source, params, split, rank=rank, world=world, registry=SAMPLER_REGISTRY)
        worker_type = given.pop("worker_type", "process")
        shared = _choose_options(given, params, worker_type)
        fetching: dict[str, Any] = {
            "split": split,
            "seed": params.random_seed,
            "collate_fn": collate_fn,
            "global_rng": given.pop("global_rng", None),
        }
        if worker_type == "torch":
            self.engine = TorchEngine(_make_fetch(source, fetching), sampler, params.random_seed, shared)
        else:
            # None is 2 to torch; the engine may look further ahead then.
            fetching["prefetch_factor"] = given.get("prefetch_factor")
            self.engine = _open_engine(source, sampler, fetching, worker_type, shared)
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - torch leaves some of it untyped
            dataset,
            batch_size=sampler.batch_size,
            sampler=sampler,
            drop_last=params.drop_last,
            collate_fn=collate_fn or collate,
            generator=torch.Generator(),  # nobody draws from it
            **shared,
        )

    def _build_stream(self, dataset: Any, split: DatasetSplit, params: DataLoaderParams, rank: int, world: int) -> None:
        self.engine, cursor = create_stream_loader(
            dataset, split, params, rank=rank, world=world, default_collate=collate
        )
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - as above
            dataset,
            batch_size=params.batch_size,
            sampler=None if isinstance(dataset, IterableDataset) else cast("Any", cursor),
            num_workers=self.engine.num_workers,
            collate_fn=self.engine.collate_fn,
            pin_memory=params.pin_memory and _can_pin(),
            generator=torch.Generator(),
        )
        object.__setattr__(self, "sampler", cursor)  # torch lets a stream have none

    def __iter__(self) -> Any:
        if not self.pin_memory or isinstance(self.engine, TorchEngine):
            return iter(self.engine)  # torch's own pins by itself
        if self.is_thread_bound:
            return map(pin, self.engine)
        return take_ahead(iter(self.engine), pin, _PINNED_AHEAD)

    def __len__(self) -> int:
        if not isinstance(self.sampler, StreamCursor):
            return count_batches(self.sampler)
        if self.sampler.size is None:
            raise TypeError("the length of a stream's loader is known with options={'records_per_epoch': ...} only")
        return self.sampler.shard.num_batches(self.sampler.size)

    def check_worker_number_rationality(self) -> None:
        """Do nothing; torch's own warns of more workers than cores, which may all wait for files. See :meth:`stats`."""

    @property
    def is_thread_bound(self) -> bool:
        """Whether batches are made in the thread that uses them: records may draw from this process's generators."""
        return bool(getattr(self.engine, "is_thread_bound", not self.num_workers))

    def stats(self) -> LoaderStats:
        """Return where the time of the iteration that began last has gone; torch's own workers count nothing."""
        return LoaderStats() if isinstance(self.engine, TorchEngine) else self.engine.stats()

    def close(self) -> None:
        """End the workers, if there are any; an iteration that is not over fails, another starts new ones."""
        if not isinstance(self.engine, TorchEngine):
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _choose_options(given: dict[str, Any], params: DataLoaderParams, worker_type: str) -> dict[str, Any]:
    """Return torch's arguments about how the loader works."""
    num_workers = 0 if params.debug_mode else params.num_workers
    options: dict[str, Any] = {
        name: value for name, value in given.items() if name not in ("global_rng", SAMPLER_OPTIONS)
    }
    if num_workers:
        defaults = {"prefetch_factor": 2, "persistent_workers": worker_type != "torch"}
        options |= {name: value for name, value in defaults.items() if options.get(name) is None}
    return {**options, "num_workers": num_workers, "pin_memory": params.pin_memory and _can_pin()}


def _make_fetch(dataset: Any, fetching: dict[str, Any]) -> Fetch:
    """Return what torch's own workers make batches with, already of tensors."""
    if isinstance(fetching["collate_fn"], Collate):
        fetching = fetching | {"collate_fn": fetching["collate_fn"].followed_by(to_tensors)}
    fetch = Fetch(dataset, default_collate=collate, generators=LoadedGenerators(), **fetching)
    if fetch.collate_fn is None:
        fetch.collate_fn = to_tensors
    return fetch


def _open_engine(
    dataset: Any,
    sampler: ResumableSamplerType,
    fetching: dict[str, Any],
    worker_type: str,
    shared: dict[str, Any],
) -> Loader:
    context = shared.pop("multiprocessing_context", None)
    if context not in (None, "spawn"):
        raise InvalidValueError(
            f"multiprocessing_context is {context!r} and worker_type {worker_type!r}; expected it left out: workers "
            "are fresh processes. Pass worker_type='torch' to have torch start them."
        )
    names = ("persistent_workers", "timeout", "worker_init_fn")
    options = {name: shared[name] for name in names if shared["num_workers"] and name in shared}
    return Loader(
        dataset,
        sampler,
        num_workers=shared["num_workers"],
        worker_type=worker_type,
        framework=_FRAMEWORK,
        **fetching,
        **options,
    )


def _check_options(params: DataLoaderParams) -> dict[str, Any]:
    """Return the options without those that concern workers, where debugging does without workers."""
    check_params(params)
    # torch's own defaults say nothing.
    options = {name: value for name, value in params.options.items() if (name, value) not in _DEFAULTS}
    for name in options:
        if name in _DECIDED:
            raise InvalidValueError(f"option {name!r} of the loader is given; expected it left out. {_DECIDED[name]}")
    elsewhere = {"dataset", *_DECIDED, *(field.name for field in attrs.fields(DataLoaderParams))}
    known = set(inspect.signature(torch.utils.data.DataLoader).parameters) - elsewhere
    check_known(options, {*known, "global_rng", "worker_type", SAMPLER_OPTIONS}, "option of the loader")
    if params.debug_mode:
        options = {name: value for name, value in options.items() if name not in _WORKER_OPTIONS}
    return options


def _can_pin() -> bool:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type != "mps"
