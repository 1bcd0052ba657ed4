"""How each library's loader is opened over a dataset: everybody's shuffled batches of 64, epoch after epoch.

A function here takes a dataset, a stack that closes what it opens, and how many workers there are; it returns what
gives the batches of epoch k. A library that is not installed, or lacks what is asked for, raises.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, TypeAlias

from records import BATCH

Epochs: TypeAlias = Callable[[int], Iterator[Any]]

if any("grain" in word for word in sys.argv):
    # Its worker processes, which import this file, read flags that a program like this one never parses.
    from absl import flags

    flags.FLAGS.mark_as_parsed()


def parhelion(dataset: Any, stack: ExitStack, workers: int = 0, **options: Any) -> Epochs:
    from parhelion.data import Loader
    from parhelion.sampling import ResumableRandomSampler

    sampler = ResumableRandomSampler(dataset, 7, BATCH)
    loader = stack.enter_context(closing(Loader(dataset, sampler, num_workers=workers, **options)))
    return partial(_open_epoch, loader, sampler)


def parhelion_arrays(dataset: Any, stack: ExitStack, workers: int = 0, **options: Any) -> Epochs:
    from parhelion.data import ArrayDataset

    return parhelion(ArrayDataset({"x": dataset.x, "y": dataset.y}), stack, workers, **options)


def parhelion_minibatches(dataset: Any, stack: ExitStack) -> Epochs:
    from parhelion_jax import InMemoryDataLoader

    loader = InMemoryDataLoader({"x": dataset.x, "y": dataset.y}, BATCH)
    return lambda epoch: iter(loader.minibatches(epoch))


def parhelion_torch(dataset: Any, stack: ExitStack, workers: int = 0, **options: Any) -> Epochs:
    from parhelion_torch import create_dataloader

    loader: Any
    loader, sampler = create_dataloader(dataset, 7, BATCH, shuffle=True, num_workers=workers, **options)
    stack.callback(getattr(loader, "close", _do_nothing))
    return partial(_open_epoch, loader, sampler)


def parhelion_torch_class(dataset: Any, stack: ExitStack, workers: int = 0, **options: Any) -> Epochs:
    from parhelion_torch import DataLoader

    loader: Any = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, **options)
    stack.callback(loader.close)
    return partial(_open_epoch, loader, loader.sampler)


def _open_epoch(loader: Any, sampler: Any, epoch: int) -> Iterator[Any]:
    sampler.set_epoch(epoch)
    return iter(loader)


def _do_nothing() -> None: ...


def torch(dataset: Any, stack: ExitStack, workers: int = 0, **options: Any) -> Epochs:
    from torch.utils.data import DataLoader

    return _torch(DataLoader, dataset, workers, options)


def torchdata(dataset: Any, stack: ExitStack, workers: int = 0, **options: Any) -> Epochs:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return _torch(StatefulDataLoader, dataset, workers, options)


def _torch(kind: Any, dataset: Any, workers: int, options: dict[str, Any]) -> Epochs:
    from torch import Generator

    generator = Generator()
    loader = kind(dataset, BATCH, shuffle=True, num_workers=workers, generator=generator, **options)

    def epoch(number: int) -> Iterator[Any]:
        generator.manual_seed(number)
        return iter(loader)

    return epoch


def keep(batch: Any) -> Any:
    """Be the collate function of a dataset that returns batches."""
    return batch


def grain(dataset: Any, stack: ExitStack, workers: int = 0) -> Epochs:
    import grain

    def epoch(number: int) -> Iterator[Any]:
        return iter(
            grain.DataLoader(
                data_source=dataset,
                sampler=grain.samplers.IndexSampler(len(dataset), shuffle=True, num_epochs=1, seed=number),
                operations=[grain.transforms.Batch(BATCH)],
                worker_count=workers,
            )
        )

    return epoch


def grain_map(dataset: Any, stack: ExitStack, workers: int = 0, threads: int = 0) -> Epochs:
    import grain

    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 if threads else 0)

    def epoch(number: int) -> Iterator[Any]:
        batches = grain.MapDataset.source(dataset).shuffle(seed=number).batch(BATCH).to_iter_dataset(reading)
        if workers:
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        return iter(batches)

    return epoch


def fifteen(dataset: Any, stack: ExitStack, workers: int = 0) -> Epochs:
    _prepare_fifteen()
    import fifteen.data

    loader = fifteen.data.DataLoader(dataset, BATCH, num_workers=workers)
    return lambda epoch: iter(loader.minibatches(epoch))


def fifteen_in_memory(dataset: Any, stack: ExitStack) -> Epochs:
    _prepare_fifteen()
    import fifteen.data

    loader = fifteen.data.InMemoryDataLoader({"x": dataset.x, "y": dataset.y}, BATCH)
    return lambda epoch: iter(loader.minibatches(epoch))


def _prepare_fifteen() -> None:
    """Give it a module that it imports and jax no longer has."""
    gone: Any = types.ModuleType("jax.experimental.host_callback")
    gone.id_tap = None
    sys.modules.setdefault(gone.__name__, gone)
