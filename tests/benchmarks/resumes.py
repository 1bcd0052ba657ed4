"""How each library is asked to go on at a step of an epoch that it has never been to, as after a restart.

A function here takes a dataset, a stack that closes what it opens, how many workers there are and the step; it returns
what opens the loader there, and gives its batches. Where a state is needed that only a long run would leave behind, it
is one from the first steps with other numbers in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, TypeAlias

import loaders as _grain_flags  # noqa: F401 - worker processes of grain need what it does
from records import BATCH

Resume: TypeAlias = Callable[[], Iterator[Any]]


def parhelion(dataset: Any, stack: ExitStack, workers: int, step: int) -> Resume:
    from parhelion.data import Loader
    from parhelion.sampling import ResumableRandomSampler

    def resume() -> Iterator[Any]:
        sampler = ResumableRandomSampler(dataset, 7, BATCH)
        sampler.start_iter = step
        return iter(stack.enter_context(closing(Loader(dataset, sampler, num_workers=workers))))

    return resume


def parhelion_torch(dataset: Any, stack: ExitStack, workers: int, step: int) -> Resume:
    from parhelion_torch import create_dataloader

    def resume() -> Iterator[Any]:
        loader: Any
        loader, sampler = create_dataloader(dataset, 7, BATCH, shuffle=True, num_workers=workers)
        if hasattr(loader, "close"):
            stack.callback(loader.close)
        sampler.start_iter = step
        return iter(loader)

    return resume


def torchdata(dataset: Any, stack: ExitStack, workers: int, step: int) -> Resume:
    """Go on in the dataset's order: a shuffled one of this size would take all memory."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def make() -> Any:
        return StatefulDataLoader(dataset, BATCH, num_workers=workers)

    loader = make()
    next(iter(loader))
    state = loader.state_dict()
    snapshot = state["_snapshot"] if workers else state
    counts = snapshot["_main_snapshot"] if workers else state
    counts["_sampler_iter_yielded"], counts["_sampler_iter_state"] = step, {"samples_yielded": step * BATCH}
    snapshot["_snapshot_step" if workers else "_num_yielded"] = step
    if workers:
        snapshot["_last_yielded_worker_id"] = workers - 1

    def resume() -> Iterator[Any]:
        loader = make()
        loader.load_state_dict(state)
        return iter(loader)

    return resume


def grain(dataset: Any, stack: ExitStack, workers: int, step: int) -> Resume:
    import grain

    def resume() -> Iterator[Any]:
        sampler = grain.samplers.IndexSampler(len(dataset), shuffle=True, num_epochs=1, seed=7)
        operations = [grain.transforms.Batch(BATCH)]
        batches: Any = iter(
            grain.DataLoader(data_source=dataset, sampler=sampler, operations=operations, worker_count=workers)
        )
        state = json.loads(batches.get_state())
        each = step // max(1, workers) * BATCH - 1
        state["last_seen_indices"] = {str(k): k + max(1, workers) * each for k in range(max(1, workers))}
        state["last_worker_index"] = workers - 1
        batches.set_state(json.dumps(state).encode())
        return batches

    return resume


def grain_map(dataset: Any, stack: ExitStack, workers: int, step: int) -> Resume:
    import grain

    def resume() -> Iterator[Any]:
        reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        made = grain.MapDataset.source(dataset).shuffle(seed=7).batch(BATCH).to_iter_dataset(reading)
        if workers:
            made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        batches: Any = iter(made)
        state = batches.get_state()
        if workers:
            state["iterators_in_use_states"] = [{"next_index": step // workers} for _ in range(workers)]
        else:
            state["next_index"] = step
        batches.set_state(state)
        return batches

    return resume
