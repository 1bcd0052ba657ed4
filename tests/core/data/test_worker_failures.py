"""What can go wrong with a worker process, and what the parent then says."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from parhelion.data import DataLoaderParams, DatasetSplit, Loader, create_loader
from parhelion.data._fork_server import close_server
from parhelion.errors import CollateError, DataError, InvalidTypeError, InvalidValueError, RecordError, WorkerError
from support.worker_datasets import At, Plain, count_descriptors, is_alive, make, pids_of, taking_less_than, wait_until

pytestmark = pytest.mark.processes

PLACE = r"at place 4 of epoch 0 \(sample indices 4, 5, 6, 7\), at sample index 6"


def load(act=None, dataset=None, **options):
    """Return the first batch, and then what the second one raises."""
    loader, _ = make(At(act) if dataset is None else dataset, shuffle=False, **{"num_workers": 2, **options})
    with loader:
        batches = iter(loader)
        assert next(batches).tolist() == [0, 1, 2, 3]
        next(batches)


def disk():
    raise OSError(5, "disk is gone")


def test_an_error_of_the_dataset_comes_with_sample_index_cause_and_traceback():
    with pytest.raises(RecordError, match=r"^record with sample index 6 of At failed \(OSError") as caught:
        load(disk)
    assert "It was raised in worker process 1:\nTraceback" in str(caught.value)
    assert 'raise OSError(5, "disk is gone")' in str(caught.value)
    assert (type(caught.value.__cause__), caught.value.__cause__.errno) == (OSError, 5)


def test_records_that_do_not_fit_together_are_named():
    with pytest.raises(CollateError, match=r"sample index 6 \(record 2 of the batch\) is None"):
        load(dataset=type("Gap", (Plain,), {"__getitem__": lambda _, index: None if index == 6 else index})())


def test_workers_go_on_after_an_error():
    loader, _ = make(At(disk), shuffle=False, num_workers=2)
    with loader:
        for _ in range(3):
            batches = iter(loader)
            next(batches)
            with pytest.raises(RecordError):
                next(batches)
            with pytest.raises(StopIteration):
                next(batches)
            pids = pids_of(loader)
            assert all(map(is_alive, pids))
        assert len(set(pids)) == 2


class FarError(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


class OwnError(Exception):
    pass


def raise_local(records):
    class LocalError(Exception):
        pass

    raise LocalError("nowhere to be found")


def raise_stop(records):
    raise StopIteration("no batch")


def raise_far(records):
    raise FarError(3, "five")


def raise_key(records):
    raise KeyError("records")


@pytest.mark.parametrize(
    ("collate_fn", "kind", "message"),
    [
        (raise_local, WorkerError, "nowhere to be found"),
        (raise_stop, WorkerError, "no batch"),
        (raise_far, WorkerError, "3: five"),
        (raise_key, KeyError, "records"),
    ],
)
def test_an_error_of_any_type_comes_out_of_a_worker(collate_fn, kind, message):
    # None of them may look like the end of the epoch.
    loader, _ = make(Plain(), num_workers=1, collate_fn=collate_fn)
    with loader, pytest.raises(kind, match=message) as caught:
        list(loader)
    assert "It was raised in worker process 0" in str(caught.value)


def test_an_error_of_a_class_that_travels_by_value_is_of_that_class():
    class LocalError(Exception):
        pass

    def fail(records):
        raise LocalError("here")

    loader, _ = make(Plain(), num_workers=1, collate_fn=fail)
    with loader, pytest.raises(LocalError, match="here"):
        list(loader)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def crash():
    faulthandler.disable()
    ctypes.string_at(0)


@pytest.mark.parametrize(
    ("act", "how"),
    [
        (kill, r"was killed by signal SIGKILL \(as when memory runs out\)"),
        (crash, "was killed by signal SIGSEGV"),
        (lambda: os._exit(3), "ended with exit code 3"),
        (lambda: sys.exit(4), "ended with exit code 4"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 1), "was killed by signal 35"),
    ],
)
def test_a_worker_that_dies_is_told_of_at_once_and_replaced_in_the_next_iteration(act, how):
    loader, sampler = make(At(act), shuffle=False, num_workers=2)
    with loader:
        batches = iter(loader)
        assert next(batches).tolist() == [0, 1, 2, 3]
        pids = pids_of(loader)
        message = rf"^worker process 1 \(pid {pids[1]}\) {how} while it made the batch {PLACE}; .* num_workers=0"
        with taking_less_than(5), pytest.raises(WorkerError, match=message):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)
        assert not any(map(is_alive, pids))
        sampler.start_iter = 2
        assert len(list(loader)) == 4


def test_what_was_made_before_a_worker_died_is_given_first():
    loader, _ = make(At(kill), shuffle=False, num_workers=1, prefetch_factor=6)
    with loader:
        batches = iter(loader)
        wait_until(lambda: not is_alive(pids_of(loader)[0]))
        assert next(batches).tolist() == [0, 1, 2, 3]
        with pytest.raises(WorkerError, match=PLACE):
            next(batches)


def test_workers_are_replaced_if_one_died_while_it_waited():
    loader, _ = make(Plain(), shuffle=False, num_workers=2)
    with loader:
        list(loader)
        first = pids_of(loader)
        dead = loader._pool._workers[0].process
        os.kill(dead.pid, signal.SIGTERM)
        wait_until(lambda: dead.poll() is not None)
        assert len(list(loader)) == 6
        assert not {*first} & {*pids_of(loader)}
        assert not is_alive(first[1])


def test_a_dead_worker_is_noticed_though_a_child_of_it_holds_the_socket():
    def leave_a_child_behind():
        if not os.fork():
            signal.alarm(20)
            signal.pause()
        os._exit(5)

    with taking_less_than(15), pytest.raises(WorkerError, match="ended with exit code 5"):
        load(leave_a_child_behind)


def hang():
    threading.Event().wait(60)


def test_a_worker_that_hangs_is_told_of_after_the_timeout():
    message = (
        rf"gave no batch for 0\.3 s while it made the batch {PLACE}; expected one within the timeout\. Raise timeout"
    )
    with taking_less_than(10), pytest.raises(WorkerError, match=message):
        load(hang, timeout=0.3)


class Late(Plain):
    """Quick records, and then one that takes long."""

    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 400

    def __getitem__(self, index):
        if index == 200:
            self.act()
        return np.full(3, index)


@pytest.mark.parametrize("act", [lambda: time.sleep(60), lambda: (time.sleep(0.2), os._exit(3))])
def test_batches_made_before_a_record_that_hangs_come_and_the_record_is_named(act):
    loader, _ = make(Late(act), shuffle=False, num_workers=1, timeout=1.0)
    with loader:
        batches, found = iter(loader), []
        with pytest.raises(WorkerError, match=r"at place 200 of epoch 0 \(.*\), at sample index 200"):
            found.extend(int(batch[0, 0]) for batch in batches)
        assert found == list(range(0, 200, 4))


def test_the_timeout_does_not_count_the_start():
    loader, _ = make(Plain(), num_workers=1, timeout=0.05, worker_init_fn=lambda _: threading.Event().wait(0.3))
    with loader:
        assert len(list(loader)) == 6


def test_a_stopped_worker_is_told_of_in_the_middle_of_a_batch():
    def stop(records):
        os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.raises(WorkerError, match=r"gave no batch for 0\.2 s"):
        list(make(Plain(), num_workers=1, timeout=0.2, collate_fn=stop)[0])


def test_a_dataset_that_cannot_be_sent_is_named_with_what_is_in_the_way():
    class Locked(Plain):
        def __init__(self):
            self.parts = {"x": [1, threading.Lock()]}

    before = count_descriptors()
    message = (
        r"^dataset cannot be sent to a worker process: dataset\.parts\['x'\]\[1\] is a lock, which cannot be pickled "
        r"\(TypeError: cannot pickle '_thread.lock' object\); .* num_workers=0"
    )
    with pytest.raises(WorkerError, match=message):
        iter(make(Locked(), num_workers=1)[0])
    assert count_descriptors() == before


@pytest.mark.parametrize("name", ["collate_fn", "worker_init_fn"])
def test_a_function_that_cannot_be_sent_is_named(name):
    lock = threading.Lock()
    loader, _ = make(Plain(), num_workers=1, **{name: lambda _: lock})
    with pytest.raises(WorkerError, match=rf"^{name} cannot be sent to a worker process: {name} is a function, which"):
        iter(loader)


class Absent:
    """Its instances can be written, and not read in another process."""

    def __reduce__(self):
        return __import__, ("no_such_module",)


def test_a_dataset_that_cannot_be_rebuilt_in_the_worker_is_told_of():
    dataset = Plain()
    dataset.part = Absent()
    message = (
        r"^the dataset, or what is sent along with it, cannot be rebuilt in worker process 0 \(ModuleNotFoundError: No "
        r"module named 'no_such_module'\); expected modules that it can import .*num_workers=0\.\n\nTraceback"
    )
    loader, _ = make(dataset, num_workers=2)
    with pytest.raises(WorkerError, match=message):
        list(loader)


def test_a_worker_init_fn_that_fails_is_told_of():
    def prepare(worker):
        raise ValueError("x" * 1_000_000)

    with pytest.raises(WorkerError, match=r"^worker_init_fn failed in worker process 0 \(ValueError: x+\)") as caught:
        list(make(Plain(), num_workers=1, worker_init_fn=prepare)[0])
    assert "in prepare" in str(caught.value)


def test_a_worker_that_ends_while_it_starts_is_told_of():
    loader, _ = make(Plain(), num_workers=1, worker_init_fn=os._exit)
    with pytest.raises(WorkerError, match="ended with exit code 0 while it was starting"):
        list(loader)


def test_an_interpreter_that_cannot_be_run_is_told_of(monkeypatch):
    close_server()  # or the one that is there would serve
    before = count_descriptors()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    message = r"^worker process 0 cannot be started \(FileNotFoundError: .*expected that '/no/such/python' can be run"
    with pytest.raises(WorkerError, match=message):
        iter(make(Plain(), num_workers=1)[0])
    assert count_descriptors() == before


def test_a_batch_that_cannot_be_sent_is_named_and_the_next_one_comes():
    def collate(records):
        return {"x": (0, (k for k in records))} if 6 in records else np.array(records)

    loader, sampler = make(Plain(), shuffle=False, num_workers=1, collate_fn=collate)
    message = (
        r"^batch with sample indices 4, 5, 6, 7 cannot be sent from worker process 0: batch\['x'\]\[1\] is a "
        r"generator, which cannot be pickled \(TypeError: .*num_workers=0"
    )
    with loader:
        with pytest.raises(WorkerError, match=message):
            list(loader)
        sampler.start_iter = 2
        assert next(iter(loader)).tolist() == [8, 9, 10, 11]


def test_a_batch_that_cannot_be_rebuilt_here_is_told_of():
    message = r"^a batch that came from a worker process cannot be rebuilt here \(ModuleNotFoundError: .*num_workers=0"
    loader, _ = make(Plain(), num_workers=1, collate_fn=lambda _: Absent())
    with loader, pytest.raises(WorkerError, match=message):
        list(loader)


def test_long_lists_of_indices_are_cut_in_messages():
    with pytest.raises(WorkerError, match=r"\(sample indices 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(20 in all\)\)"):
        list(make(At(kill), shuffle=False, batch_size=20, num_workers=1)[0])


def test_an_interrupt_while_a_batch_is_waited_for_ends_the_workers():
    loader, sampler = make(At(hang), shuffle=False, num_workers=1)
    batches = iter(loader)
    next(batches)
    pids = pids_of(loader)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not any(map(is_alive, pids))
    sampler.start_iter = 2
    assert len(list(loader)) == 4
    loader.close()


def test_a_worker_error_is_a_data_error_and_a_runtime_error():
    assert WorkerError.__bases__ == (DataError, RuntimeError)


BAD = [
    ("num_workers", -1, InvalidValueError, r"num_workers is -1; expected an integer >= 0\. 0 loads in this process"),
    ("num_workers", 1.5, InvalidTypeError, r"num_workers is 1\.5; expected an integer >= 0\. 0 loads"),
    ("prefetch_factor", 0, InvalidValueError, r"prefetch_factor is 0; expected an integer >= 1\. It counts"),
    ("prefetch_factor", True, InvalidTypeError, r"prefetch_factor is True; expected an integer >= 1\. It counts"),
    ("persistent_workers", 1, InvalidTypeError, r"persistent_workers is 1; expected True or False\. True keeps"),
    ("timeout", -1, InvalidValueError, r"timeout is -1; expected a number of seconds >= 0\. 0 waits as long"),
    ("timeout", float("nan"), InvalidValueError, r"timeout is nan; expected a number of seconds >= 0\. 0 waits"),
    ("timeout", "5", InvalidTypeError, r"timeout is '5'; expected a number of seconds >= 0\. 0 waits as long"),
    ("worker_init_fn", 3, InvalidTypeError, r"worker_init_fn is 3; expected a function of a worker's number\. Leave"),
]


@pytest.mark.parametrize(("name", "value", "kind", "message"), BAD)
def test_a_bad_argument_is_refused(name, value, kind, message):
    with pytest.raises(kind, match=message):
        make(Plain(), **{name: value})


def test_options_of_workers_without_workers_are_taken_in_silence():
    options = {"prefetch_factor": 4, "persistent_workers": True, "timeout": 3, "worker_init_fn": int}
    loader, _ = create_loader(Plain(), DatasetSplit.TRAIN, DataLoaderParams(batch_size=23, options=options))
    assert isinstance(loader, Loader)
    assert len(list(loader)) == 1
    loader.close()
