"""The loader of this package's own: batches of NumPy arrays, made where the loop runs, in threads or in processes."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import attrs

from parhelion.generators import GlobalGenerators, LoadedGenerators
from parhelion.registry import Registry
from parhelion.sampling import SAMPLER_REGISTRY, FetchRequest, ResumableSampler, ResumableSamplerType
from parhelion.seeds import check_seed, get_default_seed

from ._choice import SAMPLER_OPTIONS, check_params, choose_sampler, count_batches, get_collate_fn
from ._collate import collate
from ._fetch import Fetch
from ._kinds import is_stream
from ._params import DataLoaderParams, DatasetSplit, check_known
from ._protocols import CollateFn
from ._stats import LoaderStats, Tally, tell_stats
from ._worker_options import OPTION_NAMES, WorkerOptions

if TYPE_CHECKING:
    from ._threads import ThreadPool
    from ._workers import Pool

__all__ = ["Framework", "Loader", "create_loader", "open_loader"]

_log = logging.getLogger("parhelion")
_Pool = TypeVar("_Pool")


@attrs.frozen
class Framework:
    """What a backend adds to the stacking of records, where the user does not say how that is done.

    Attributes:
        finish: what becomes of a batch of NumPy arrays in this process, wherever it was made; None for nothing.
        companions: modules that worker processes import along with a framework, by the framework's name.
    """

    finish: Callable[[Any], Any] | None = None
    companions: Mapping[str, str] = attrs.field(factory=dict[str, str])


class Loader:
    """The batches of a dataset in a sampler's order, from the sampler's position to the end of its epoch.

    Each iteration reads the position when it begins, and none moves it, so several may run at once and one
    may be left early. ``len`` counts the batches of a whole epoch.

    Batches are the same with any number of workers of either type. Worker processes start with the first iteration,
    each with a copy of the dataset as it is then; the arrays in that copy share their memory until they are written to,
    and those of batches lie in memory that is shared with this process. A batch may be kept as long as you like. The
    workers end with :meth:`close`, at the end of a ``with`` block, with the loader, or with this process, however it
    ends.

    Threads share the dataset, which must allow that, and this process's generators. So they work ahead only with
    ``global_rng="off"``; otherwise batches are made when they are asked for.

    Args:
        dataset: has ``__getitem__`` or ``__getitems__``.
        sampler: says which records come when.
        split: what the data is for; part of the key of each sample's randomness.
        seed: the data seed; the default seed if None.
        collate_fn: makes a batch of a list of records; :func:`collate` if None.
        global_rng: how the process-wide generators are keyed: "batch" (the default), "sample" or "off".
        generators: the process-wide generators; Python's, NumPy's and, where it is loaded, torch's if None.
        num_workers: processes or threads that make batches ahead; with 0 they are made when asked for.
        worker_type: "process" or "thread".
        prefetch_factor: batches that each worker makes ahead, per iteration; None is 2, and up to 8 where worker
            processes make batches in a fraction of a millisecond.
        persistent_workers: whether the workers outlive an iteration.
        timeout: seconds to wait for a worker's batch; 0 waits as long as it takes.
        worker_init_fn: called in each worker with its number, from 0, before its first batch.
        framework: what a backend adds.

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
        worker_type: str = "process",
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        timeout: float = 0.0,
        worker_init_fn: Callable[[int], Any] | None = None,
        framework: Framework | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self._split = split
        self._framework = Framework() if framework is None else framework
        self._fetch = Fetch(
            dataset,
            split=split,
            seed=get_default_seed() if seed is None else check_seed(seed, "seed"),
            collate_fn=collate_fn,
            default_collate=collate,
            global_rng=global_rng,
            generators=LoadedGenerators() if generators is None else generators,
        )
        is_ours = self._fetch.collate_fn in (collate, None) or getattr(collate_fn, "makes_arrays", False)
        self._finish = self._framework.finish if is_ours else None
        self._options = WorkerOptions(
            num_workers, prefetch_factor, persistent_workers, timeout, worker_init_fn, worker_type
        )
        self._tally = Tally(num_workers, worker_type)
        self._pool: Pool | ThreadPool | None = None
        self._pools: weakref.WeakSet[Pool | ThreadPool] = weakref.WeakSet()  # also those of a single iteration

    @property
    def num_workers(self) -> int:
        """Processes or threads that make batches ahead; 0 if they are made when asked for."""
        return self._options.num_workers

    @property
    def options(self) -> WorkerOptions:
        """How the workers are used."""
        return self._options

    @property
    def batch_size(self) -> int:
        """Records per batch."""
        return self.sampler.batch_size

    @property
    def collate_fn(self) -> CollateFn | None:
        """What makes a batch of a list of records; None where the dataset returns batches."""
        return self._fetch.collate_fn

    @property
    def is_thread_bound(self) -> bool:
        """Whether batches are made in the thread that uses them: records may draw from this process's generators."""
        if self._options.num_workers and self._options.worker_type == "process":
            return False
        return self._fetch.global_rng != "off"

    def __len__(self) -> int:
        return count_batches(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        requests = self.sampler.requests()
        if self.sampler.shard.world > 1:
            # With Tail.MASK the last batch of a high rank may have no record.
            requests = (request for request in requests if len(request.indices))
        tally = self._tally = Tally(self._options.num_workers, self._options.worker_type)
        is_ahead = self._options.num_workers > 0
        if is_ahead and self._options.worker_type == "thread" and self.is_thread_bound:
            _tell_bound()
            is_ahead = False
        if not is_ahead and self._fetch.is_table:
            return tally.gather(self._fetch.gather, requests, self._finish, self._tell)
        if not is_ahead:
            return tally.make(self._fetch.timed, requests, self._finish, self._tell)
        batches = self._begin(requests, tally)
        return tally.watch(batches if self._finish is None else map(self._finish, batches), self._tell)

    def _begin(self, requests: Iterator[FetchRequest], tally: Tally) -> Iterator[Any]:
        if self._options.worker_type == "thread":
            return self._begin_threads(requests, tally)
        # Its imports cost 6 ms, and only those who use workers need them.
        from ._workers import Batches, Pool  # noqa: PLC0415

        pool = self._get_pool(lambda: Pool(self._fetch, self._options, self._framework.companions))
        return Batches(pool, requests, is_last=not self._options.persistent_workers, tally=tally)

    def _begin_threads(self, requests: Iterator[FetchRequest], tally: Tally) -> Iterator[Any]:
        from ._threads import ThreadBatches, ThreadPool  # noqa: PLC0415 - as above

        pool = self._get_pool(lambda: ThreadPool(self._options))
        is_last = not self._options.persistent_workers
        return ThreadBatches(pool, self._fetch, requests, is_last=is_last, tally=tally)

    def _get_pool(self, create: Callable[[], _Pool]) -> _Pool:
        pool: Any = self._pool
        if pool is None or not pool.is_usable():
            pool = create()
            self._pools.add(pool)
        if self._options.persistent_workers:
            self._pool = pool
        return cast("_Pool", pool)

    def stats(self) -> LoaderStats:
        """Return where the time of the iteration that began last has gone, so far or in all."""
        return self._tally.stats()

    def _tell(self, stats: LoaderStats) -> None:
        tell_stats(self._split, type(self.dataset).__name__, stats)

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
        # Processes and threads cannot be copied.
        return {name: value for name, value in self.__dict__.items() if name not in {"_pool", "_pools"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool, self._pools = None, weakref.WeakSet()


@functools.cache
def _tell_bound() -> None:
    # Cached, so that it is said once.
    _log.warning(
        "threads of a loader make nothing ahead while its dataset may draw from random, np.random or torch's "
        "generator, which belong to the whole process; with global_rng='off' they do: sample_rng() is a sample's own"
    )


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
    framework: Framework | None = None,
) -> tuple[Loader, ResumableSamplerType]:
    """Return a loader, and its sampler, for a data set and what its params ask for.

    ``pin_memory`` does nothing here. ``debug_mode`` loads without workers. The options are ``global_rng``, and
    ``prefetch_factor``, ``persistent_workers``, ``timeout``, ``worker_init_fn`` and ``worker_type`` as for
    :class:`Loader`; and ``sampler_options``, the arguments of a sampler that is given by its name.

    Args:
        dataset: has a length, and ``__getitem__`` or ``__getitems__``; or what :func:`as_batched` knows.
        split: what the data is for.
        params: what the user asked for.
        rank: this rank, where ``params.is_distributed``.
        world: number of ranks, where ``params.is_distributed``.
        parts: pieces that a rank's batch is split into, such as one for each of its devices.
        whole_tail: whether ranks compute as one, so that the incomplete last batch of an evaluation goes whole
            to each of them; otherwise they share it.
        registry: where the samplers are looked up by name.
        generators: the process-wide generators; Python's, NumPy's and, where it is loaded, torch's if None.
        framework: what a backend adds; nothing if None.

    Raises:
        InvalidTypeError: something has a type that cannot work.
        InvalidValueError: something has a value that cannot work, or an option is unknown.
        UnknownNameError: nothing is registered under a name.
    """
    check_params(params)
    check_known(params.options, ["global_rng", *OPTION_NAMES, SAMPLER_OPTIONS], "option of the loader")
    options = {name: value for name, value in params.options.items() if name != SAMPLER_OPTIONS}
    ranks: dict[str, Any] = {"rank": rank, "world": world, "parts": parts, "whole_tail": whole_tail}
    collate_fn = get_collate_fn(params.collate_fn)
    # Sources and streams are many modules, and a loader made by hand needs none.
    from ._recognition import as_source  # noqa: PLC0415

    source = as_source(dataset, collate_fn)
    sampler = choose_sampler(source, params, split, **ranks, registry=registry)
    loader = Loader(
        source,
        sampler,
        split=split,
        seed=params.random_seed,
        collate_fn=collate_fn,
        generators=generators,
        framework=framework,
        num_workers=0 if params.debug_mode else params.num_workers,
        **options,
    )
    loader.dataset = dataset
    return loader, sampler


def open_loader(
    dataset: Any,
    split: DatasetSplit,
    params: DataLoaderParams,
    *,
    rank: int = 0,
    world: int = 1,
    parts: int = 1,
    **options: Any,
) -> tuple[Any, Any]:
    """Return a loader, and what says where it begins, for a map dataset or for a stream.

    Args:
        dataset: what :func:`create_loader` or :func:`create_stream_loader` takes.
        split: what the data is for.
        params: what the user asked for.
        rank: this rank, where ``params.is_distributed``.
        world: number of ranks, where ``params.is_distributed``.
        parts: pieces that a rank's batch is split into, such as one for each of its devices.
        options: other arguments of :func:`create_loader`, which no stream needs.

    Raises:
        ParhelionError: as these two do.
    """
    if is_stream(dataset):
        from ._stream_choice import create_stream_loader  # noqa: PLC0415 - as above

        return create_stream_loader(dataset, split, params, rank=rank, world=world, parts=parts)
    return create_loader(dataset, split, params, rank=rank, world=world, parts=parts, **options)
