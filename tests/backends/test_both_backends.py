"""The promises about data hold on both backends, with the same records and the same bits."""

from __future__ import annotations

import random
import signal
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import parhelion as ph
from parhelion.data import DatasetSplit
from parhelion.sampling import Position, ResumableSequentialSampler, Shard, Tail
from parhelion.testing import check_loader_resumes, check_sampler_resumes, first_difference, last_tree
from parhelion.testing import rows_without_clocks as without_clocks
from support import jax_child, twins
from support.points import Points

on_torch = pytest.importorskip("parhelion_torch")
on_jax = pytest.importorskip("parhelion_jax")

BACKENDS = {"torch": on_torch, "jax": on_jax}
both = pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))

seeds = st.integers(0, 2**64 - 1)
epochs = st.sampled_from([0, 1, 2, 1000])


def plain(batch: Any) -> Any:
    """Return a batch's arrays as names, dtypes, shapes and bytes."""
    columns = {name: np.asarray(column) for name, column in batch.items()}
    return {name: (each.dtype.name, each.shape, each.tobytes()) for name, each in columns.items()}


def load(pair: Any, position: Position) -> list[Any]:
    """Return the batches from a position to the end of its epoch."""
    loader, sampler = pair
    sampler.seek(position)
    return [plain(batch) for batch in loader]


def indices(batches: list[Any]) -> list[int]:
    return [index for batch in batches for index in np.frombuffer(batch["index"][2], np.int64).tolist()]


# -- what comes when --------------------------------------------------------------------------------------------------


@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    seed=seeds,
    flags=st.tuples(st.booleans(), st.booleans()),
    epoch=epochs,
    split=st.sampled_from(DatasetSplit),
    data=st.data(),
)
@settings(max_examples=25)
def test_an_epoch_has_the_same_batches_and_every_record_once_from_any_place_on(
    size, batch_size, seed, flags, epoch, split, data
):
    shuffle, drop_last = flags
    assume(size >= batch_size or not drop_last)
    params = {"random_seed": seed, "batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "split": split}
    one, other = (backend.create_dataloader(Points(size), **params) for backend in BACKENDS.values())
    whole = load(one, Position(epoch))
    assert whole == load(other, Position(epoch))
    every = indices(whole)
    kept = size - size % batch_size if drop_last else size
    assert len(set(every)) == len(every) == kept
    assert shuffle or every == list(range(kept))
    stop = data.draw(st.integers(0, len(whole) - 1), label="batches before the stop")
    for backend in BACKENDS.values():
        again = backend.create_dataloader(Points(size), **params)
        assert load(again, Position(epoch, stop * batch_size)) == whole[stop:]


@given(
    size=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    seed=seeds,
    epoch=epochs,
    split=st.sampled_from(DatasetSplit),
)
@settings(max_examples=20)
def test_ranks_together_take_every_record_once_and_only_training_pads(size, shape, seed, epoch, split):
    batch_size, world = shape
    order = ph.sampling.ResumableRandomSampler(range(size), seed).indices(epoch, 0, size).tolist()
    for backend in BACKENDS.values():
        taken: list[list[list[int]]] = []
        for rank in range(world):
            sampler = backend.ResumableDistributedSampler(range(size), world, rank, seed=seed, batch_size=batch_size)
            pair = backend.create_dataloader(
                Points(size), seed, batch_size, sampler=sampler, is_distributed=True, split=split
            )
            taken.append([indices([batch]) for batch in load(pair, Position(epoch))])
        is_whole = pair[1].shard.tail is Tail.WHOLE  # of jax's evaluations, which all ranks compute together
        if is_whole and size % (batch_size * world):
            assert all(each[-1] == taken[0][-1] for each in taken)
            taken[1:] = [each[:-1] for each in taken[1:]]
        together = [index for batch in zip_longest(*taken, fillvalue=[]) for part in batch for index in part]
        padding = -(size % (batch_size * world)) % world if split is DatasetSplit.TRAIN else 0
        assert together == (order + order * world)[: size + padding]


@given(seed=seeds, epoch=epochs, cuts=st.lists(st.integers(1, 11), min_size=1, max_size=6))
@settings(max_examples=15)
def test_a_run_that_changes_batch_size_and_backend_all_the_time_has_the_records_of_one_that_does_not(seed, epoch, cuts):
    size, offset, found = 40, 0, []
    options = {"shuffle": True, "global_rng": "sample"}
    for number, batch_size in enumerate([*cuts, 7]):
        backend = list(BACKENDS.values())[number % 2]
        loader, sampler = backend.create_dataloader(Points(size), seed, batch_size, **options)
        sampler.seek(Position(epoch, offset))
        for batch in loader:
            found += [
                (row.tobytes(), index)
                for row, index in zip(np.asarray(batch["x"]), np.asarray(batch["index"]), strict=True)
            ]
            offset += len(batch["index"])
            if number < len(cuts):
                break
        if offset == size:
            break
    pair = on_jax.create_dataloader(Points(size), seed, size, **options)
    [batch] = load(pair, Position(epoch))
    assert [index for _, index in found] == indices([batch])
    assert b"".join(row for row, _ in found) == batch["x"][2]


# -- worker processes -------------------------------------------------------------------------------------------------


@pytest.mark.processes
@both
def test_batches_depend_neither_on_workers_nor_on_how_far_they_run_ahead(backend):
    def make(**options: Any) -> Any:
        return backend.create_dataloader(Points(30), 5, 4, shuffle=True, **options)

    place = Position(3, 8)
    random.seed(1)
    np.random.seed(1)
    streams = random.getstate(), np.random.get_state()[1].tolist()
    expected = load(make(), place), load(make(), Position(4))
    for workers, ahead in ((1, 1), (1, 4), (2, 2), (2, 3)):
        pair = make(num_workers=workers, prefetch_factor=ahead, persistent_workers=True)
        assert (load(pair, place), load(pair, Position(4))) == expected, (workers, ahead)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == streams


@pytest.mark.processes
def test_workers_beside_a_running_jax_do_not_deadlock():
    program = Path(twins.__file__).with_name("workers_beside_jax.py")
    paths = [*jax_child.PATHS, jax_child.ROOT / "backends/torch"]
    [said] = jax_child.run_children([[program]], seconds=180, PYTHONPATH=":".join(map(str, paths)))
    assert [line for line in said.splitlines() if line.endswith("is done")] == [
        "torch is done",
        "jax is done",
        "torch is done",
    ]


# -- the checks for samplers and loaders ------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["ResumableSequentialSampler", "ResumableRandomSampler"])
def test_the_samplers_pass_the_check(backend, name):
    def make_sampler(size: int, seed: int, batch_size: int, rank: int, world: int) -> Any:
        options = {"seed": seed} if "Random" in name else {}
        sampler = backend.create_sampler(name, range(size), batch_size=batch_size, **options)
        sampler.reshard(Shard(batch_size, rank, world))
        return sampler

    check_sampler_resumes(make_sampler, max_examples=40)


@both
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_distributed_samplers_pass_the_check(backend, drop_last):
    def make_sampler(size: int, seed: int, batch_size: int, rank: int, world: int) -> Any:
        return backend.ResumableDistributedSampler(
            range(size), world, rank, seed=seed, drop_last=drop_last, batch_size=batch_size
        )

    check_sampler_resumes(make_sampler, max_examples=40)


@both
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"global_rng": "sample"}, {"shuffle": False}])
def test_the_loaders_pass_the_check(backend, options):
    check_loader_resumes(
        lambda: backend.create_dataloader(Points(21), 5, 4, **{"shuffle": True, **options}), max_examples=8
    )


@pytest.mark.processes
@both
def test_the_loaders_pass_the_check_with_a_worker(backend):
    def make_loader() -> Any:
        return backend.create_dataloader(Points(21), 5, 4, shuffle=True, num_workers=1, persistent_workers=True)

    check_loader_resumes(make_loader, num_epochs=2, max_examples=1)


class Epochs:
    """A stateless loader as one that has a sampler: the epoch and the place in it are the sampler's."""

    def __init__(self, loader: Any, size: int, *, shuffle: bool) -> None:
        self.loader, self.shuffle = loader, shuffle
        self.sampler = ResumableSequentialSampler(range(size), loader.minibatch_size)
        tail = Tail.DROP if loader.drop_last else Tail.MASK
        self.sampler.reshard(Shard(loader.minibatch_size, tail=tail))

    def __iter__(self) -> Any:
        first = next(self.sampler.requests())
        seed = 77 + first.epoch if self.shuffle else None
        return iter(self.loader.minibatches(seed, start=first.place // self.loader.minibatch_size))


STATELESS = {
    "DataLoader": lambda drop_last: on_jax.DataLoader(Points(23), 4, drop_last=drop_last),
    "InMemoryDataLoader": lambda drop_last: on_jax.InMemoryDataLoader(
        {"x": np.arange(46.0).reshape(23, 2), "label": np.arange(23)}, 4, drop_last
    ),
}


@pytest.mark.parametrize("kind", STATELESS)
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_stateless_loaders_pass_the_check(kind, drop_last, shuffle):
    def make_loader() -> Any:
        loader = Epochs(STATELESS[kind](drop_last), 23, shuffle=shuffle)
        return loader, loader.sampler

    check_loader_resumes(make_loader, max_examples=8)


# -- both at once -----------------------------------------------------------------------------------------------------


def steps(side: str, root: Path, seed: int) -> tuple[Any, Any]:
    trainer = twins.make_trainer(
        side, total_steps=3, valid_frequency=1, print_frequency=1, random_seed=seed, chkpt_root=root
    )
    return trainer, trainer.steps(twins.make_model(side, dropout=0.4), twins.Data())


def run_facts(trainer: Any, side: str, root: Path) -> Any:
    tree = last_tree(root / "net", BACKENDS[side].Arrays() if side == "torch" else None)
    return {"model": tree["model"], "state": tree["state"], "rows": without_clocks(trainer.history)}


@pytest.mark.parametrize("order", [("torch", "jax"), ("jax", "torch")], ids="-".join)
def test_two_runs_that_take_turns_are_those_that_had_the_process_for_themselves(tmp_path, order):
    alone = {}
    for seed, side in enumerate(order):
        trainer, states = steps(side, tmp_path / f"alone-{side}", seed)
        assert len(list(states)) == 3 * twins.NUM_BATCHES
        alone[side] = run_facts(trainer, side, tmp_path / f"alone-{side}")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainers, runs = zip(*(steps(side, tmp_path / side, seed) for seed, side in enumerate(order)), strict=True)
    for one, other in zip_longest(*runs):
        assert one == other
    for side, trainer in zip(order, trainers, strict=True):
        assert trainer.stop_reason == "finished"
        assert first_difference(alone[side], run_facts(trainer, side, tmp_path / side)) is None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
