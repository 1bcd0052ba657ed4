"""Maps over iterables of batches; several devices are in tests/support/sharding_facts.py."""

from __future__ import annotations

import contextlib
import gc
import inspect
import random
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from parhelion.data import Loader, SizedIterable
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import ResumableSequentialSampler
from parhelion_jax import prefetch
from parhelion_jax.minibatches import DataLoader, InMemoryDataLoader, cycled_minibatches
from parhelion_jax.prefetch import mesh_map, prefetching_map, sharding_map
from support import jax_child
from support.worker_datasets import SIZE, Noisy, Plain, flat

DEVICE = jax.devices("cpu")[0]
EIGHT = Path(jax_child.__file__).with_name("sharding_facts.py")
TWO = EIGHT.with_name("shared_sharding_facts.py")


class Batch:
    """Something that can be referred to weakly."""


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "parhelion-prefetch"]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    wait_until(lambda: not threads())


# Order, length, repetition


def test_defect_11_items_come_in_the_order_of_the_inputs():
    assert list(prefetching_map(range(8))) == [0, 1, 2, 3, 4, 5, 6, 7]


@given(count=st.integers(0, 20), buffer_size=st.integers(0, 25), put=st.booleans())
def test_the_same_items_come_with_any_buffer(count, buffer_size, put):
    mapped = prefetching_map([np.array(k) for k in range(count)], DEVICE if put else None, buffer_size)
    assert isinstance(mapped, SizedIterable)
    assert len(mapped) == count
    for _ in range(2):
        assert [int(item) for item in mapped] == list(range(count))


def test_what_has_no_length_gets_none():
    for mapped in (
        prefetching_map(iter([1, 2])),
        sharding_map(iter([np.ones(2)]), [DEVICE]),
        mesh_map(iter([np.ones(2)])),
    ):
        assert not hasattr(mapped, "__len__")
        assert len(list(mapped)) in (1, 2)


def test_two_iterations_at_once_do_not_disturb_each_other():
    mapped = prefetching_map(range(30), buffer_size=3)
    assert list(zip(mapped, mapped, strict=True)) == [(k, k) for k in range(30)]


def test_maps_over_maps_keep_length_and_order():
    minibatches = InMemoryDataLoader(np.arange(12), 4).minibatches(0)
    mapped = prefetching_map(sharding_map(minibatches, [DEVICE]))
    assert len(mapped) == 3
    assert [item[0].tolist() for item in mapped] == [each.tolist() for each in minibatches]


# What is made ahead, and where


def test_no_more_batches_exist_at_once_than_the_buffer_size():
    for buffer_size, ahead in [(0, 0), (1, 0), (2, 1), (5, 4)]:
        made = []

        def numbers(made=made):
            for k in range(20):
                made.append(k)
                yield k

        items = iter(prefetching_map(numbers(), None, buffer_size))
        for k in range(4):
            assert next(items) == k
            wait_until(lambda made=made, count=k + 1 + ahead: len(made) >= count)
            assert len(made) == k + 1 + ahead
        getattr(items, "close", int)()


def test_a_batch_is_made_while_the_one_before_is_used():
    wanted, done = threading.Event(), threading.Event()

    def batches():
        yield 0
        assert wanted.wait(20)
        done.set()
        yield 1

    items = iter(prefetching_map(batches()))
    assert next(items) == 0
    wanted.set()
    assert done.wait(20)
    assert next(items) == 1
    items.close()


def test_no_thread_is_started_without_a_buffer():
    names = []
    for buffer_size in (0, 1, 2):
        names.append([threading.current_thread().name for _ in prefetching_map([0], buffer_size=buffer_size)])

        def here():
            yield threading.current_thread().name

        names[-1] += list(prefetching_map(here(), buffer_size=buffer_size))
    main = threading.current_thread().name
    assert names == [[main, main], [main, main], [main, "parhelion-prefetch"]]


def test_a_batch_lives_only_as_long_as_its_user_wants_it():
    alive = weakref.WeakSet()

    def batches():
        for _ in range(6):
            batch = Batch()
            alive.add(batch)
            yield batch
            del batch

    items = iter(prefetching_map(batches()))
    for _ in range(3):
        batch = next(items)
        wait_until(lambda: len(alive) == 2)
        del batch
        wait_until(lambda: len(alive) == 1)
    items.close()
    wait_until(lambda: not alive)


# Ends


@pytest.mark.parametrize("by", ["close", "del", "cycle"])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_iteration_left_early_leaves_nothing(by, taken):
    is_closed = []
    alive = weakref.WeakSet()

    def batches():
        try:
            while True:
                batch = Batch()
                alive.add(batch)
                yield batch
        finally:
            is_closed.append(True)

    source = batches()
    items = iter(prefetching_map(source, buffer_size=3))
    for _ in range(taken):
        next(items)
    ref = weakref.ref(source)
    if by == "close":
        items.close()
    elif by == "cycle":
        holder = [items]
        holder.append(holder)
        del holder
    del items, source
    gc.collect()
    wait_until(lambda: not threads())
    wait_until(lambda: gc.collect() is not None and ref() is None)
    assert not alive
    assert bool(is_closed) == bool(taken)


def test_inputs_are_closed_when_the_loop_is_left_and_not_when_they_have_ended():
    class Inputs:
        is_closed = False

        def __init__(self, count):
            self.numbers = iter(range(count))

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.numbers)

        def close(self):
            self.is_closed = True

    left, ended = Inputs(9), Inputs(9)
    for _ in prefetching_map(left):
        break
    gc.collect()
    wait_until(lambda: left.is_closed)
    list(prefetching_map(ended))
    wait_until(lambda: not threads())
    assert not ended.is_closed


def test_the_loop_of_an_endless_input_may_be_left():
    loader = InMemoryDataLoader(np.arange(8), 2)
    for count, _ in enumerate(prefetching_map(cycled_minibatches(loader, 0))):
        if count == 10:
            break
    gc.collect()
    wait_until(lambda: not threads())


@pytest.mark.parametrize("buffer_size", [0, 2, 9])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt, StopAsyncIteration])
def test_an_error_of_the_inputs_comes_where_its_batch_would_have_come(buffer_size, kind):
    def batches():
        yield from range(3)
        raise kind("disk is gone")

    items = iter(prefetching_map(batches(), None, buffer_size))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(kind, match="disk is gone") as caught:
        next(items)
    assert [entry.name for entry in caught.traceback][-1] == "batches"
    assert list(items) == []


def test_an_error_of_placing_comes_in_order_and_the_inputs_are_closed():
    is_closed = threading.Event()

    def batches():
        try:
            yield {"x": np.zeros(2)}
            yield {"x": np.array([2**40])}
        finally:
            is_closed.set()

    source = batches()  # so that it does not end by having no user
    items = iter(prefetching_map(source, DEVICE))
    next(items)
    with pytest.raises(InvalidValueError, match=r"field 'x' of a batch has 1099511627776; expected what fits int32"):
        next(items)
    assert is_closed.wait(20)


def test_an_input_that_cannot_begin_says_so_in_the_loop_s_own_thread():
    class Inputs:
        def __iter__(self):
            raise OSError(threading.current_thread().name)

    with pytest.raises(OSError, match=threading.current_thread().name):
        next(iter(prefetching_map(Inputs())))


@pytest.mark.processes
def test_the_interpreter_ends_in_the_middle_of_an_iteration():
    code = """
import time, itertools, numpy as np, jax
from parhelion_jax.prefetch import prefetching_map
def batches():
    try:
        for k in itertools.count():
            time.sleep(0.001)
            yield np.full(100, k)
    finally:
        print("closed")
items = iter(prefetching_map(batches(), jax.devices()[0], 40))
print(next(items)[0])
"""
    (output,) = jax_child.run_children([["-c", code]])
    assert output.split() == ["0", "closed"]


# Generators of the process


def test_a_loader_that_keys_the_process_s_generators_is_read_in_the_loop_s_thread(caplog):
    prefetch._tell_bound.cache_clear()
    caplog.set_level("INFO", "parhelion")

    class Where(Plain):
        def __getitem__(self, index):
            return {"thread": threading.current_thread().name}

    loader = DataLoader(Where(), 4)
    sampler = ResumableSequentialSampler(Where(), 4)
    main = threading.current_thread().name
    names = [
        next(iter(prefetching_map(inputs)))["thread"][0]
        for inputs in (
            loader.minibatches(0),
            mesh_map(loader.minibatches(0)),
            prefetching_map(loader.minibatches(0)),
            Loader(Where(), sampler),
        )
    ]
    assert names == [main] * 4
    (said,) = [record.message for record in caplog.records if "prefetching_map" in record.message]
    assert said.startswith("prefetching_map reads this loader in the loop's own thread, since its dataset may draw")
    free = DataLoader(Where(), 4, global_rng="off").minibatches(0)
    assert [each["thread"][0] for each in prefetching_map(free)] == ["parhelion-prefetch"] * 5


def test_what_the_loop_draws_and_what_the_dataset_draws_stay_apart():
    plain = [flat(each) for each in DataLoader(Noisy(), 4).minibatches(0)]
    random.seed(0)
    expected = [random.random() for _ in range(5)]
    random.seed(0)
    drawn, given = [], []
    for minibatch in prefetching_map(DataLoader(Noisy(), 4).minibatches(0), buffer_size=4):
        given.append(flat(minibatch))
        drawn.append(random.random())
    assert given == plain
    assert drawn == expected


@pytest.mark.processes
def test_what_workers_make_is_read_ahead():
    loader = DataLoader(Noisy(), 4, num_workers=1, drop_last=False)
    minibatches = loader.minibatches(5)
    assert not prefetching_map(minibatches).is_thread_bound
    assert [flat(each) for each in prefetching_map(minibatches)] == [flat(each) for each in minibatches]
    left = iter(prefetching_map(loader.minibatches(6)))
    next(left)
    left.close()
    assert len(list(minibatches)) == -(-SIZE // 4)
    loader.workers_state.close()


# Placing


@pytest.mark.parametrize("device", [DEVICE, SingleDeviceSharding(DEVICE)])
@pytest.mark.parametrize("buffer_size", [0, 2])
def test_arrays_are_committed_to_the_device_and_the_rest_stays(device, buffer_size):
    batch = {"x": np.ones((2, 3), np.float64), "y": jnp.arange(2), "text": ["a", "b"], "none": None, "number": 3}
    (placed,) = prefetching_map([batch], device, buffer_size)
    assert [placed[name].committed for name in "xy"] == [True, True]
    assert placed["x"].devices() == {DEVICE}
    assert (placed["x"].dtype, placed["text"], placed["none"], placed["number"]) == (np.float32, ["a", "b"], None, 3)
    (same,) = prefetching_map([batch], None, buffer_size)
    assert same is batch


def test_what_uses_its_memory_again_is_safe_once_it_is_placed():
    space = np.empty(1 << 16, np.float32)

    def batches():
        for k in range(20):
            space[:] = k
            yield space

    assert [float(jnp.max(item)) for item in prefetching_map(batches(), DEVICE, 8)] == list(range(20))


def test_the_thread_sees_the_settings_of_its_user():
    batch = {"x": np.array([1.5]), "y": np.array([2**40])}
    with jax.enable_x64(True):
        (placed,) = prefetching_map([batch], DEVICE)
    assert [placed[name].dtype for name in "xy"] == [np.float64, np.int64]

    def dividing():
        yield np.array([1.0]) / 0

    with np.errstate(divide="ignore"):
        assert list(prefetching_map(dividing())) == [np.inf]


# Sharding


@pytest.mark.processes
@pytest.mark.parametrize("fact", jax_child.list_facts(EIGHT), ids=jax_child.words)
def test_with_eight_devices(fact):
    failure = jax_child.run_facts(EIGHT, devices=8)[fact]
    assert failure is None, failure


@pytest.mark.processes
@pytest.mark.parametrize("fact", jax_child.list_facts(TWO), ids=jax_child.words)
def test_with_two_processes(fact):
    for results in jax_child.run_facts(TWO, devices=2, processes=2):
        assert results[fact] is None, results[fact]


def test_defect_12_no_function_is_used_that_jax_has_removed():
    (sharded,) = sharding_map([{"x": np.arange(6).reshape(6, 1)}], [DEVICE])
    assert sharded["x"].shape == (1, 6, 1)
    assert sharded["x"].committed
    source = inspect.getsource(prefetch)
    assert not [name for name in ("device_put_sharded", "host_callback", "xla_client", "tree_map") if name in source]


@pytest.mark.parametrize(("leaf", "said"), [(3.5, "3.5"), ("text", "'text'"), (np.float32(1), "1.0")])
def test_a_leaf_without_axes_cannot_be_sharded(leaf, said):
    with pytest.raises(
        InvalidTypeError, match=rf"field 'a/0' of a batch is .*{said}.*; expected an array with a first"
    ):
        list(sharding_map([{"a": [leaf]}], [DEVICE]))


# Arguments


def test_arguments_that_cannot_work_are_named():
    with pytest.raises(InvalidValueError, match="buffer_size is -1; expected an integer >= 0"):
        prefetching_map([], buffer_size=-1)
    with pytest.raises(InvalidTypeError, match=r"buffer_size is 2\.0; expected an integer >= 0"):
        prefetching_map([], buffer_size=2.0)
    with pytest.raises(
        InvalidTypeError, match=r"device is 'gpu'; expected a jax device, a jax\.sharding.Sharding, or None"
    ):
        prefetching_map([], "gpu")
    for function in (prefetching_map, mesh_map, lambda inputs: sharding_map(inputs, [DEVICE])):
        with pytest.raises(InvalidTypeError, match="inputs is 3; expected an iterable over batches"):
            function(3)
    with pytest.raises(InvalidTypeError, match="devices has 'cpu'; expected jax devices"):
        sharding_map([], ["cpu"])
    for devices in ([], [DEVICE, DEVICE]):
        with pytest.raises(InvalidValueError, match=r"devices is .*; expected at least one, and each once"):
            sharding_map([], devices)
    with pytest.raises(InvalidTypeError, match=r"mesh is 'data'; expected a jax\.sharding\.Mesh"):
        mesh_map([], "data")


def test_the_arguments_are_those_of_the_reference_page():
    assert [*inspect.signature(prefetching_map).parameters] == ["inputs", "device", "buffer_size"]
    assert inspect.signature(prefetching_map).parameters["buffer_size"].default == 2
    assert [*inspect.signature(sharding_map).parameters] == ["inputs", "devices"]
    with contextlib.closing(iter(prefetching_map([1, 2], buffer_size=2))) as items:
        assert next(items) == 1
