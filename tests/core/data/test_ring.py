"""The memory that workers and their parent share: never overwritten while in use, never left behind."""

import gc
import os
import resource
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.data import empty
from parhelion.data._ring import Reader, Writer
from support.worker_datasets import count_descriptors, make

SIZE = 64


class Wide:
    """Each record is a row of its index."""

    def __init__(self, size=SIZE, width=500):
        self.size, self.width = size, width

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return np.full(self.width, index, np.int64)


class Growing(Wide):
    """Later records are larger."""

    def __getitem__(self, index):
        return np.full(100 * (1 + index // 4), index, np.int64)


def rows(batch):
    return np.asarray(batch)[:, 0].tolist()


@pytest.mark.processes
def test_arrays_of_a_batch_lie_in_shared_memory():
    loader, _ = make(Wide(), shuffle=False, num_workers=1)
    with loader:
        for batch in loader:
            assert batch.flags.writeable
            assert lies_in_a_slot(batch)


def lies_in_a_slot(array):
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return "memfd:parhelion" in line
    return False


@pytest.mark.processes
def test_a_batch_that_is_kept_is_never_written_to_however_many_there_are():
    loader, _ = make(Wide(256), shuffle=False, num_workers=2)
    with loader:
        for _ in range(2):
            kept = []  # those of the epoch before have all slots
            kept += loader
            assert [rows(batch) for batch in kept] == [list(range(k, k + 4)) for k in range(0, 256, 4)]
        # The ring has a bound: what is beyond came by the other road.
        assert 0 < sum(map(lies_in_a_slot, kept)) < len(kept)


@pytest.mark.processes
def test_any_part_of_a_batch_keeps_all_of_it():
    loader, _ = make(Wide(256), shuffle=False, num_workers=1)
    with loader:
        parts = []
        for batch in loader:
            parts.append((int(batch[0, 0]), memoryview(batch[2:3, 10:20])))
            del batch
        for first, part in parts:
            assert np.asarray(part).tolist() == [[first + 2] * 10]


@pytest.mark.processes
def test_slots_come_back_when_batches_are_gone():
    loader, _ = make(Wide(400), shuffle=False, num_workers=1, prefetch_factor=2)
    with loader:
        for batch in loader:
            del batch
        assert len(loader._pool._workers[0].link._ring._memory) <= 5


@pytest.mark.processes
def test_batches_of_changing_shape_arrive_whole():
    loader, _ = make(Growing(), shuffle=False, num_workers=2)
    with loader:
        for _ in range(2):
            for k, batch in enumerate(loader):
                assert batch.shape == (4, 100 * (1 + k))
                assert rows(batch) == list(range(4 * k, 4 * k + 4))


@pytest.mark.processes
def test_what_the_user_has_outlives_the_loader():
    loader, _ = make(Wide(), shuffle=False, num_workers=1)
    first = next(iter(loader))
    loader.close()
    del loader
    gc.collect()
    assert rows(first) == [0, 1, 2, 3]


def keep_the_last(records, last=[]):  # noqa: B006 - a collate function with a memory
    batch = empty((len(records), 500), np.int64)
    batch[:] = np.stack(records)
    last.append(batch)
    return {"now": batch, "sum": sum(int(old[0, 0]) for old in last[-8:])}


@pytest.mark.processes
def test_a_collate_function_may_keep_what_it_has_made():
    loader, _ = make(Wide(256), shuffle=False, num_workers=1, collate_fn=keep_the_last)
    with loader:
        sums = [batch["sum"] for batch in loader]
    assert sums == [sum(range(max(0, 4 * (k - 7)), 4 * k + 1, 4)) for k in range(64)]


@pytest.mark.processes
def test_a_batch_that_a_forked_process_has_is_not_written_to_either():
    loader, _ = make(Wide(400), shuffle=False, num_workers=1)
    with loader:
        batches = iter(loader)
        batch = next(batches)
        read, write = os.pipe()
        go_read, go_write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another test may have started jax here
            pid = os.fork()
        if pid == 0:
            os.read(go_read, 1)
            os.write(write, repr(rows(batch)).encode())
            os._exit(0)
        del batch
        for _ in range(60):
            next(batches)
        os.write(go_write, b".")
        found = os.read(read, 1000)
        os.waitpid(pid, 0)
        for descriptor in (read, write, go_read, go_write):
            os.close(descriptor)
        assert found == b"[0, 1, 2, 3]"
        assert [rows(batch)[0] for batch in batches] == list(range(61 * 4, 400, 4))


def test_slots_are_as_large_as_recent_batches_need():
    writer = Writer()

    def put(size):
        writer.begin()
        placed = writer.put([memoryview(bytearray(size))])
        writer.give_back(placed.slot)
        return placed.size

    put(1 << 26)
    sizes = [put(5000) for _ in range(40)]
    assert sizes[0] > 1 << 25
    assert sizes[-1] <= 1 << 14


def test_slots_that_are_there_serve_small_batches_where_no_larger_one_can_be_had(monkeypatch):
    writer = Writer()
    for _ in range(2):
        writer.begin()
        first = writer.put([memoryview(bytearray(5000))])
        writer.give_back(first.slot)

    def refuse(size):
        raise OSError(28, "no space")

    monkeypatch.setattr("parhelion.data._ring.make_file", refuse)
    writer.begin()
    assert writer.put([memoryview(bytearray(50_000))]) is None
    assert writer.take_problem() is not None
    for _ in range(40):
        writer.begin()
        placed = writer.put([memoryview(bytearray(5000))])
        assert placed is not None
        writer.give_back(placed.slot)


def limit_files(_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


@pytest.mark.processes
def test_without_memory_to_share_batches_come_by_the_other_road_and_it_is_said_once(caplog):
    loader, _ = make(Wide(width=5000), shuffle=False, num_workers=1, worker_init_fn=limit_files)
    with loader:
        for _ in range(2):
            batches = list(loader)
            assert [rows(batch) for batch in batches] == [list(range(k, k + 4)) for k in range(0, SIZE, 4)]
            assert not any(map(lies_in_a_slot, batches))
    said = [record.getMessage() for record in caplog.records if "memory to share" in record.getMessage()]
    assert len(said) == 1
    assert "File too large" in said[0]
    assert "come by a slower road. Give the machine or the container more shared memory" in said[0]


@given(
    st.lists(st.lists(st.integers(0, 5000), min_size=1, max_size=4), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.integers(1, 3),
)
def test_whatever_is_put_into_a_ring_comes_out_as_long_as_somebody_has_it(batches, are_kept, num_ahead):
    writer, reader, kept, before = Writer(), Reader(), [], count_descriptors()
    writer.num_ahead = num_ahead
    for number, (sizes, is_kept) in enumerate(zip(batches, are_kept, strict=False)):
        writer.begin()
        arrays = [writer.empty(size, np.uint8) if k % 2 else np.empty(size, np.uint8) for k, size in enumerate(sizes)]
        for array in arrays:
            array[:] = number
        placed = writer.put([memoryview(array) for array in arrays])
        del arrays, array
        if placed is not None:
            if placed.descriptor >= 0:
                reader.add(placed.slot, placed.size, os.dup(placed.descriptor))
                writer.forget_descriptor(placed.slot)
            parts = reader.read(placed.slot, placed.places)
            assert [part.nbytes for part in parts] == sizes
            if is_kept:
                kept.append((number, parts))
            del parts
        for other, parts in kept:
            assert all(set(part) <= {other} for part in parts)
        for slot, is_usable in reader.take_returned():
            assert is_usable
            writer.give_back(slot)
    kept, parts = [], None
    reader.close()
    del writer
    gc.collect()
    assert count_descriptors() <= before


def test_an_array_of_objects_or_a_small_one_is_made_elsewhere():
    writer = Writer()
    writer.begin()
    first = writer.put([memoryview(np.zeros(10_000, np.uint8))])
    writer.give_back(first.slot)
    writer.begin()
    slot = writer.empty(5000, np.uint8).base
    assert slot is not None
    assert writer.empty(10, np.uint8).base is None
    assert writer.empty(2000, object).base is None
    assert writer.empty((2, 2), np.float64).shape == (2, 2)
    alive = weakref.ref(slot)
    del slot
    assert alive() is not None
