"""A held copy is out of reach of whatever happens to the live arrays."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.checkpoint import Hold, HostArray, Part, ShardedArray, _hold, flatten, load_checkpoint, write_checkpoint
from parhelion.errors import CheckpointError, InvalidValueError

META = {"run_name": "run", "global_epoch": 1, "global_iteration": 1}


def host(array, *, is_fresh=False):
    return HostArray(str(array.dtype), array.shape, array.reshape(-1).view(np.uint8), is_fresh=is_fresh)


def address(array):
    return array.data.__array_interface__["data"][0]


def test_a_change_right_after_the_copy_does_not_reach_the_file(tmp_path):
    live = {"w": np.arange(3 << 20, dtype=np.float32), "t": np.asfortranarray(np.arange(12.0).reshape(3, 4))}
    expected = {name: array.copy(order="K") for name, array in live.items()}
    skeleton, arrays = flatten(live)
    hold = Hold()
    held = hold.copy(arrays)
    for array in live.values():
        array[...] = -1
    path = write_checkpoint(tmp_path, "one", skeleton, held, META)
    tree = load_checkpoint(path).tree
    assert all(np.array_equal(tree[name], array) for name, array in expected.items())
    assert tree["t"].strides == expected["t"].strides


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["uint8", "float64", "complex64"]), st.booleans())),
    st.integers(1, 4),
)
def test_what_is_held_is_what_was_given(rows, threads):
    rng = np.random.default_rng(0)
    arrays = {
        f"a{index}": host(rng.integers(0, 255, size).astype(dtype), is_fresh=is_fresh)
        for index, (size, dtype, is_fresh) in enumerate(rows)
    }
    held = Hold(threads).copy(arrays)
    assert held == arrays
    assert list(held) == list(arrays)
    for name, array in arrays.items():
        assert held[name].is_fresh
        assert (held[name] is array) == array.is_fresh
        if array.data.size and not array.is_fresh:
            assert not np.shares_memory(held[name].data, array.data)
            assert address(held[name]) % 64 == 0


def test_a_piece_of_every_thread_arrives(monkeypatch):
    monkeypatch.setattr(_hold, "_PIECE", 1000)
    monkeypatch.setattr(_hold, "_WORTH_A_THREAD", 1)
    array = np.random.default_rng(0).integers(0, 255, 123_457).astype(np.uint8)
    for threads in (1, 2, 5):
        held = Hold(threads).copy({"a": host(array)})
        assert np.array_equal(held["a"].data, array)


def test_the_parts_of_a_spread_array_are_held_too():
    whole = np.arange(8.0).reshape(4, 2)
    parts = (Part((0, 0), host(whole[:2])), Part((2, 0), host(whole[2:].copy(), is_fresh=True)))
    sharded = ShardedArray("float64", (8, 2), parts)
    held = Hold().copy({"w": sharded})["w"]
    assert held == sharded
    whole[...] = 0
    assert held.parts[0].array.data.view(np.float64).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert held.parts[1] == parts[1]


def test_the_memory_is_kept_from_save_to_save_and_grows():
    hold = Hold()
    small, large = (host(np.ones(size, np.uint8)) for size in (1 << 20, 1 << 21))
    places = []
    for array in (small, small, large, large, small):
        held = hold.copy({"a": array})
        places.append(address(held["a"]))
        del held
    assert places[0] == places[1]
    assert places[2] == places[3] == places[4]


def test_a_copy_that_somebody_still_has_is_never_written_over():
    hold = Hold()
    first = hold.copy({"a": host(np.full(1000, 1, np.uint8))})["a"].data[10:20]
    second = hold.copy({"a": host(np.full(1000, 2, np.uint8))})
    hold.prepare(1 << 20)
    third = hold.copy({"a": host(np.full(1000, 3, np.uint8))})
    hold.close()
    assert set(first) == {1}
    assert set(second["a"].data) == {2}
    assert set(third["a"].data) == {3}


def test_memory_that_was_prepared_is_used():
    hold = Hold()
    thread = threading.Thread(target=hold.prepare, args=(1 << 21,))
    thread.start()
    thread.join()
    prepared = hold._slab
    held = hold.copy({"a": host(np.ones(1 << 20, np.uint8))})
    assert np.shares_memory(prepared, held["a"].data)
    hold.prepare(10)
    assert hold._slab is prepared


def test_closing_releases_the_memory():
    hold = Hold()
    hold.copy({"a": host(np.ones(1 << 20, np.uint8))})
    hold.close()
    assert hold._slab.size == 0


def test_without_threads_to_be_had_the_caller_copies_alone(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    array = np.arange(17 << 20, dtype=np.uint8)
    assert np.array_equal(Hold(4).copy({"a": host(array)})["a"].data, array)


def test_no_room_for_the_copy_is_an_error_that_says_so(monkeypatch):
    def aligned_empty(size):
        raise MemoryError

    hold = Hold()
    monkeypatch.setattr(_hold, "aligned_empty", aligned_empty)
    with pytest.raises(MemoryError):
        hold.close()
    monkeypatch.undo()
    real = _hold.aligned_empty
    monkeypatch.setattr(_hold, "aligned_empty", lambda size: aligned_empty(size) if size else real(size))
    with pytest.raises(CheckpointError, match=r"needs 1024 bytes of host memory.*expected room for one\. Save without"):
        hold.copy({"a": host(np.ones(1000, np.uint8))})
    monkeypatch.undo()
    assert hold.copy({"a": host(np.ones(1000, np.uint8))})["a"].data.sum() == 1000


def test_no_thread_at_all_is_refused():
    with pytest.raises(InvalidValueError, match=r"threads is 0; expected an integer >= 1"):
        Hold(0)
