import copy
import gc
import os
import pickle
import random
import threading
import warnings

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parhelion.data import DataLoaderParams, DatasetSplit, collate, create_loader
from parhelion.errors import WorkerError
from parhelion.sampling import Position
from support.worker_datasets import (
    SIZE,
    At,
    Marked,
    Noisy,
    Plain,
    Together,
    count_descriptors,
    epoch,
    flat,
    is_alive,
    make,
    pids_of,
    taking_less_than,
    wait_until,
)

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def pairs():
    """Loaders by their number of workers; their processes last as long as the module."""
    made = {
        (workers, ahead): make(num_workers=workers, prefetch_factor=ahead)
        for workers, ahead in [(0, 2), (1, 1), (2, 2), (3, 1), (2, 5)]
    }
    yield made
    for loader, _ in made.values():
        loader.close()


@given(number=st.integers(0, 3), offset=st.integers(0, SIZE - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_are_the_same_with_any_number_of_workers_from_any_position(pairs, number, offset):
    first, *others = (epoch(pair, Position(number, offset)) for pair in pairs.values())
    assert all(other == first for other in others)


@pytest.mark.parametrize("mode", ["sample", "off", "batch"])
@pytest.mark.parametrize("split", list(DatasetSplit))
def test_keys_of_every_kind_reach_the_workers(mode, split):
    def rows(**options):
        batches = epoch(make(global_rng=mode, split=split, **options), Position(1, 4))
        return [{**batch, "others": None} for batch in batches] if mode == "off" else batches

    assert rows(num_workers=2) == rows()


@pytest.mark.parametrize("width", [3, 100_000])
def test_a_dataset_that_uses_its_memory_again_gives_the_same_batches(width):
    # The wide ones do not fit into the socket, so they wait in the worker while the next is made.
    expected = [flat(batch) for batch in make(Together(width))[0]]
    loader, _ = make(Together(width), num_workers=1, prefetch_factor=4)
    with loader:
        iterator = iter(loader)
        first = flat(next(iterator))
        assert [first, *map(flat, iterator)] == expected


def test_arrays_from_workers_are_writable_and_do_not_share_memory():
    with make(num_workers=1)[0] as loader:
        batch = next(iter(loader))
    for array in (batch["index"], batch["image"], batch["others"][0]):
        assert array.flags.writeable
    assert batch["image"].base.nbytes == batch["image"].nbytes


def test_loading_with_workers_leaves_the_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tolist()
    with make(num_workers=2)[0] as loader:
        list(loader)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_two_iterations_at_once_do_not_disturb_each_other():
    expected = epoch(make(), Position(2, 4)), epoch(make(), Position(0))
    loader, sampler = make(num_workers=2, prefetch_factor=1)
    sampler.seek(Position(2, 4))
    one = iter(loader)
    sampler.seek(Position(0))
    two = iter(loader)
    given_two = [flat(next(two)) for _ in range(3)]
    given_one = [flat(next(one)), flat(next(one))]
    given_two += map(flat, two)
    given_one += map(flat, one)
    assert (given_one, given_two) == expected
    loader.close()


def test_iterations_in_two_threads_do_not_disturb_each_other():
    with make(num_workers=2)[0] as loader:
        expected, found = [flat(batch) for batch in loader], [None] * 3

        def work(k):
            found[k] = [flat(batch) for batch in loader]

        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [expected] * 3


def test_an_iteration_left_early_gives_nothing_stale_to_the_next():
    expected = epoch(make(), Position(7))
    pair = make(num_workers=2, prefetch_factor=3)
    for number in range(4):
        pair[1].seek(Position(number))
        next(iter(pair[0]))
    assert epoch(pair, Position(7)) == expected
    pair[0].close()


def test_what_a_left_iteration_has_not_begun_is_not_made(tmp_path):
    def note(self, index):
        with (tmp_path / "made").open("a") as file:
            file.write(f"{index} ")
        if index == 0:
            wait_until((tmp_path / "go").exists)
        return index

    kind = type("Noting", (Plain,), {"__getitem__": note})
    loader, sampler = make(kind(), shuffle=False, num_workers=1, prefetch_factor=3)
    with loader:
        iter(loader)  # asks for the first three batches, and is gone
        sampler.seek(Position(0, 20))
        batches = iter(loader)
        (tmp_path / "go").touch()
        assert next(batches).tolist() == [20, 21, 22]
    made = [int(index) for index in (tmp_path / "made").read_text().split()]
    assert made in ([0, 1, 2, 3, 20, 21, 22], [20, 21, 22])


def test_the_position_is_read_when_an_iteration_begins():
    loader, sampler = make(Plain(), num_workers=1, prefetch_factor=1)
    with loader:
        sampler.seek(Position(0, 8))
        batches = iter(loader)
        sampler.seek(Position(0, 0))
        assert next(batches).tolist() == sampler.indices(0, 8, 12).tolist()


def test_batch_k_is_made_by_worker_k_modulo_their_number():
    loader, _ = make(Marked(), num_workers=3)
    with loader:
        makers = [set(batch[1].tolist()) for batch in loader]
        assert makers == [{pids_of(loader)[k % 3]} for k in range(6)]


@pytest.mark.parametrize(("workers", "ahead"), [(2, 1), (1, 3)])
def test_no_more_batches_are_made_ahead_than_was_said(workers, ahead):
    loader, _ = make(Plain(), num_workers=workers, prefetch_factor=ahead)
    with loader:
        batches = iter(loader)
        asked = []
        for _ in range(6):
            asked.append([len(worker._asked) for worker in loader._pool._workers])
            next(batches)
    assert asked[0] == [ahead] * workers
    assert max(map(sum, asked)) == ahead * workers


def test_workers_start_with_the_first_iteration_and_serve_the_next_ones():
    before = count_descriptors()
    loader, _ = make(Marked(), num_workers=2)
    assert count_descriptors() == before
    first, second = ({pid for batch in loader for pid in batch[1].tolist()} for _ in range(2))
    assert first == second == set(pids_of(loader))
    loader.close()


def test_workers_that_are_not_persistent_end_with_the_iteration():
    loader, _ = make(Marked(), num_workers=2, persistent_workers=False)
    first, second = ({pid for batch in loader for pid in batch[1].tolist()} for _ in range(2))
    assert len(first | second) == 4
    assert not any(map(is_alive, first | second))
    for which in range(2):
        left = iter(loader)
        pid = int(next(left)[1][0])
        assert is_alive(pid)
        (left, loader)[which].close()
        assert not is_alive(pid)
    left = iter(loader)
    pid = int(next(left)[1][0])
    del left
    assert not is_alive(pid)


def test_workers_end_with_the_loader():
    loader, _ = make(Marked(), num_workers=2)
    gc.disable()
    try:
        batches = iter(loader)
        next(batches)
        pids = pids_of(loader)
        del loader
        assert all(map(is_alive, pids))
        assert sum(1 for _ in batches) == 5
        del batches
        assert not any(map(is_alive, pids))
    finally:
        gc.enable()


def test_a_closed_loader_begins_again_with_new_workers():
    loader, _ = make(Plain(), num_workers=1)
    with loader as same:
        assert same is loader
        left = iter(loader)
        next(left)
        pids = pids_of(loader)
    assert not any(map(is_alive, pids))
    with pytest.raises(WorkerError, match=r"workers were ended while it was iterated over.* Begin another iteration"):
        list(left)
    assert len(list(loader)) == 6
    assert pids_of(loader) != pids
    loader.close()
    loader.close()


def test_closing_wakes_who_waits_in_another_thread(tmp_path):
    def wait():
        (tmp_path / "begun").touch()
        threading.Event().wait(60)

    loader, _ = make(At(wait), shuffle=False, num_workers=1)
    caught = []

    def work():
        try:
            list(loader)
        except WorkerError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    wait_until((tmp_path / "begun").exists)
    with taking_less_than(5):
        loader.close()
        thread.join(30)
    assert "workers were ended" in caught[0]


def test_no_file_descriptor_is_left_open():
    gc.collect()
    before = count_descriptors()
    with make(num_workers=2)[0] as loader:
        for _ in range(30):
            next(iter(loader))
            list(loader)
        most_slots = 2 + 2 + 8  # made ahead, in use, kept
        assert count_descriptors() <= before + 2 * (most_slots + 2)
    assert count_descriptors() == before


def test_a_loader_can_be_pickled_and_copied_without_its_workers():
    loader, _ = make(Plain(), num_workers=1)
    with loader:
        expected = [flat(batch) for batch in loader]
        read = pickle.loads(pickle.dumps(loader))  # noqa: S301 - our own bytes
        for other in (read, copy.copy(loader), copy.deepcopy(loader)):
            with other:
                assert [flat(batch) for batch in other] == expected
                assert pids_of(other) != pids_of(loader)


# The warning is jax's, where its tests share the process; nothing here uses it.
@pytest.mark.filterwarnings("ignore:.*os.fork:RuntimeWarning")
def test_a_process_forked_from_the_parent_has_workers_of_its_own():
    loader, _ = make(Plain(), num_workers=1)
    expected = [flat(batch) for batch in loader]
    left = iter(loader)
    next(left)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads should not, but users do
        child = os.fork()
    if not child:
        good = False
        try:
            good = [flat(batch) for batch in loader] == expected
            loader.close()
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(left)) == 5
    assert [flat(batch) for batch in loader] == expected
    loader.close()


def test_worker_init_fn_prepares_each_worker():
    prepared = []

    def prepare(worker):
        prepared.append(worker)

    class Shown(Plain):
        def __getitem__(self, index):
            return prepared[0] * 100 + len(prepared)

    loader, _ = make(Shown(), num_workers=2, worker_init_fn=prepare)
    with loader:
        assert [batch.tolist()[0] for batch in loader] == [1, 101] * 3
    assert prepared == []


def test_workers_share_the_arrays_of_the_dataset_until_they_write():
    class Held(Plain):
        def __init__(self):
            self.x = np.arange(SIZE * 1000.0).reshape(SIZE, 1000)

        def __getitem__(self, index):
            self.x[index] += 1
            return self.x[index], self.x.flags.owndata

    dataset = Held()
    loader, _ = make(dataset, shuffle=False, num_workers=2)
    with loader:
        rows, owned = collate([(row, own) for batch in loader for row, own in zip(*batch, strict=True)])
    assert np.array_equal(rows, np.arange(SIZE * 1000.0).reshape(SIZE, 1000) + 1)
    assert not owned.any()
    assert dataset.x[3, 0] == 3000


def test_a_batch_of_a_local_class_comes_back_as_that_class():
    @attrs.frozen
    class Pair:
        a: object
        calls = 0

        def twice(self):
            return self.a * 2

    class Pairs(Plain):
        def __getitem__(self, index):
            Pair.calls += 1
            return Pair(index)

    method = Pair.twice
    loader, _ = make(Pairs(), shuffle=False, num_workers=1)
    with loader:
        batches = list(loader)
    assert {type(batch) for batch in batches} == {Pair}
    assert batches[1].twice().tolist() == [8, 10, 12, 14]
    assert (Pair.twice, Pair.calls) == (method, 0)


def test_many_arrays_and_large_ones_arrive_whole():
    class Wide(Plain):
        def __getitem__(self, index):
            return [np.full(600, index + k) for k in range(1100)]

    loader, _ = make(Wide(), shuffle=False, num_workers=2)
    with loader:
        for number, batch in enumerate(loader):
            assert all(
                (column[:, 0] == np.arange(len(column)) + 4 * number + k).all() for k, column in enumerate(batch)
            )


def test_long_requests_never_block_the_parent(tmp_path):
    class Numbers:
        def __len__(self):
            return 1_000_000

        def __getitems__(self, indices):
            wait_until((tmp_path / "go").exists, 10)
            return indices

    options = {"batch_size": 100_000, "num_workers": 1, "prefetch_factor": 8, "collate_fn": np.array}
    loader, _ = make(Numbers(), shuffle=False, **options)
    with loader:
        batches = iter(loader)  # asks for eight at once, which is more than the socket holds
        (tmp_path / "go").touch()
        assert np.array_equal(np.concatenate(list(batches)), np.arange(1_000_000))


def test_create_loader_takes_workers_and_their_options_from_the_params():
    options = {"prefetch_factor": 3, "persistent_workers": False, "timeout": 60, "worker_init_fn": int}
    params = DataLoaderParams(7, 4, num_workers=2, options={"global_rng": "sample", **options})
    loader, _ = create_loader(Noisy(), DatasetSplit.VALID, params)
    assert loader.num_workers == 2
    assert attrs.asdict(loader._options) == {"num_workers": 2, "worker_type": "process", **options}
    alone, _ = create_loader(Noisy(), DatasetSplit.VALID, attrs.evolve(params, debug_mode=True))
    assert alone.num_workers == 0
    assert [flat(batch) for batch in loader] == [flat(batch) for batch in alone]
