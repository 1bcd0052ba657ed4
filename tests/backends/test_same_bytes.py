"""The same augmentation bytes, whoever makes the batches, and wherever an iteration begins."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import parhelion as ph
from parhelion.sampling import Position

torch = pytest.importorskip("torch")
pytest.importorskip("jax")

import parhelion_jax  # noqa: E402 - they need their frameworks
import parhelion_torch  # noqa: E402

pytestmark = pytest.mark.processes

SIZE, BATCH = 23, 4
PLACES = [Position(0), Position(2, 8), Position(2, 20)]


class Noisy:
    """Draws from every generator there is."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        others = torch.rand(2).numpy(), np.float32(np.random.randn()), random.random(), random.gauss(0, 1)
        return {"index": index, "own": ph.sample_rng().standard_normal(3), "others": others}


class Own(Noisy):
    """Draws from each record's own generator, and leaves all others alone."""

    def __getitem__(self, index: int) -> Any:
        return {"index": index, "own": ph.sample_rng().standard_normal(3)}


def leaves(batch: Any) -> list[Any]:
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return [leaf for part in batch for leaf in leaves(part)]
    array = np.asarray(batch)
    return [(array.dtype.str, array.shape, array.tobytes())]


def load(backend: Any, dataset: Any, batch_size: int = BATCH, **options: Any) -> list[Any]:
    """Return the bytes of each epoch's rest, from several places."""
    loader, sampler = backend.create_dataloader(dataset, 5, batch_size, shuffle=True, **options)
    found = []
    with loader:
        for place in PLACES:
            sampler.seek(place)
            found.append([leaves(batch) for batch in loader])
    return found


WAYS = [
    {"num_workers": 0},
    {"num_workers": 1, "prefetch_factor": 1},
    {"num_workers": 3},
    {"num_workers": 3, "prefetch_factor": 5, "persistent_workers": False},
    {"num_workers": 2, "worker_type": "thread"},
]
both = pytest.mark.parametrize("backend", [parhelion_torch, parhelion_jax], ids=["torch", "jax"])


@both
@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_what_is_drawn_from_any_generator_is_the_same_however_it_is_loaded(backend, mode):
    expected = load(parhelion_torch, Noisy(), global_rng=mode)
    ways = [*WAYS, {"num_workers": 2, "worker_type": "torch"}] if backend is parhelion_torch else WAYS
    for way in ways:
        assert load(backend, Noisy(), global_rng=mode, **way) == expected, way


@both
def test_what_is_drawn_from_a_record_s_own_generator_needs_no_key_for_the_others(backend):
    expected = load(parhelion_torch, Own())
    for way in WAYS:
        assert load(backend, Own(), global_rng="off", **way) == expected, way


@both
def test_keyed_for_each_record_the_draws_are_the_same_with_another_batch_size(backend):
    def rows(batch_size: int, **way: Any) -> list[Any]:
        loader, sampler = backend.create_dataloader(Noisy(), 5, batch_size, shuffle=True, global_rng="sample", **way)
        sampler.seek(Position(1, 8))
        with loader:
            return [
                tuple(np.asarray(column)[k].tobytes() for column in (batch["own"], *batch["others"]))
                for batch in loader
                for k in range(len(batch["index"]))
            ]

    assert rows(4) == rows(7, num_workers=2) == rows(1)


@both
def test_loading_moves_none_of_the_streams_of_the_training(backend):
    def streams() -> Any:
        return random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist(), torch.get_rng_state()

    for way in WAYS:
        random.gauss(0, 1), np.random.randn(), torch.randn(3)
        before = streams()
        load(backend, Noisy(), **way)
        after = streams()
        assert before[:2] == after[:2], way
        assert torch.equal(before[2], after[2]), way
