import gc
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

import parhelion as ph
from parhelion.errors import RecordError
from parhelion.sampling import Position
from parhelion_torch import create_dataloader
from support.torch_case import Points

pytestmark = pytest.mark.processes

SIZE = 23


class Noisy:
    """Draws from every generator there is."""

    opened_by = -1

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        others = torch.rand(2), np.float32(np.random.randn()), random.random()
        return {"index": index, "own": ph.sample_rng().random(), "others": others}


class Rows:
    returns_batches = True

    def __len__(self):
        return SIZE

    def __getitems__(self, indices):
        noise = np.array([ph.sample_rng(k).random() for k in range(len(indices))])
        return {"index": indices, "noise": noise, "other": torch.rand(len(indices))}


class Tensors(Noisy):
    def __getitem__(self, index):
        return torch.full((3, 40), index), torch.tensor(index), np.full(5, index), np.zeros((2, 0)), "text"


class Fails(Noisy):
    def __getitem__(self, index):
        if index == 6:
            raise OSError("disk is gone")
        return index


class Dies(Noisy):
    def __getitem__(self, index):
        if index == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Slow(Noisy):
    """The later batches of an epoch are late."""

    def __getitem__(self, index):
        if index >= 8:
            time.sleep(0.02)
        return index


def flat(batch):
    if isinstance(batch, dict):
        return tuple((name, flat(value)) for name, value in batch.items())
    if isinstance(batch, (tuple, list)):
        return tuple(map(flat, batch))
    return (batch.dtype, batch.shape, batch.tolist()) if isinstance(batch, torch.Tensor) else batch


def make(dataset=None, **options):
    dataset = Noisy() if dataset is None else dataset
    return create_dataloader(dataset, **{"random_seed": 5, "batch_size": 4, "shuffle": True, **options})


def epoch(pair, position):
    pair[1].seek(position)
    return list(map(flat, pair[0]))


def streams():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("kind", [Noisy, Rows, Tensors])
def test_batches_are_the_same_with_and_without_workers_from_any_position(kind):
    for position in (Position(0), Position(1, 8), Position(1, 20)):
        assert epoch(make(kind(), num_workers=2), position) == epoch(make(kind()), position)


def test_an_epoch_entered_at_any_batch_gives_the_rest_of_the_whole():
    pair = make(num_workers=2, persistent_workers=True)
    whole = epoch(pair, Position(3))
    for k in range(6):
        assert epoch(pair, Position(3, 4 * k)) == whole[k:]


def test_keys_per_sample_reach_the_workers():
    expected = epoch(make(global_rng="sample"), Position(0))
    assert epoch(make(global_rng="sample", num_workers=2), Position(0)) == expected


@pytest.mark.parametrize("persistent", [False, True])
def test_leaving_an_epoch_early_gives_no_stale_batch_in_the_next(persistent):
    pair = make(Slow(), num_workers=2, persistent_workers=persistent, prefetch_factor=3, shuffle=False)
    for number in range(3):
        pair[1].seek(Position(number, 4 * number))
        assert next(iter(pair[0])).tolist() == list(range(4 * number, 4 * number + 4))
    assert epoch(pair, Position(7)) == epoch(make(Slow(), shuffle=False), Position(7))


def test_spawned_workers_give_the_same_batches():
    # A spawned process imports the dataset's class anew, from a module that it can find.
    pair = make(Points(), num_workers=1, multiprocessing_context="spawn")
    assert epoch(pair, Position(1, 12)) == epoch(make(Points()), Position(1, 12))


def test_loading_with_workers_never_moves_the_training_streams():
    before = streams()
    batches = iter(make(num_workers=2)[0])
    next(batches)
    assert streams() == before
    list(batches)
    assert streams() == before


def test_a_workers_exception_reaches_the_parent_with_sample_index_and_traceback():
    start = time.monotonic()
    with pytest.raises(RecordError, match="record with sample index 6 of Fails failed") as caught:
        list(make(Fails(), num_workers=2, shuffle=False)[0])
    assert time.monotonic() - start < 30
    assert 'raise OSError("disk is gone")' in str(caught.value)
    assert "It was raised in worker process 1" in str(caught.value)


def test_the_workers_have_ended_when_the_exception_arrives():
    gc.disable()
    try:
        with pytest.raises(RecordError) as caught:
            list(make(Fails(), num_workers=2, shuffle=False)[0])
        assert multiprocessing.active_children() == []
        assert caught.value.__traceback__ is not None
    finally:
        gc.enable()


def join(records):
    class LocalError(Exception):
        pass

    if 6 in records:
        raise LocalError("nowhere to be found")
    if 2 in records:
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "five arguments")
    raise KeyError("records")


@pytest.mark.parametrize(
    ("start", "kind", "message"),
    [(4, RuntimeError, "nowhere to be found"), (0, RuntimeError, "five arguments"), (8, KeyError, "records")],
)
def test_an_exception_of_any_type_comes_out_of_a_worker(start, kind, message):
    loader, sampler = make(range(12), num_workers=1, shuffle=False, collate_fn=join)
    sampler.seek(Position(0, start))
    with pytest.raises(kind, match=message):
        list(loader)


def test_the_epoch_after_a_workers_exception_is_whole():
    loader, sampler = make(Fails(), num_workers=2, shuffle=False, persistent_workers=True)
    with pytest.raises(RecordError):
        list(loader)
    sampler.seek(Position(0, 8))
    assert next(iter(loader)).tolist() == [8, 9, 10, 11]


def test_a_killed_worker_raises_and_does_not_hang():
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="worker"):
        list(make(Dies(), num_workers=2, shuffle=False)[0])
    assert time.monotonic() - start < 30


def mark(worker):
    info = get_worker_info()
    assert info.dataset.opened_by == -1
    assert len(info.dataset) == SIZE
    info.dataset.opened_by = worker


class Marked(Noisy):
    def __getitem__(self, index):
        return index, self.opened_by, torch.initial_seed() >> 32, get_worker_info().num_workers


def test_worker_init_fn_sees_and_changes_the_users_dataset():
    loader, _ = make(Marked(), num_workers=2, shuffle=False, worker_init_fn=mark)
    assert [batch[1].tolist() for batch in loader][:3] == [[0] * 4, [1] * 4, [0] * 4]
    assert loader.dataset.opened_by == -1


def test_options_reach_torchs_loader():
    loader, _ = make(num_workers=1, prefetch_factor=5, persistent_workers=True, timeout=40, worker_init_fn=mark)
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (1, 5, True)
    assert (loader.timeout, loader.worker_init_fn) == (40, mark)


class Seeds(Noisy):
    def __getitem__(self, index):
        return get_worker_info().seed % 2**63


def test_the_workers_own_seeds_depend_on_the_position_only():
    def seeds(loader, sampler, position):
        sampler.seek(position)
        return next(iter(loader)).tolist()

    pair = make(Seeds(), num_workers=1, global_rng="off", worker_type="torch")
    first = seeds(*pair, Position(0, 4))
    assert seeds(*pair, Position(0, 4)) == first
    torch.rand(3)
    assert seeds(*make(Seeds(), num_workers=1, global_rng="off", worker_type="torch"), Position(0, 4)) == first
    assert seeds(*pair, Position(1, 4)) != first
