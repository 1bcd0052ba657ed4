import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.data import ArrowDataset, Loader, collate
from parhelion.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from parhelion.sampling import Position, ResumableRandomSampler
from parhelion.testing import check_loader_resumes

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

NUMBERS = [pa.int8(), pa.uint32(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()]


def numbers(kind):
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_floating(kind):
        return st.integers(-50, 50).map(np.float16 if pa.types.is_float16(kind) else float)
    return st.integers(0, 100)


@st.composite
def columns(draw, size):
    kind = draw(st.sampled_from(NUMBERS))
    one = numbers(kind)
    shape = draw(st.sampled_from(["plain", "fixed", "twice", "list", "text", "words", "bytes", "coded", "struct"]))
    text = st.text(max_size=4)
    value, kind = {
        "plain": (one, kind),
        "fixed": (st.lists(one, min_size=3, max_size=3), pa.list_(kind, 3)),
        "twice": (st.lists(st.lists(one, min_size=2, max_size=2), min_size=3, max_size=3), pa.list_(
            pa.list_(kind, 2), 3)),
        "list": (st.lists(one, max_size=4), pa.large_list(kind)),
        "text": (text, pa.string()),
        "words": (st.lists(text, max_size=3), pa.list_(pa.string())),
        "bytes": (st.binary(max_size=3), pa.large_binary()),
        "coded": (st.sampled_from(["a", "b"]), pa.dictionary(pa.int8(), pa.string())),
        "struct": (st.fixed_dictionaries({"n": one, "t": text}), pa.struct([("n", kind), ("t", pa.string())])),
    }[shape]  # fmt: skip
    return pa.array(draw(st.lists(value, min_size=size, max_size=size)), kind)


@st.composite
def tables(draw):
    size = draw(st.integers(1, 15))
    table = pa.table({f"c{k}": draw(columns(size)) for k in range(draw(st.integers(1, 3)))})
    cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))})
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(cuts)]
    return pa.concat_tables(parts), draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))


def plain(value):
    """Return a column of a batch as Python's values, for each row one."""
    if isinstance(value, dict):
        parts = {name: plain(part) for name, part in value.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    if isinstance(value, list):
        return [each.tolist() if isinstance(each, np.ndarray) else each for each in value]
    return value.tolist()


def check(dataset, table, indices):
    expected = table.take(indices).to_pydict()
    batch = dataset.__getitems__(indices)
    assert {name: plain(column) for name, column in batch.items()} == expected
    records = dataset.get_records(indices)
    assert [plain_record(record) for record in records] == table.take(indices).to_pylist()
    return batch


def plain_record(record):
    values = {}
    for name, value in record.items():
        values[name] = plain_record(value) if isinstance(value, dict) else getattr(value, "tolist", lambda v=value: v)()
    return values


@given(tables())
def test_a_batch_has_the_rows_of_the_table_in_any_chunks(case):
    table, indices = case
    dataset = ArrowDataset(table)
    assert len(dataset) == table.num_rows
    check(dataset, table, indices)
    check(pickle.loads(pickle.dumps(dataset)), table, indices)  # noqa: S301 - our own bytes


@given(case=tables(), group=st.integers(1, 6), cache=st.sampled_from([0, 300, 10**6]))
@settings(max_examples=20)
def test_files_have_the_rows_of_the_table(tmp_path_factory, case, group, cache):
    table, indices = case
    folder = tmp_path_factory.mktemp("tables")
    parquet.write_table(table, folder / "t.parquet", row_group_size=group)
    feather.write_feather(table, folder / "t.arrow", compression="uncompressed", chunksize=group)
    feather.write_feather(table, folder / "t.feather", compression="lz4", chunksize=group)
    with pa.OSFile(str(folder / "s.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for name in ("t.parquet", "t.arrow", "t.feather", "s.arrow"):
        dataset = ArrowDataset(folder / name, cache_bytes=cache)
        assert len(dataset) == table.num_rows
        check(dataset, table, indices)
        raw = pickle.dumps(dataset)
        assert len(raw) < 1000
        check(pickle.loads(raw), table, indices)  # noqa: S301 - our own bytes
        both = ArrowDataset([folder / name, str(folder / name)], cache_bytes=cache)
        check(both, pa.concat_tables([table, table]), [*indices, *(k + table.num_rows for k in indices)])


def test_columns_become_arrays_of_their_dtypes_and_lists():
    table = pa.table({
        "n": pa.array([1, 2, 3], pa.int16()),
        "b": [True, False, True],
        "v": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
        "l": [[1], [], [2, 3]],
        "t": ["x", "y", "z"],
        "s": [{"a": 1, "t": "u"}] * 3,
    })  # fmt: skip
    batch = ArrowDataset(table).__getitems__(np.array([2, 0]))
    assert (batch["n"].dtype, batch["n"].tolist()) == (np.int16, [3, 1])
    assert (batch["b"].dtype, batch["b"].tolist()) == (np.bool_, [True, True])
    assert (batch["v"].dtype, batch["v"].shape) == (np.float32, (2, 2))
    assert [part.tolist() for part in batch["l"]] == [[2, 3], [1]]
    assert batch["t"] == ["z", "x"]
    assert (batch["s"]["a"].tolist(), batch["s"]["t"]) == ([1, 1], ["u", "u"])
    for array in (batch["n"], batch["v"], *batch["l"]):
        array[...] = 0  # memory of its own
    assert ArrowDataset(table)[2]["n"] == 3


def test_a_slice_of_a_table_has_its_own_rows_of_every_kind():
    table = pa.table({
        "l": [[1], [2, 3], [4], [5, 6, 7]],
        "v": pa.array([[k, k + 1] for k in range(4)], pa.list_(pa.int8(), 2)),
        "b": [True, False, False, True],
        "s": [{"t": "a"}, {"t": "b"}, {"t": "c"}, {"t": "d"}],
        "c": pa.array(["x", "y", "z", "x"]).dictionary_encode(),
    }).slice(1, 3)  # fmt: skip
    check(ArrowDataset(table), table, [2, 0, 1])


def test_columns_can_be_chosen_and_have_the_order_that_is_asked_for(tmp_path):
    table = pa.table({"a": [1, 2], "b": [3, 4], "when": pa.array([0, 0], pa.timestamp("s"))})
    parquet.write_table(table, tmp_path / "t.parquet")
    for source in (table, tmp_path / "t.parquet"):
        assert [*ArrowDataset(source, columns=["b", "a"])[0]] == ["b", "a"]
        with pytest.raises(InvalidValueError, match=r"column is 'aa'; expected one of a, b, when. Did you mean 'a'"):
            ArrowDataset(source, columns=["aa"])
        with pytest.raises(InvalidTypeError, match=r"column 'when' has type timestamp\[m?s\]; expected numbers"):
            ArrowDataset(source)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pa.decimal128(5), "x"),
        (pa.list_(pa.date32()), "x"),
        (pa.struct([("y", pa.list_(pa.time32("s")))]), "x.y"),
        (pa.map_(pa.string(), pa.int8()), "x"),
    ],
)
def test_a_type_that_has_no_place_in_a_batch_is_refused(kind, name):
    with pytest.raises(InvalidTypeError, match=rf"column '{name}' has type .*leave it out with columns="):
        ArrowDataset(pa.table({"x": pa.array([], kind)}))


@pytest.mark.parametrize(
    ("column", "row"),
    [
        (pa.chunked_array([[1, 2], [3, None]]), 3),
        (pa.array(["a", None]), 1),
        (pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float32(), 2)), 1),
        (pa.array([[[1, 2], [3, 4]], [[5, 6], [None, 7]]], pa.list_(pa.list_(pa.int8(), 2), 2)), 1),
        (pa.array([[], [1], [1, None, 2]]), 2),
        (pa.array([[1], None]), 1),
        (pa.array([{"y": 1}, {"y": None}]), 1),
        (pa.array([{"y": 1}, None]), 1),
        (pa.array(["a", "b", None]).dictionary_encode(), 2),
    ],
)  # fmt: skip
def test_a_null_is_named_by_column_and_row(column, row):
    with pytest.raises(InvalidValueError, match=rf"column 'x(\.y)?' has a null in row {row}; expected a value"):
        ArrowDataset(pa.table({"x": column}))


def test_a_null_in_a_file_is_named_by_its_row_in_the_whole(tmp_path):
    table = pa.table({"x": [1, 2, 3, None, 5]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    dataset = ArrowDataset([tmp_path / "t.parquet"] * 2)
    assert dataset[4] == {"x": 5}
    with pytest.raises(InvalidValueError, match="column 'x' has a null in row 8"):
        dataset.__getitems__([0, 9, 8])


def test_a_null_can_be_filled_in_all_columns_or_in_one():
    table = pa.table({
        "x": pa.array([1, None], pa.int8()),
        "v": pa.array([[1.0, None], [None, 4.0]], pa.list_(pa.float32(), 2)),
        "l": [[None], [2, 3]],
    })  # fmt: skip
    batch = ArrowDataset(table, fill_null=0).__getitems__([0, 1])
    assert batch["x"].tolist() == [1, 0]
    assert batch["v"].tolist() == [[1, 0], [0, 4]]
    assert [part.tolist() for part in batch["l"]] == [[0], [2, 3]]
    batch = ArrowDataset(table, fill_null={"x": -1, "v": 7.5, "l": 9}).__getitems__([1])
    assert (batch["x"].tolist(), batch["v"].tolist()) == ([-1], [[7.5, 4]])
    with pytest.raises(InvalidValueError, match="column 'l' has a null in row 0"):
        ArrowDataset(table, fill_null={"x": -1, "v": 7.5})
    with pytest.raises(InvalidValueError, match=r"fill_null for column 'x' is 1000 .*expected a value of type int8"):
        ArrowDataset(table, fill_null=1000)


@pytest.mark.parametrize("wrong", [[5], [0, -1]])
def test_an_index_out_of_range_is_an_error(wrong):
    dataset = ArrowDataset(pa.table({"x": pa.chunked_array([[1, 2], [3]]), "t": ["a", "b", "c"]}))
    with pytest.raises(IndexError, match=rf"index is {wrong[-1]}; expected one from 0 to 2"):
        dataset.__getitems__(wrong)


def test_no_rows_asked_for_and_no_rows_there(tmp_path):
    table = pa.table({"x": pa.array([], pa.int8())})
    assert len(ArrowDataset(table)) == 0
    parquet.write_table(table, tmp_path / "t.parquet")
    assert len(ArrowDataset(tmp_path / "t.parquet")) == 0
    for chunks in ([[1, 2]], [[1], [2]]):
        assert ArrowDataset(pa.table({"x": pa.chunked_array(chunks)})).__getitems__([])["x"].shape == (0,)


def test_what_is_no_table_is_refused(tmp_path):
    for wrong in (5, [], [5], {"x": [1]}):
        with pytest.raises(InvalidTypeError, match=rf"source is a {type(wrong).__name__}; expected a pyarrow.Table"):
            ArrowDataset(wrong)
    (tmp_path / "text").write_text("ARRO")
    (tmp_path / "empty").write_text("")
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more than that")
    for name in ("text", "empty", "half.parquet"):
        with pytest.raises(InvalidValueError, match=rf"{name}' cannot be read as a table .*write_feather"):
            ArrowDataset(tmp_path / name)
    with pytest.raises(InvalidValueError, match=r"missing' cannot be read \(FileNotFoundError"):
        ArrowDataset(tmp_path / "missing")
    with pytest.raises(InvalidValueError, match="table has no column"):
        ArrowDataset(pa.table({}))
    with pytest.raises(InvalidValueError, match="cache_bytes is -1"):
        ArrowDataset(pa.table({"x": [1]}), cache_bytes=-1)


def test_files_with_other_columns_are_refused(tmp_path):
    for kind, write in (("parquet", parquet.write_table), ("arrow", feather.write_feather)):
        write(pa.table({"x": [1]}), tmp_path / f"one.{kind}")
        write(pa.table({"x": [1.5]}), tmp_path / f"two.{kind}")
        with pytest.raises(InvalidValueError, match=rf"columns of '.*two.{kind}' are x: double and those of '.*one"):
            ArrowDataset([tmp_path / f"one.{kind}", tmp_path / f"two.{kind}"])
    with pytest.raises(InvalidValueError, match="expected files of Arrow, or all of them of Parquet"):
        ArrowDataset([tmp_path / "one.arrow", tmp_path / "one.parquet"])


def test_without_pyarrow_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'parhelion\[arrow\]'"):
        ArrowDataset("t.parquet")


MEMORY = """
import resource, sys
import numpy as np, pyarrow as pa
from parhelion.data import ArrowDataset
dataset = ArrowDataset(sys.argv[1], cache_bytes=2**24)
dataset.__getitems__([0])
for start in range(0, len(dataset), 5000):
    dataset.__getitems__(np.arange(start, min(start + 64, len(dataset))))
print(pa.default_memory_pool().max_memory(), len(dataset) * 256 * 4)
"""


@pytest.mark.processes
def test_parquet_larger_than_its_cache_is_read_in_bounded_memory(tmp_path):
    schema = pa.schema([("x", pa.list_(pa.float32(), 256))])
    values = pa.array(np.random.default_rng(0).random(4096 * 256, np.float32))
    with parquet.ParquetWriter(tmp_path / "t.parquet", schema, compression=None) as writer:
        for _ in range(20):
            table = pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 256)}, schema)
            writer.write_table(table)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{MEMORY}", str(tmp_path / "t.parquet")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    most, whole = map(int, done.stdout.split())
    assert whole == 80 * 2**20
    # The cache, a row group on its way in, and what decoding one needs.
    assert most < 2**24 + 4 * 2**22


def test_parquet_keeps_what_was_used_last(tmp_path):
    table = pa.table({"x": np.arange(4000)})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=1000)
    dataset = ArrowDataset(tmp_path / "t.parquet", cache_bytes=30_000)
    for row in (0, 1000, 2000, 0, 3000):
        assert dataset[row] == {"x": row}
    assert [*dataset._rows._kept] == [2, 0, 3]
    dataset = ArrowDataset(tmp_path / "t.parquet", cache_bytes=0)
    assert dataset[5] == {"x": 5}
    assert [*dataset._rows._kept] == []


def make(source, **options):
    dataset = ArrowDataset(source)

    def make_loader():
        sampler = ResumableRandomSampler(dataset, seed=3, batch_size=4)
        return Loader(dataset, sampler, seed=1, **options), sampler

    return make_loader


@pytest.mark.processes
def test_a_loader_of_a_table_resumes_and_workers_open_the_files_themselves(tmp_path):
    table = pa.table({"x": np.arange(23), "t": [f"record {k}" for k in range(23)]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=5)
    check_loader_resumes(make(tmp_path / "t.parquet"), max_examples=5)

    def batches(loader, sampler):
        sampler.seek(Position(1, 4))
        return [(batch["x"].tolist(), batch["t"]) for batch in loader]

    alone = batches(*make(table)())
    loader, sampler = make(tmp_path / "t.parquet", num_workers=2)()
    with loader:
        assert batches(loader, sampler) == alone


def test_a_loader_takes_lists_of_arrays_of_any_length():
    batches = [*make(pa.table({"l": [[*range(k % 3)] for k in range(23)]}))()[0]]
    assert sum(len(part) for batch in batches for part in batch["l"]) == sum(k % 3 for k in range(23))


def test_records_stack_to_the_batch():
    table = pa.table({"x": [1, 2, 3], "v": pa.array([[1, 2]] * 3, pa.list_(pa.int8(), 2)), "t": ["a", "b", "c"]})
    dataset = ArrowDataset(table)
    stacked, batch = collate([dataset[k] for k in (2, 1)]), dataset.__getitems__([2, 1])
    assert str(stacked) == str(batch)
    assert {name: getattr(part, "dtype", list) for name, part in stacked.items()} == {
        name: getattr(part, "dtype", list) for name, part in batch.items()
    }
