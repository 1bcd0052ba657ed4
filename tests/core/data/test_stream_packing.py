"""Packing token sequences into rows of one length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.data import Lane, MapStream, Stream
from parhelion.errors import RecordError
from support.streams import plain, through_checkpoint


def stream(sequences, dtype=np.int32) -> Stream:
    return MapStream([np.array(each, dtype) for each in sequences], num_lanes=1)


def rows(packed: Stream) -> list:
    return list(packed.open(Lane()))


def pieces(row):
    """Return the tokens of a row's segments."""
    segments = row["segment_ids"]
    return [row["tokens"][segments == k].tolist() for k in range(1, segments.max() + 1)]


sequences = st.lists(st.lists(st.integers(1, 99), max_size=14), min_size=1, max_size=15)
options = st.fixed_dictionaries(
    {
        "length": st.integers(1, 9),
        "separator": st.sampled_from([None, 7]),
        "split": st.booleans(),
        "open_rows": st.integers(1, 4),
        "tail": st.sampled_from(["pad", "drop"]),
        "too_long": st.sampled_from(["cut", "drop"]),
    }
)


@given(sequences=sequences, options=options, data=st.data())
def test_packing_goes_on_from_any_row(sequences, options, data) -> None:
    packed = stream(sequences).pack(**options)
    whole = [plain(row) for row in rows(packed)]
    count = data.draw(st.integers(0, len(whole)))
    reader = packed.open(Lane())
    for _ in range(count):
        next(reader)
    other = packed.open(Lane())
    other.load_state_dict(through_checkpoint(reader.state_dict()))
    assert [plain(row) for row in other] == [plain(row) for row in reader] == whole[count:]


@given(sequences=sequences, length=st.integers(1, 9), separator=st.sampled_from([None, 7]))
def test_sequences_end_to_end_are_all_tokens_in_order_in_full_rows(sequences, length, separator) -> None:
    found = rows(stream(sequences).pack(length, separator=separator))
    expected = [token for each in sequences for token in [*each, *([] if separator is None else [separator])]]
    assert [token for row in found for token in row["tokens"][row["segment_ids"] > 0].tolist()] == expected
    assert all((row["segment_ids"] > 0).all() for row in found[:-1])
    assert all(row["tokens"].dtype == np.int32 and row["tokens"].shape == (length,) for row in found)


@given(sequences=sequences, length=st.integers(14, 20), open_rows=st.integers(1, 4))
def test_whole_sequences_are_each_in_one_segment_once(sequences, length, open_rows) -> None:
    found = rows(stream(sequences).pack(length, split=False, open_rows=open_rows))
    assert sorted(piece for row in found for piece in pieces(row)) == sorted(each for each in sequences if each)


@given(sequences=sequences, split=st.booleans())
def test_positions_count_each_segments_tokens(sequences, split) -> None:
    for row in rows(stream(sequences).pack(15, split=split)):
        for k in range(1, row["segment_ids"].max() + 1):
            mine = row["positions"][row["segment_ids"] == k]
            assert mine.tolist() == list(range(len(mine)))
        assert not row["positions"][row["segment_ids"] == 0].any()


def test_rows_look_as_documented() -> None:
    (first, second) = rows(stream([[1, 2, 3], [4, 5, 6, 7]]).pack(5, separator=9, pad=-1))
    assert first["tokens"].tolist() == [1, 2, 3, 9, 4]
    assert first["segment_ids"].tolist() == [1, 1, 1, 1, 2]
    assert first["positions"].tolist() == [0, 1, 2, 3, 0]
    assert second["tokens"].tolist() == [5, 6, 7, 9, -1]
    assert second["segment_ids"].tolist() == [1, 1, 1, 1, 0]
    assert first["segment_ids"].dtype == first["positions"].dtype == np.int32


def test_the_first_open_row_with_room_is_taken_and_the_oldest_closed() -> None:
    found = rows(stream([[1] * 4, [2] * 3, [3], [4] * 2, [5] * 4]).pack(5, split=False, open_rows=2))
    assert [pieces(row) for row in found] == [[[1] * 4, [3]], [[2] * 3, [4] * 2], [[5] * 4]]
    found = rows(stream([[1] * 3, [2] * 4, [3] * 5, [4]]).pack(6, split=False, open_rows=2))
    assert [pieces(row) for row in found] == [[[1] * 3], [[2] * 4, [4]], [[3] * 5]]


def test_a_field_of_records_is_packed_under_its_name() -> None:
    records = MapStream([{"ids": [1, 2, 3], "name": "a"}, {"ids": [4], "name": "b"}], num_lanes=1)
    (row,) = rows(records.pack(4, field="ids"))
    assert row["ids"].tolist() == [1, 2, 3, 4]
    assert row["ids"].dtype == np.int64
    assert sorted(row) == ["ids", "positions", "segment_ids"]


def test_rows_of_a_dropped_tail_are_left_out() -> None:
    assert len(rows(stream([[1, 2, 3]]).pack(2, tail="drop"))) == 1
    assert rows(stream([[1]]).pack(2, split=False, tail="drop")) == []


def test_what_is_kept_of_a_long_sequence_is_only_what_is_left() -> None:
    reader = stream([range(1, 1000)]).pack(10).open(Lane())
    for _ in range(98):
        next(reader)
    assert reader.state_dict()["own"]["tokens"].tolist() == list(range(981, 1000))


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([[1, 2, 3]], {"split": False}, "a sequence has 3 tokens, its separator included; expected at most 2"),
        ([np.ones(2)], {}, r"shape \(2,\) and dtype float64; expected integers in one axis"),
        ([np.ones((1, 2), int)], {}, r"shape \(1, 2\) and dtype int64"),
        ([np.ones(1, np.int32), np.ones(1, np.int64)], {}, "dtype int64 and those before int32; expected one dtype"),
        (
            [np.ones(1, np.uint8)],
            {"separator": 256},
            "separator is 256 and the tokens are uint8; expected a token",
        ),
        ([np.ones(1, np.uint8)], {"pad": -1}, "pad is -1 and the tokens are uint8"),
    ],
)
def test_sequences_that_cannot_be_packed_are_named(sequences, options, message) -> None:
    with pytest.raises(RecordError, match=message):
        rows(MapStream(sequences, num_lanes=1).pack(2, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0; expected an integer >= 1"),
        ({"length": 2.0}, "length is 2.0; expected an integer >= 1"),
        ({"length": 2, "open_rows": 0}, "open_rows is 0"),
        ({"length": 2, "separator": "x"}, "separator is 'x'; expected an integer, a token, or None"),
        ({"length": 2, "pad": None}, "pad is None; expected an integer, a token"),
        ({"length": 2, "too_long": "cry"}, "too_long is 'cry'; expected one of error, drop, cut"),
        ({"length": 2, "tail": "wag"}, "tail is 'wag'; expected one of pad, drop"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(options, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        stream([[1]]).pack(**options)
