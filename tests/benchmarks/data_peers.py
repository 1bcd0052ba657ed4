"""Who is in which table of loaders: ours, everybody else's, and the floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any, TypeAlias

import loaders
import numpy as np
from loaders import Epochs, keep
from records import (
    BATCH,
    BIG_ROW,
    BIG_ROWS,
    Columns,
    Filled,
    FilledInPlace,
    FilledTensors,
    Images,
    Repeated,
    TensorColumns,
    TensorImages,
    WholeColumns,
    WholeTensors,
)

Open: TypeAlias = Callable[[ExitStack], Epochs]

TRANSPORT = "Batches of 16 MiB (f32[64,65536]) through two workers, every page read by the loop"
THREADS = {"worker_type": "thread", "global_rng": "off"}


def offer(open_loader: Callable[..., Epochs], make: Callable[[], Any], *arguments: Any, **options: Any) -> Open:
    """Return a peer: the dataset is made, and then the loader, in the measuring process."""
    return lambda stack: open_loader(make(), stack, *arguments, **options)


def rows(kind: str) -> dict[str, Open]:
    """Return those that gather whole batches from arrays in memory."""
    plain, whole = partial(Columns.of, kind), partial(WholeColumns.of, kind)
    return {
        "floor: x[order[k]]": offer(floor_gather, plain),
        "floor: x.take(order[k], mode='clip')": offer(floor_gather, plain, take),
        "Parhelion ArrayDataset": offer(loaders.parhelion_arrays, plain),
        "Parhelion ArrayDataset, global_rng off": offer(loaders.parhelion_arrays, plain, global_rng="off"),
        "Parhelion __getitems__": offer(loaders.parhelion, whole),
        "Parhelion __getitems__, global_rng off": offer(loaders.parhelion, whole, global_rng="off"),
        "Parhelion InMemoryDataLoader (jax)": offer(loaders.parhelion_minibatches, plain),
        "fifteen InMemoryDataLoader": offer(loaders.fifteen_in_memory, plain),
        "torch DataLoader, __getitems__": offer(loaders.torch, whole, collate_fn=keep),
        "torchdata StatefulDataLoader, __getitems__": offer(loaders.torchdata, whole, collate_fn=keep),
    }


def samples(kind: str) -> dict[str, Open]:
    """Return those that go sample by sample, in the loop's process."""
    plain, tensors = partial(Columns.of, kind), partial(TensorColumns.of, kind)
    found = {
        "floor: x[order[k]]": offer(floor_gather, plain),
        "Parhelion Loader": offer(loaders.parhelion, plain),
        "Parhelion Loader, global_rng off": offer(loaders.parhelion, plain, global_rng="off"),
        "Parhelion create_dataloader (torch)": offer(loaders.parhelion_torch, plain),
        "Parhelion create_dataloader (torch), global_rng off": offer(loaders.parhelion_torch, plain, global_rng="off"),
        "Parhelion DataLoader (torch), tensors": offer(loaders.parhelion_torch_class, tensors),
        "torch DataLoader": offer(loaders.torch, plain),
        "torch DataLoader, tensors": offer(loaders.torch, tensors),
        "torchdata StatefulDataLoader": offer(loaders.torchdata, plain),
        "grain DataLoader": offer(loaders.grain, plain),
        "grain MapDataset": offer(loaders.grain_map, plain),
        "fifteen DataLoader": offer(loaders.fifteen, plain),
    }
    # Threads do nothing for what holds the interpreter's lock: to see it once is enough.
    return found | (read_by_threads(plain) if kind == "a" else {})


def read_by_threads(make: Callable[[], Any]) -> dict[str, Open]:
    """Return grain with threads that read ahead."""
    return {f"grain MapDataset, {k} threads": offer(loaders.grain_map, make, threads=k) for k in (2, 16)}


def workers(kind: str) -> dict[str, Open]:
    """Return those that have two workers go sample by sample, and what those do who gather."""
    plain, tensors = partial(Columns.of, kind), partial(TensorColumns.of, kind)
    whole, whole_tensors = partial(WholeColumns.of, kind), partial(WholeTensors.of, kind)
    found = {
        "floor: x[order[k]]": offer(floor_gather, plain),
        "Parhelion Loader": offer(loaders.parhelion, plain, 2),
        "Parhelion Loader, threads": offer(loaders.parhelion, plain, 2, **THREADS),
        "Parhelion create_dataloader (torch)": offer(loaders.parhelion_torch, plain, 2),
        "Parhelion DataLoader (torch), tensors": offer(loaders.parhelion_torch_class, tensors, 2),
        "torch DataLoader": offer(loaders.torch, plain, 2),
        "torch DataLoader, tensors": offer(loaders.torch, tensors, 2),
        "torchdata StatefulDataLoader": offer(loaders.torchdata, plain, 2),
        "grain DataLoader": offer(loaders.grain, plain, 2),
        "grain MapDataset, mp_prefetch": offer(loaders.grain_map, plain, 2),
        "fifteen DataLoader": offer(loaders.fifteen, plain, 2),
    }
    gathering = {
        "beside: Parhelion __getitems__": offer(loaders.parhelion, whole, 2),
        "beside: torch DataLoader, __getitems__": offer(loaders.torch, whole_tensors, 2, collate_fn=keep),
    }
    return found | (gathering if kind == "a" else {})


def images(num_workers: int) -> dict[str, Open]:
    """Return those that work on images, in the loop's process or with workers."""
    plain, tensors = partial(Images.of, "c"), partial(TensorImages.of, "c")
    found = {
        "floor: one thread": offer(floor_images, plain),
        "Parhelion Loader": offer(loaders.parhelion, plain, num_workers),
        "Parhelion create_dataloader (torch)": offer(loaders.parhelion_torch, plain, num_workers),
        "Parhelion DataLoader (torch), tensors": offer(loaders.parhelion_torch_class, tensors, num_workers),
        "torch DataLoader": offer(loaders.torch, plain, num_workers),
        "torch DataLoader, tensors": offer(loaders.torch, tensors, num_workers),
        "torchdata StatefulDataLoader": offer(loaders.torchdata, plain, num_workers),
        "grain DataLoader": offer(loaders.grain, plain, num_workers),
        "fifteen DataLoader": offer(loaders.fifteen, plain, num_workers),
    }
    if not num_workers:
        return found | {"grain MapDataset": offer(loaders.grain_map, plain)}
    return found | {
        "Parhelion Loader, threads": offer(loaders.parhelion, plain, num_workers, **THREADS),
        "Parhelion DataLoader (torch), threads": offer(loaders.parhelion_torch_class, plain, num_workers, **THREADS),
        "grain MapDataset, mp_prefetch": offer(loaders.grain_map, plain, num_workers),
        **read_by_threads(plain),
    }


def transport() -> dict[str, Open]:
    """Return those whose two workers make batches of 16 MiB that cost their memory alone, or stack them from rows."""
    stacked: Any = partial(Repeated, (BIG_ROW,), np.float32, 512, 1 << 20)
    return {
        "floor: one copy of 16 MiB": floor_copy,
        "beside: made in this process, sent nowhere": floor_make,
        "Parhelion Loader": offer(loaders.parhelion, Filled, 2),
        "Parhelion Loader, memory by data.empty": offer(loaders.parhelion, FilledInPlace, 2),
        "Parhelion Loader, threads": offer(loaders.parhelion, Filled, 2, **THREADS),
        "Parhelion create_dataloader (torch)": offer(loaders.parhelion_torch, Filled, 2),
        "torch DataLoader, arrays": offer(loaders.torch, Filled, 2, collate_fn=keep),
        "torch DataLoader, tensors": offer(loaders.torch, FilledTensors, 2, collate_fn=keep),
        "torchdata StatefulDataLoader, tensors": offer(loaders.torchdata, FilledTensors, 2, collate_fn=keep),
        "beside: Parhelion Loader, stacked": offer(loaders.parhelion, stacked, 2),
        "beside: torch DataLoader, stacked": offer(loaders.torch, stacked, 2),
        "beside: grain MapDataset, stacked, mp_prefetch": offer(loaders.grain_map, stacked, 2),
    }


def floor_gather(dataset: Any, stack: ExitStack, gather: Callable[[Any, Any], Any] = lambda x, rows: x[rows]) -> Epochs:
    """Index both arrays with an order that is there already."""
    order = np.random.default_rng(0).permutation(len(dataset)).reshape(-1, BATCH)

    def epoch(_: int) -> Iterator[Any]:
        x, y = dataset.x, dataset.y
        return ({"x": gather(x, rows), "y": gather(y, rows)} for rows in order)

    return epoch


def take(x: Any, rows: Any) -> Any:
    return x.take(rows, 0, None, "clip")


def floor_images(dataset: Any, stack: ExitStack) -> Epochs:
    """Do the work and stack the images in one thread, by an order that is there already."""
    order = np.random.default_rng(0).permutation(len(dataset)).reshape(-1, BATCH)

    def epoch(_: int) -> Iterator[Any]:
        for rows in order:
            records = [dataset[index] for index in rows]
            yield {name: np.stack([record[name] for record in records]) for name in ("x", "y")}

    return epoch


def floor_copy(stack: ExitStack) -> Epochs:
    """Copy 16 MiB to memory that is there already."""
    source, space = np.ones((BIG_ROWS, BIG_ROW), np.float32), np.zeros((BIG_ROWS, BIG_ROW), np.float32)

    def copy(_: int) -> Any:
        np.copyto(space, source)
        return {"x": space}

    return lambda _: map(copy, count())


def floor_make(stack: ExitStack) -> Epochs:
    """Fill fresh memory for each batch, as the workers have to."""
    dataset = Filled()
    return lambda _: (dataset.__getitems__([k] * BATCH) for k in count())
