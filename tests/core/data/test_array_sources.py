import os
import pickle
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parhelion.data import ArrayDataset, Loader, _rows, get_take, open_npy
from parhelion.errors import InvalidTypeError, InvalidValueError, RecordError
from parhelion.sampling import Position, ResumableRandomSampler
from parhelion.testing import check_loader_resumes


class Pair(NamedTuple):
    left: Any
    right: Any


@attrs.frozen
class Checked:
    x: Any = attrs.field(validator=lambda *_: None)
    y: Any


DTYPES = st.sampled_from(["u1", "<i4", "i8", "f2", "f4", "f8", "c8", "?", "M8[s]"])


@st.composite
def arrays(draw, size):
    shape = (size, *draw(st.lists(st.integers(0, 3), max_size=2)))
    dtype = np.dtype(draw(DTYPES))
    array = np.frombuffer(draw(st.binary(min_size=8, max_size=8)) * int(np.prod(shape) + 1), "u1")
    array = np.resize(array, int(np.prod(shape)) * dtype.itemsize)
    array = (array % 2).astype("?") if dtype == "?" else array.view(dtype)
    array = array.reshape(shape)
    return draw(st.sampled_from([array, np.asfortranarray(array), np.concatenate([array, array])[::2]]))


@st.composite
def cases(draw):
    size = draw(st.integers(1, 20))
    leaf = arrays(size)
    tree = draw(
        st.one_of(
            leaf,
            st.dictionaries(st.text(max_size=3), st.one_of(leaf, st.lists(leaf, min_size=1)), min_size=1),
            st.builds(Pair, leaf, st.builds(Checked, leaf, st.tuples(leaf))),
        )
    )
    return tree, draw(st.lists(st.integers(0, size - 1), max_size=30))


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    if isinstance(tree, Checked):
        return leaves(tree.x) + leaves(tree.y)
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, (list, tuple)) else [tree]


def check_equal(found, expected):
    for one, other in zip(leaves(found), expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@given(cases())
def test_a_batch_has_what_indexing_each_array_gives_in_a_tree_of_the_same_kind(case):
    tree, indices = case
    dataset = ArrayDataset(tree)
    for asked in (indices, np.array(indices, np.int64)):
        batch = dataset.__getitems__(asked)
        assert type(batch) is type(tree)
        check_equal(batch, [leaf[indices] if indices else leaf[:0] for leaf in leaves(tree)])
    check_equal(pickle.loads(pickle.dumps(dataset)).__getitems__(indices), leaves(batch))  # noqa: S301 - our own bytes


@given(cases())
def test_a_record_has_what_indexing_each_array_gives(case):
    tree, indices = case
    dataset = ArrayDataset(tree)
    assert len(dataset) == len(leaves(tree)[0])
    for index, record in zip(indices, dataset.get_records(indices), strict=True):
        check_equal(record, [leaf[index] for leaf in leaves(tree)])
        check_equal(dataset[index], leaves(record))


@pytest.mark.parametrize("kind", ["plain", "mapped", "threads", "strided"])
def test_what_is_done_to_a_batch_or_a_record_leaves_the_arrays_as_they_are(kind, tmp_path):
    array = np.arange(4000, dtype=np.float32).reshape(20, 200)
    np.save(tmp_path / "x.npy", array)
    source = {"plain": array, "mapped": open_npy(tmp_path / "x.npy"), "threads": array, "strided": array[:, ::2]}[kind]
    expected = np.array(source)
    dataset = ArrayDataset({"x": source}, num_threads=2 if kind == "threads" else None)
    for indices in ([3, 1], range(20)):
        batch = dataset.__getitems__(indices)["x"]
        assert type(batch) is np.ndarray
        assert batch.flags.owndata
        batch += 1
    dataset[5]["x"][:] = 0
    np.testing.assert_array_equal(dataset.arrays["x"], expected)


def test_the_order_of_bytes_is_kept():
    array = np.arange(5, dtype=">i2")
    assert ArrayDataset(array).__getitems__([3, 1]).dtype.str == ">i2"


def test_text_becomes_lists_of_strings():
    dataset = ArrayDataset({"name": np.array(["a", "bc", "d"]), "raw": np.array([b"x", b"y", b"zz"])})
    assert dataset.__getitems__([2, 0]) == {"name": ["d", "a"], "raw": [b"zz", b"x"]}
    assert dataset[1] == {"name": "bc", "raw": b"y"}
    assert type(dataset[1]["name"]) is str


def test_iterating_ends_after_the_last_record():
    assert [*ArrayDataset(np.arange(3))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        ({"x": np.zeros(3), "y": {"z": np.zeros((4, 2))}}, InvalidValueError, "'x' of shape (3,) and 'y.z' of shape "),
        ((np.zeros(3), np.zeros((4, 2))), InvalidValueError, "have 3 and 4 rows; expected the same first axis in all"),
        ({}, InvalidValueError, "arrays are none; expected at least one"),
        ([np.zeros(3)], InvalidTypeError, "arrays are a list, which may as well be a list of records"),
        ((np.zeros(3), 5), InvalidTypeError, "array '[1]' of the dataset is a int; expected numbers"),
        (np.float32(2), InvalidTypeError, "the only array of the dataset is of shape () and dtype float32"),
        ({"x": np.array([None])}, InvalidTypeError, "array 'x' of the dataset is of shape (1,) and dtype object"),
        (np.ma.zeros(3), InvalidTypeError, "the only array of the dataset is a MaskedArray"),
        ({"a.b": [np.zeros(3), np.zeros(2)]}, InvalidValueError, "'a.b[0]' of shape (3,) and 'a.b[1]' of shape (2,)"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_arrays_is_refused(made, error, message):
    with pytest.raises(error) as caught:
        ArrayDataset(made)
    assert message in str(caught.value)


def test_a_number_of_threads_below_one_is_refused():
    with pytest.raises(InvalidValueError, match="num_threads is 0; expected an integer >= 1"):
        ArrayDataset(np.zeros(3), num_threads=0)


@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9),
    threads=st.integers(2, 5),
    data=st.data(),
)
def test_several_threads_gather_what_one_does(shape, threads, data):
    array = np.arange(np.prod(shape)).reshape(shape)
    rows = np.array(data.draw(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=20)), np.int64)
    take = _rows._LargeRows(array, threads).take
    np.testing.assert_array_equal(take(rows), array[rows])


@pytest.mark.parametrize("wrong", [[20], [0, 1, -21]])
@pytest.mark.parametrize("threads", [None, 2])
def test_a_row_that_is_not_there_is_an_error(wrong, threads):
    dataset = ArrayDataset(np.zeros((20, 500)), num_threads=threads)
    with pytest.raises(IndexError, match="out of bounds for axis 0 with size 20"):
        dataset.__getitems__(wrong)


def test_threads_come_with_the_first_large_batch_and_end_with_the_dataset():
    def count():
        return sum(thread.name.startswith("parhelion-rows") for thread in threading.enumerate())

    before = count()
    dataset = ArrayDataset(np.zeros((20, 500)), num_threads=3)
    assert count() == before
    dataset.__getitems__(range(20))
    assert before < count() <= before + 2
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("parhelion-rows")]
    del dataset
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_only_what_is_large_is_divided():
    assert not isinstance(get_take(np.zeros((5, 3))), _rows._LargeRows)
    rows = _rows._LargeRows(np.zeros((5, 2**20)), None)
    assert rows._large == 4  # 32 MiB of 8 MiB each


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_makes_threads_of_its_own():
    code = """
import os, numpy as np
from parhelion.data import ArrayDataset
dataset = ArrayDataset(np.arange(40000).reshape(20, 2000), num_threads=2)
dataset.__getitems__(range(20))
pid = os.fork()
if not pid:
    os._exit(0 if (dataset.__getitems__(range(19, -1, -1))[0] == dataset.arrays[19]).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def save(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: folder / f"{name}.npy" for name in arrays}


def test_files_are_mapped_and_travel_as_paths(tmp_path):
    x, y = np.random.default_rng(0).random((500, 40)), np.arange(500)
    dataset = ArrayDataset.from_npy(save(tmp_path, x=x, y=y))
    assert all(_rows.find_map(array) is not None for array in dataset.arrays.values())
    raw = pickle.dumps(dataset)
    assert len(raw) < 1000
    again = pickle.loads(raw)  # noqa: S301 - our own bytes
    rows = [499, 0, 3]
    for batch in (dataset.__getitems__(rows), again.__getitems__(rows)):
        np.testing.assert_array_equal(batch["x"], x[rows])
        np.testing.assert_array_equal(batch["y"], y[rows])
    assert len(pickle.dumps(again)) < 1000


def test_a_part_of_a_mapped_file_travels_as_that_part(tmp_path):
    x = np.arange(600).reshape(100, 6)
    np.save(tmp_path / "x.npy", x)
    part = np.load(tmp_path / "x.npy", mmap_mode="r")[10:90]
    again = pickle.loads(pickle.dumps(ArrayDataset(part)))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(again.arrays, x[10:90])
    assert _rows.find_map(again.arrays) is not None


def test_what_was_changed_in_a_map_and_not_in_its_file_travels_with_it(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 3)))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[4] = 7
    again = pickle.loads(pickle.dumps(ArrayDataset(private)))  # noqa: S301 - our own bytes
    assert again[4].tolist() == [7, 7, 7]


def test_files_that_do_not_fit_are_named_with_their_shapes(tmp_path):
    paths = save(tmp_path, x=np.zeros((5, 2)), y=np.zeros(4))
    with pytest.raises(InvalidValueError) as caught:
        ArrayDataset.from_npy(paths)
    for part in (str(paths["x"]), str(paths["y"]), "of shape (5, 2)", "of shape (4,)", "5 and 4 rows"):
        assert part in str(caught.value)


def test_what_cannot_be_mapped_is_named(tmp_path):
    np.savez(tmp_path / "many.npz", x=np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("missing.npy", "objects.npy", "text.npy", "empty.npy"):
        with pytest.raises(InvalidValueError, match=rf"{name}' cannot be mapped \(\w+: .*expected an .npy file"):
            open_npy({"x": tmp_path / name})
    with pytest.raises(InvalidValueError, match=r"many.npz' is an archive of several arrays; expected an .npy file"):
        open_npy(tmp_path / "many.npz")
    with pytest.raises(InvalidTypeError, match=r"path is 3; expected the path of an .npy file"):
        open_npy([3])


def test_a_file_that_is_gone_in_another_process_is_named(tmp_path):
    dataset = ArrayDataset.from_npy(save(tmp_path, x=np.zeros((5, 2))))
    raw = pickle.dumps(dataset)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(InvalidValueError, match=r"x.npy' cannot be mapped again \(FileNotFoundError"):
        pickle.loads(raw)  # noqa: S301 - our own bytes


class Advised:
    """A mapping that remembers what was asked of it."""

    def __init__(self, mapping):
        self.mapping, self.asked = mapping, []

    def madvise(self, _, start, length):
        self.asked.append((start, length))
        self.mapping.madvise(_, start, length)


def test_rows_are_read_ahead_after_a_wait_for_the_disk_and_for_so_many_batches(tmp_path, monkeypatch):
    x = np.arange(40 * 3000, dtype=np.float64).reshape(40, 3000)
    np.save(tmp_path / "x.npy", x)
    mapped = np.asarray(np.load(tmp_path / "x.npy", mmap_mode="r"))
    rows = _rows._MappedRows(mapped, _rows.find_map(mapped), 1)
    rows._mapping = told = Advised(rows._mapping)
    waits = iter([0, 0, 0, 5, 5, 9, 9, 9, 9, 9])
    monkeypatch.setattr(_rows, "_count_waits", lambda: next(waits))
    monkeypatch.setattr(_rows, "_PROBES", (2, 4))
    rows._probe = 2
    counts = []
    for k in range(11):
        np.testing.assert_array_equal(rows.take(np.array([k, 39 - k])), x[[k, 39 - k]])
        counts.append(len(told.asked))
    # Two looks, the second of which found a wait; two batches ahead, a look that waits, four ahead, a look, none.
    assert np.diff([0, *counts]).tolist() == [0, 0, 2, 2, 0, 2, 2, 2, 2, 0, 0]
    page = _rows.mmap.PAGESIZE
    start = 128 + 2 * 24000
    assert told.asked[0] == (start - start % page, start + 24000 - (start - start % page))


def make_arrays(tmp_path, **options):
    x = np.random.default_rng(0).random((23, 300)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    dataset = ArrayDataset({"x": open_npy(tmp_path / "x.npy"), "y": np.arange(23), "z": x})

    def make():
        sampler = ResumableRandomSampler(dataset, seed=3, batch_size=4)
        return Loader(dataset, sampler, seed=1, **options), sampler

    return make


def test_a_loader_of_arrays_resumes(tmp_path):
    check_loader_resumes(make_arrays(tmp_path), max_examples=5)


@pytest.mark.processes
def test_workers_give_the_same_batches_and_map_the_same_file(tmp_path):
    def batches(loader, sampler):
        sampler.seek(Position(1, 4))
        return [{name: array.tolist() for name, array in batch.items()} for batch in loader]

    with make_arrays(tmp_path, num_workers=2)()[0] as loader:
        assert batches(loader, loader.sampler) == batches(*make_arrays(tmp_path)())


def test_an_index_out_of_range_is_named_by_the_fetch():
    loader = Loader(ArrayDataset(np.zeros(3)), ResumableRandomSampler(range(9), batch_size=9))
    with pytest.raises(RecordError, match=r"sample indices .* of ArrayDataset failed together"):
        next(iter(loader))
