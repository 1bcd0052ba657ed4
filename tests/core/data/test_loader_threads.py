"""Threads that make batches ahead."""

import gc
import os
import signal
import threading
import time
import warnings

import pytest

from parhelion.data import _loader
from parhelion.errors import InvalidValueError, RecordError, WorkerError
from parhelion.sampling import Position
from parhelion.seeds import sample_rng
from support.worker_datasets import Noisy, Plain, epoch, make, taking_less_than, wait_until


class Own(Plain):
    """Draws from its own generators only, and says which thread made it."""

    def __getitem__(self, index):
        return {"index": index, "own": sample_rng().random(), "thread": threading.current_thread().name}


def load(dataset=None, **options):
    dataset = Own() if dataset is None else dataset
    return make(dataset, **{"num_workers": 2, "worker_type": "thread", "global_rng": "off", **options})


def names_of(batches):
    return {name for batch in batches for name in batch["thread"]}


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("parhelion-loader")]


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("ahead", [1, 4])
def test_batches_are_the_same_with_any_number_of_threads(number, ahead):
    def plain(batches):
        return [{key: batch[key] for key in ("index", "own")} for batch in batches]

    for position in (Position(0), Position(2, 9)):
        with load(num_workers=number, prefetch_factor=ahead)[0] as loader:
            expected = epoch(load(num_workers=0), position)
            assert plain(epoch((loader, loader.sampler), position)) == plain(expected)


def test_threads_work_ahead_and_the_consumer_does_not():
    with load()[0] as loader:
        assert len(names_of(loader) - {threading.current_thread().name}) in (1, 2)
        assert threading.current_thread().name not in names_of(loader)


def test_no_more_batches_are_made_ahead_than_was_said():
    made = []

    class Counts(Plain):
        def __getitem__(self, index):
            made.append(index)
            return index

    with load(Counts(), prefetch_factor=1, shuffle=False)[0] as loader:
        batches = iter(loader)
        next(batches)
        wait_until(lambda: len(made) == 12)  # one given, two ahead
        time.sleep(0.05)
        assert len(made) == 12


def test_where_records_may_draw_from_the_process_batches_are_made_here_and_it_is_said(caplog):
    _loader._tell_bound.cache_clear()
    before = {*loader_threads()}  # of tests before, which may be ending
    expected = epoch(make(Noisy()), Position(1))
    with make(Noisy(), num_workers=3, worker_type="thread")[0] as loader:
        assert loader.is_thread_bound
        assert epoch((loader, loader.sampler), Position(1)) == expected
        assert {*loader_threads()} <= before
    assert "with global_rng='off' they do: sample_rng() is a sample's own" in caplog.text


def test_a_record_that_fails_is_named_and_the_next_iteration_is_whole():
    class Fails(Plain):
        def __getitem__(self, index):
            if index == 6:
                raise OSError("gone")
            return index

    loader, sampler = load(Fails(), shuffle=False)
    with loader:
        batches = iter(loader)
        assert next(batches).tolist() == [0, 1, 2, 3]
        with pytest.raises(RecordError, match="record with sample index 6 of Fails failed"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)
        sampler.seek(Position(0, 8))
        assert next(iter(loader)).tolist() == [8, 9, 10, 11]


def test_a_thread_that_hangs_is_told_of_after_the_timeout():
    go_on = threading.Event()

    class Hangs(Plain):
        def __getitem__(self, index):
            if index == 6:
                go_on.wait(30)
            return index

    message = r"gave no batch for 0\.2 s while it made the one at place 4 of epoch 0 \(sample indices \[4, 5, 6, 7\]\)"
    with load(Hangs(), shuffle=False, timeout=0.2)[0] as loader, taking_less_than(10):
        batches = iter(loader)
        next(batches)
        with pytest.raises(WorkerError, match=message):
            next(batches)
        go_on.set()


def test_a_loader_that_is_closed_in_the_middle_says_so():
    loader, _ = load()
    batches = iter(loader)
    next(batches)
    loader.close()
    with pytest.raises(WorkerError, match="threads were ended while it was iterated over"):
        list(batches)
    assert len(list(loader)) == 6
    loader.close()


@pytest.mark.parametrize("persistent", [True, False])
def test_threads_end_with_the_loader_or_the_iteration(persistent):
    loader, _ = load(persistent_workers=persistent)
    list(loader)
    if persistent:
        assert len(loader_threads()) >= 2
    del loader
    gc.collect()
    wait_until(lambda: not loader_threads())


def test_worker_init_fn_prepares_each_thread():
    numbers = []
    with load(worker_init_fn=numbers.append)[0] as loader:
        list(loader)
    assert sorted(numbers) == [0, 1]


def test_a_worker_init_fn_that_fails_is_told_of_each_time():
    def fail(number):
        raise OSError("no camera")

    with load(worker_init_fn=fail)[0] as loader:
        for _ in range(2):
            with pytest.raises(WorkerError, match=r"worker_init_fn failed in a thread .*OSError: no camera"):
                list(loader)


def test_a_stop_iteration_of_a_collate_function_does_not_end_the_epoch():
    def stop(records):
        raise StopIteration

    with load(collate_fn=stop)[0] as loader, pytest.raises(WorkerError, match="raised StopIteration"):
        list(loader)


def test_a_forked_process_has_threads_of_its_own():
    with load()[0] as loader:
        list(loader)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(len(list(loader)))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6


def test_another_type_of_worker_is_refused():
    with pytest.raises(InvalidValueError, match="worker_type is 'fiber'; expected 'process' or 'thread'"):
        load(worker_type="fiber")
