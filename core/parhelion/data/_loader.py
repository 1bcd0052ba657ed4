"""The loader of this package's own: batches of NumPy arrays, made where the loop runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parhelion.sampling import ResumableSampler, ResumableSamplerType
from parhelion.seeds import GlobalGenerators, PythonGenerators, check_seed, get_default_seed

from ._choice import check_params, choose_sampler, count_batches, get_collate_fn
from ._collate import collate
from ._fetch import Fetch
from ._params import DataLoaderParams, DatasetSplit, check_known
from ._protocols import CollateFn

__all__ = ["Loader", "create_loader"]


class Loader:
    """The batches of a dataset in a sampler's order, from the sampler's position to the end of its epoch.

    Each iteration reads the position when it begins, and none moves it, so several may run at once and one
    may be left early. ``len`` counts the batches of a whole epoch.

    Args:
        dataset: has ``__getitem__`` or ``__getitems__``.
        sampler: says which records come when.
        split: what the data is for; part of the key of each sample's randomness.
        seed: the data seed; the default seed if None.
        collate_fn: makes a batch of a list of records; :func:`collate` if None.
        global_rng: how the process-wide generators are keyed: "batch" (the default), "sample" or "off".
        generators: the process-wide generators; Python's and NumPy's if None.

    Raises:
        InvalidTypeError: the dataset cannot be indexed.
        InvalidValueError: ``global_rng`` or ``seed`` cannot work.
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
            generators=PythonGenerators() if generators is None else generators,
        )

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
        return (self._fetch(request) for request in self.sampler.requests() if len(request.indices))


def create_loader(dataset: Any, split: DatasetSplit, params: DataLoaderParams) -> tuple[Loader, ResumableSamplerType]:
    """Return a loader in this process, and its sampler, for a data set and what its params ask for.

    Whatever ``num_workers`` and ``pin_memory`` are, records are fetched in this process: the batches are the
    same.

    Raises:
        InvalidTypeError: something has a type that cannot work.
        InvalidValueError: something has a value that cannot work, or an option is unknown.
        UnknownNameError: nothing is registered under a name.
    """
    check_params(params)
    check_known(params.options, ["global_rng"], "option of the loader")
    sampler = choose_sampler(dataset, params, split)
    loader = Loader(
        dataset,
        sampler,
        split=split,
        seed=params.random_seed,
        collate_fn=get_collate_fn(params.collate_fn),
        global_rng=params.options.get("global_rng"),
    )
    return loader, sampler
