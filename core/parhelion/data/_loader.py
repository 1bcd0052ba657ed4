"""The loader of this package's own: batches of NumPy arrays, made where the loop runs or in worker processes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from parhelion.generators import GlobalGenerators, LoadedGenerators
from parhelion.registry import Registry
from parhelion.sampling import SAMPLER_REGISTRY, ResumableSampler, ResumableSamplerType
from parhelion.seeds import check_seed, get_default_seed

from ._choice import check_params, choose_sampler, count_batches, get_collate_fn
from ._collate import collate
from ._fetch import Fetch
from ._params import DataLoaderParams, DatasetSplit, check_known
from ._protocols import CollateFn
from ._worker_options import OPTION_NAMES, WorkerOptions

if TYPE_CHECKING:
    from ._workers import Pool

__all__ = ["Loader", "create_loader"]


class Loader:
    """The batches of a dataset in a sampler's order, from the sampler's position to the end of its epoch.

    Each iteration reads the position when it begins, and none moves it, so several may run at once and one
    may be left early. ``len`` counts the batches of a whole epoch.

    Batches are the same with any number of workers. Each of these is a process of its own that starts with the
    first iteration and has a copy of the dataset as it is then; the arrays in that copy share their memory until
    they are written to. The workers end with :meth:`close`, at the end of a ``with`` block, with the loader, or
    with this process, however it ends.

    Args:
        dataset: has ``__getitem__`` or ``__getitems__``.
        sampler: says which records come when.
        split: what the data is for; part of the key of each sample's randomness.
        seed: the data seed; the default seed if None.
        collate_fn: makes a batch of a list of records; :func:`collate` if None.
        global_rng: how the process-wide generators are keyed: "batch" (the default), "sample" or "off".
        generators: the process-wide generators; Python's, NumPy's and, where loaded, torch's if None.
        num_workers: worker processes; with 0 the batches are made in this one.
        prefetch_factor: batches that each worker makes ahead, per iteration.
        persistent_workers: whether the workers outlive an iteration.
        timeout: seconds to wait for a worker's batch; 0 waits as long as it takes.
        worker_init_fn: called in each worker with its number, from 0, before its first batch.

    Raises:
        InvalidTypeError: the dataset cannot be indexed, or an argument has a type that cannot work.
        InvalidValueError: an argument has a value that cannot work.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: ResumableSampler,
        *,
        split: DatasetSplit = DatasetSplit.TRAIN,
        seed: int | None = None,
        collate_fn: CollateFn | None = None,
        global_rng: str | None = None,
        generators: GlobalGenerators | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        persistent_workers: bool = True,
        timeout: float = 0.0,
        worker_init_fn: Callable[[int], Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self._fetch = Fetch(
            dataset,
            split=split,
            seed=get_default_seed() if seed is None else check_seed(seed, "seed"),
            collate_fn=collate_fn,
            default_collate=collate,
            global_rng=global_rng,
            generators=LoadedGenerators() if generators is None else generators,
        )
        self._options = WorkerOptions(num_workers, prefetch_factor, persistent_workers, timeout, worker_init_fn)
        self._pool: Pool | None = None
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()  # also those of iterations that have their own

    @property
    def num_workers(self) -> int:
        """Worker processes; 0 if batches are made in this one."""
        return self._options.num_workers

    @property
    def batch_size(self) -> int:
        """Records per batch."""
        return self.sampler.batch_size

    @property
    def collate_fn(self) -> CollateFn | None:
        """What makes a batch of a list of records; None where the dataset returns batches."""
        return self._fetch.collate_fn

    def __len__(self) -> int:
        return count_batches(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # With Tail.MASK the last batch of a high rank may have no record.
        requests = (request for request in self.sampler.requests() if len(request.indices))
        if not self._options.num_workers:
            return (self._fetch(request) for request in requests)
        # Its imports cost 6 ms, and only those who use workers need them.
        from ._workers import Batches, Pool  # noqa: PLC0415

        pool = self._pool
        if pool is None or not pool.is_usable():
            pool = Pool(self._fetch, self._options)
            self._pools.add(pool)
        if self._options.persistent_workers:
            self._pool = pool
        return Batches(pool, requests, is_last=not self._options.persistent_workers)

    def close(self) -> None:
        """End the workers, if there are any; an iteration that is not over fails, another starts new ones."""
        self._pool = None
        for pool in [*self._pools]:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Processes cannot be copied.
        return {name: value for name, value in self.__dict__.items() if name not in {"_pool", "_pools"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool, self._pools = None, weakref.WeakSet()


def create_loader(
    dataset: Any,
    split: DatasetSplit,
    params: DataLoaderParams,
    *,
    rank: int = 0,
    world: int = 1,
    parts: int = 1,
    whole_tail: bool = False,
    registry: Registry[Callable[..., ResumableSamplerType]] = SAMPLER_REGISTRY,
    generators: GlobalGenerators | None = None,
) -> tuple[Loader, ResumableSamplerType]:
    """Return a loader, and its sampler, for a data set and what its params ask for.

    ``pin_memory`` does nothing here. ``debug_mode`` loads without workers. The options are ``global_rng``, and
    ``prefetch_factor``, ``persistent_workers``, ``timeout`` and ``worker_init_fn`` as for :class:`Loader`.

    Args:
        dataset: has a length, and ``__getitem__`` or ``__getitems__``.
        split: what the data is for.
        params: what the user asked for.
        rank: this rank, where ``params.is_distributed``.
        world: number of ranks, where ``params.is_distributed``.
        parts: pieces that a rank's batch is split into, such as one for each of its devices.
        whole_tail: whether ranks compute as one, so that the incomplete last batch of an evaluation goes whole
            to each of them; otherwise they share it.
        registry: where the samplers are looked up by name.
        generators: the process-wide generators; Python's, NumPy's and, where loaded, torch's if None.

    Raises:
        InvalidTypeError: something has a type that cannot work.
        InvalidValueError: something has a value that cannot work, or an option is unknown.
        UnknownNameError: nothing is registered under a name.
    """
    check_params(params)
    check_known(params.options, ["global_rng", *OPTION_NAMES], "option of the loader")
    ranks: dict[str, Any] = {"rank": rank, "world": world, "parts": parts, "whole_tail": whole_tail}
    sampler = choose_sampler(dataset, params, split, **ranks, registry=registry)
    loader = Loader(
        dataset,
        sampler,
        split=split,
        seed=params.random_seed,
        collate_fn=get_collate_fn(params.collate_fn),
        generators=generators,
        num_workers=0 if params.debug_mode else params.num_workers,
        **params.options,
    )
    return loader, sampler
