"""The sampler for a data set: the one that its params ask for, checked against them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.registry import Registry
from parhelion.sampling import (
    SAMPLER_REGISTRY,
    ResumableSampler,
    ResumableSamplerType,
    Shard,
    Tail,
    find_sampler,
)
from parhelion.seeds import check_seed

from ._params import DataLoaderParams, DatasetSplit, check_known, create_collate_fn
from ._protocols import CollateFn

__all__ = ["SAMPLER_OPTIONS", "check_params", "choose_sampler", "count_batches", "get_collate_fn"]

SAMPLER_OPTIONS = "sampler_options"
"""The option that has the arguments of a sampler that is given by its name."""


def choose_sampler(
    dataset: Any,
    params: DataLoaderParams,
    split: DatasetSplit,
    *,
    rank: int = 0,
    world: int = 1,
    parts: int = 1,
    whole_tail: bool = False,
    registry: Registry[Callable[..., ResumableSamplerType]] = SAMPLER_REGISTRY,
) -> ResumableSamplerType:
    """Return the sampler for a data set: it gives this rank's part, and the tail as the split needs it.

    That is the params' sampler if they have one, else the distributed one where ranks share the data, else
    the random one for ``shuffle``, else the sequential one. A training tail is padded up to a multiple of the
    parts of all ranks, an evaluation's never; ``drop_last`` leaves it out.

    A sampler that is given by name is made from the dataset, from ``batch_size``, ``random_seed`` (as ``seed``) and
    ``shuffle`` of the params, if it has such parameters, and from ``params.options["sampler_options"]``, which come
    first: ``DataLoaderParams(sampler="ResumableWeightedSampler", options={"sampler_options": {"weights": ...}})``.

    Args:
        dataset: has a length.
        params: what the user asked for.
        split: what the data is for.
        rank: this rank, where ``params.is_distributed``.
        world: number of ranks, where ``params.is_distributed``.
        parts: pieces that a rank's batch is split into, such as one for each of its devices.
        whole_tail: whether ranks compute as one, so that the incomplete last batch of an evaluation goes whole
            to each of them; otherwise they share it.
        registry: where the samplers are looked up by name.

    Raises:
        InvalidTypeError: the sampler is not resumable, a named one lacks an argument, or the dataset has no length.
        InvalidValueError: the sampler has another batch size, or one that is no multiple of ``parts``, the
            dataset is empty or has not one full batch where only full ones are wanted, several ranks would
            drop records of an evaluation, or there are options for a sampler that is not given by name, or unknown
            ones.
        UnknownNameError: no sampler is registered under the name.
    """
    if not params.is_distributed:
        rank, world = 0, 1
    sampler, options = params.sampler, _get_options(params)
    if sampler is None:
        sampler = _get_default_name(params)
    if isinstance(sampler, str):
        sampler = _create(sampler, find_sampler(sampler, registry), dataset, params, rank, world, options)
    _check_sampler(sampler, params)
    shard = sampler.shard
    if shard.world == 1 < world:
        # A sampler that knows nothing of ranks would give all of them the same records.
        shard = attrs.evolve(shard, rank=rank, world=world)
    shard = attrs.evolve(shard, parts=parts, tail=_choose_tail(shard, params, split, whole_tail))
    sampler.reshard(shard)
    _check_batches(sampler, split)
    return sampler


def check_params(params: DataLoaderParams) -> DataLoaderParams:
    """Return ``params`` if their numbers can work.

    Raises:
        InvalidTypeError: a number is none, or the collate function cannot be called.
        InvalidValueError: a number is out of range.
    """
    check_seed(params.random_seed)
    Shard(params.batch_size)
    workers: Any = params.num_workers
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise InvalidTypeError(f"num_workers is {workers!r}; expected an integer >= 0. 0 loads in this process.")
    if workers < 0:
        raise InvalidValueError(f"num_workers is {workers}; expected an integer >= 0. 0 loads in this process.")
    return params


def get_collate_fn(collate_fn: CollateFn | str | None) -> CollateFn | None:
    """Return the collate function that was asked for, or None for the default one.

    Raises:
        InvalidTypeError: it cannot be called.
        UnknownNameError: no collate function is registered under the name.
    """
    if isinstance(collate_fn, str):
        # The default is each backend's own.
        return None if collate_fn == "default" else create_collate_fn(collate_fn)
    if collate_fn is not None and not callable(collate_fn):
        raise InvalidTypeError(
            f"collate_fn is {collate_fn!r}; expected a function of a list of records, or a registered name. "
            "Leave it out to stack arrays."
        )
    return collate_fn


def count_batches(sampler: ResumableSampler) -> int:
    """Return how many batches this rank gets in a whole epoch; one that would be empty is not counted."""
    shard = sampler.shard
    full = sampler.size // shard.global_batch
    return full + (shard.num_samples(sampler.size) > full * shard.batch_size)


def _get_default_name(params: DataLoaderParams) -> str:
    if params.is_distributed:
        return "ResumableDistributedSampler"
    return "ResumableRandomSampler" if params.shuffle else "ResumableSequentialSampler"


def _get_options(params: DataLoaderParams) -> Mapping[str, Any]:
    options: Any = params.options.get(SAMPLER_OPTIONS)
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InvalidTypeError(
            f"sampler_options is {options!r}; expected the sampler's arguments by name. Write "
            '{"weights": ...}, for example.'
        )
    if not isinstance(params.sampler, str):
        given = "none is named" if params.sampler is None else f"sampler is a {type(params.sampler).__name__}"
        raise InvalidValueError(
            f"sampler_options are given and {given}; expected sampler='...', the name of a registered one. Pass them "
            "to the sampler itself where it is made."
        )
    return cast("Mapping[str, Any]", options)


def _create(
    name: str,
    entry: Callable[..., ResumableSamplerType],
    dataset: Any,
    params: DataLoaderParams,
    rank: int,
    world: int,
    options: Mapping[str, Any],
) -> ResumableSamplerType:
    """Return what ``entry`` makes of the dataset, the options, and those of the params that it has a parameter for."""
    given = {
        "batch_size": params.batch_size,
        "seed": params.random_seed,
        "shuffle": params.shuffle,
        "rank": rank,
        "num_replicas": world,
    }
    signature = inspect.signature(entry)
    arguments = {key: value for key, value in given.items() if key in signature.parameters} | dict(options)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    if not takes_any:
        check_known(options, list(signature.parameters)[1:], f"option of the sampler {name}")
    try:
        signature.bind(dataset, **arguments)
    except TypeError as error:
        raise InvalidTypeError(
            f"sampler {name!r} cannot be made from the dataset and {', '.join(arguments)}: {error}. Give its other "
            'arguments as options={"sampler_options": {...}}.'
        ) from error
    return entry(dataset, **arguments)


def _check_sampler(sampler: Any, params: DataLoaderParams) -> None:
    if not isinstance(sampler, ResumableSampler):
        raise InvalidTypeError(
            f"sampler is a {type(sampler).__name__}; expected one derived from ResumableSampler or "
            "ResumableDistributedSampler, which can be resumed. Derive it, or leave sampler out and set "
            "shuffle."
        )
    if sampler.batch_size != params.batch_size:
        raise InvalidValueError(
            f"batch_size of the sampler is {sampler.batch_size} and that of the loader {params.batch_size}; "
            f"expected the same. Make the sampler with batch_size={params.batch_size}."
        )


def _choose_tail(shard: Shard, params: DataLoaderParams, split: DatasetSplit, whole_tail: bool) -> Tail:
    if params.drop_last:
        tail = Tail.DROP
    elif shard.tail in (Tail.DROP, Tail.TRIM):
        # The sampler's own drop_last.
        tail = shard.tail
    else:
        evaluation = Tail.WHOLE if whole_tail and shard.world > 1 else Tail.MASK
        tail = Tail.PAD if split is DatasetSplit.TRAIN else evaluation
    if tail in (Tail.DROP, Tail.TRIM) and split is not DatasetSplit.TRAIN and shard.world > 1:
        raise InvalidValueError(
            f"drop_last is True for the {split.name.lower()} split on {shard.world} ranks; expected False, "
            "for what is left out would depend on the number of ranks and the metrics with it. Set "
            "drop_last=False: no record is repeated to fill the last batch."
        )
    return tail


def _check_batches(sampler: ResumableSampler, split: DatasetSplit) -> None:
    shard, size = sampler.shard, sampler.size
    if shard.num_batches(size) == 0:
        raise InvalidValueError(
            f"drop_last is True and the {split.name.lower()} data has {size} records, but a batch of all "
            f"ranks takes {shard.global_batch} ({shard.world} x batch_size {shard.batch_size}), so no batch "
            f"is left; expected at least that many records. Lower batch_size, or set drop_last=False."
        )
