import json
import math
import signal
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.tracking import JsonlHistory, _history, read_history

NAMES = st.text(max_size=8).filter(lambda name: name != "step")
NUMBERS = st.floats(width=64) | st.integers(-(2**70), 2**70)
STEPS = st.lists(st.integers(0, 60), unique=True, max_size=12).map(sorted)


def written(path, start, rows):
    history = JsonlHistory(path)
    history.start(start)
    for step, values in rows:
        history.log(step, values)
    history.close()
    return read_history(path)


def bits(value):
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return value


def refuse(token):
    raise ValueError(token)


@given(rows=st.lists(st.dictionaries(NAMES, NUMBERS, max_size=4), max_size=5))
def test_rows_read_back_exactly_and_every_line_is_strict_json(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "history.jsonl")
        read = written(path, None, list(enumerate(rows)))
        for line in path.read_text("ascii").splitlines():
            json.loads(line, parse_constant=refuse)
    assert [row.pop("step") for row in read] == list(range(len(rows)))
    assert [{name: bits(v) for name, v in row.items()} for row in read] == [
        {name: bits(v) for name, v in row.items()} for row in rows
    ]
    assert [list(row) for row in read] == [list(row) for row in rows]


def test_a_line_is_the_step_and_then_the_values_in_order(tmp_path):
    path = tmp_path / "history.jsonl"
    written(path, None, [(7, {"epoch": 1, "loss": 0.1, "worst": math.inf, "best": -math.inf, "x": math.nan})])
    assert path.read_text() == (
        '{"step": 7, "epoch": 1, "loss": 0.1, "worst": "Infinity", "best": "-Infinity", "x": "NaN"}\n'
    )


def test_numbers_of_numpy_and_0d_arrays_are_plain_numbers(tmp_path):
    values = {"a": np.float32(0.1), "b": np.int64(3), "c": np.array(2.5), "d": np.float64(0.1), "e": True}
    (row,) = written(tmp_path / "h.jsonl", None, [(np.int32(1), values)])
    assert row == {"step": 1, "a": float(np.float32(0.1)), "b": 3, "c": 2.5, "d": 0.1, "e": 1}
    assert [type(value) for value in row.values()] == [int, float, int, float, float, int]


@given(
    steps=STEPS,
    stop=st.integers(0, 70),
    junk=st.sampled_from([b"", b"{", b'{"step": 9', b'{"step": 999, "loss": 0.', b"\0\0\0", b"\0\n\xff\xfe\n\0"]),
    block=st.sampled_from([1, 7, 40, 1 << 16]),
    more=st.lists(st.integers(1, 9), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_a_resume_drops_the_later_rows_and_what_a_kill_left_half_written(steps, stop, junk, block, more):
    rows = [(step, {"loss": step / 7}) for step in steps]
    kept = [{"step": step, "loss": step / 7} for step in steps if step <= stop]
    new = [(stop + sum(more[: k + 1]), {"loss": -1.0}) for k in range(len(more))]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_history, "_BLOCK", block)
        path = Path(folder, "history.jsonl")
        written(path, None, rows)
        with path.open("ab") as file:
            file.write(junk)
        assert written(path, stop, []) == kept
        assert path.read_bytes().count(b"\n") == len(kept)
        assert written(path, stop, new) == kept + [{"step": step, **values} for step, values in new]
        assert [p.name for p in Path(folder).iterdir()] == ["history.jsonl"]


def test_a_last_row_that_lacks_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}')
    assert [row["step"] for row in written(path, 2, [(3, {"loss": 0.1})])] == [1, 2, 3]


def test_only_the_end_of_a_long_file_is_read_at_a_resume(tmp_path, monkeypatch):
    path = tmp_path / "h.jsonl"
    written(path, None, [(step, {"loss": 0.5}) for step in range(5000)])
    parsed = []
    monkeypatch.setattr(_history, "_parse", lambda line, parse=_history._parse: parsed.append(line) or parse(line))
    history = JsonlHistory(path)
    history.start(4990)
    history.close()
    assert len(parsed) == 10
    assert path.read_bytes().count(b"\n") == 4991


def test_a_second_row_of_a_step_is_merged_into_the_first(tmp_path):
    path = tmp_path / "h.jsonl"
    rows = [
        (1, {"loss": 0.123456789, "lr": 0.1}),
        (1, {"loss": 0.5, "val": 2}),
        (1, {"val": 3}),
        (2, {"loss": 1}),
    ]
    assert written(path, None, rows) == [
        {"step": 1, "loss": 0.5, "lr": 0.1, "val": 3},
        {"step": 2, "loss": 1},
    ]
    assert path.read_bytes().count(b"\n") == 2
    assert written(path, 2, [(2, {"val": 4})])[-1] == {"step": 2, "loss": 1, "val": 4}
    assert path.read_bytes().count(b"\n") == 2


def test_a_merged_row_that_is_shorter_leaves_one_whole_line(tmp_path):
    path = tmp_path / "h.jsonl"
    assert written(path, None, [(1, {"loss": 0.123456789012345}), (1, {"loss": 1})]) == [{"step": 1, "loss": 1}]
    assert path.read_bytes().endswith(b" 1}" + b" " * 16 + b"\n")
    assert written(path, 1, [(1, {"a": 1}), (2, {})]) == [{"step": 1, "loss": 1, "a": 1}, {"step": 2}]


def test_a_fresh_start_sets_an_older_history_aside_and_loses_nothing(tmp_path):
    path = tmp_path / "history.jsonl"
    for run in range(3):
        written(path, None, [(run, {})])
    assert {p.name: read_history(p)[0]["step"] for p in tmp_path.iterdir()} == {
        "history.1.jsonl": 0,
        "history.2.jsonl": 1,
        "history.jsonl": 2,
    }
    path.write_bytes(b"")
    written(path, None, [(5, {})])
    assert len(list(tmp_path.iterdir())) == 3


def test_each_row_is_in_the_file_at_once(tmp_path):
    history = JsonlHistory(tmp_path / "made" / "here" / "h.jsonl")
    history.start(None)
    for step in range(3):
        history.log(step, {"loss": 0.5})
        assert len(read_history(history.path)) == step + 1
    history.close()


ENDLESS = """
import itertools, os, sys
from parhelion.tracking import JsonlHistory
history = JsonlHistory(sys.argv[1])
history.start(None)
for step in itertools.count():
    history.log(step, {"loss": step / 7, "text" * 20: 1})
"""

HALF = """
import io, os, signal, sys
from parhelion.tracking import JsonlHistory
class Dying(io.FileIO):
    def write(self, data):
        super().write(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
history = JsonlHistory(sys.argv[1])
history.start(None)
for step in range(1, 4):
    history.log(step, {"loss": step / 7})
history._file = Dying(sys.argv[1], "r+")
history.log(4, {"loss": 0.5})
"""


@pytest.mark.processes
def test_a_killed_run_goes_on_from_any_step_it_had(tmp_path, child):
    path = tmp_path / "h.jsonl"
    process = child(ENDLESS, path)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 50_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.kill()
    process.wait()
    rows = read_history(path)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert path.read_bytes().count(b"\n") == len(rows)
    stop = len(rows) // 2
    assert written(path, stop, [(stop + 1, {"loss": 1.0})]) == [
        *rows[: stop + 1],
        {"step": stop + 1, "loss": 1.0},
    ]


@pytest.mark.processes
def test_a_kill_in_the_middle_of_a_write_costs_that_row_alone(tmp_path, child):
    path = tmp_path / "h.jsonl"
    assert child(HALF, path).wait(60) == -signal.SIGKILL
    assert not path.read_bytes().endswith(b"\n")
    kept = [{"step": step, "loss": step / 7} for step in (1, 2, 3)]
    assert read_history(path) == kept
    assert written(path, 3, [(4, {"loss": 9.0})]) == [*kept, {"step": 4, "loss": 9.0}]


@pytest.mark.parametrize("room", [0, 3, 17, 30])
def test_rows_that_a_full_disk_refused_go_out_with_the_next_one(tmp_path, full_disk, room):
    path = tmp_path / "h.jsonl"
    history = JsonlHistory(path)
    history.start(None)
    history.log(1, {"loss": 0.5})
    with full_disk(path.stat().st_size + room):
        for step, values in [(1, {"val": 1.25, "name" * 10: 1}), (2, {"loss": 0.25}), (2, {"val": 3})]:
            with pytest.raises(OSError, match="File too large"):
                history.log(step, values)
    history.log(3, {"loss": 0.125})
    history.close()
    assert read_history(path) == [
        {"step": 1, "loss": 0.5, "val": 1.25, "name" * 10: 1},
        {"step": 2, "loss": 0.25, "val": 3},
        {"step": 3, "loss": 0.125},
    ]


def test_closing_writes_what_a_full_disk_refused(tmp_path, full_disk):
    path = tmp_path / "h.jsonl"
    history = JsonlHistory(path)
    history.start(None)
    with full_disk(10), pytest.raises(OSError, match="File too large"):
        history.log(1, {"loss": 0.5})
    history.close()
    history.close()
    assert read_history(path) == [{"step": 1, "loss": 0.5}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_bytes(b'{"step": 1}\n{"loss": 2}\n{"step": 3}\n')
    with pytest.raises(InvalidValueError, match=r"line 2 of '.*h.jsonl' is b'\{\"loss\": 2\}'; expected a JSON object"):
        read_history(path)
    path.write_bytes(b'[1]\n\n{"step": 3}\n')
    with pytest.raises(InvalidValueError, match="line 1 of"):
        read_history(path)


def test_a_missing_history_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_history(tmp_path / "none.jsonl")


def test_a_step_before_the_last_row_is_refused(tmp_path):
    history = JsonlHistory(tmp_path / "h.jsonl")
    with pytest.raises(InvalidValueError, match=r"is not open; expected start\(\) before log\(\)"):
        history.log(1, {})
    history.start(None)
    history.log(5, {})
    with pytest.raises(InvalidValueError, match=r"step is 4; expected 5 or later, .*start the history again"):
        history.log(4, {})
    history.start(5)
    with pytest.raises(InvalidValueError, match="step is 4; expected 5 or later"):
        history.log(4, {})
    history.close()
    assert read_history(history.path) == [{"step": 5}]


@pytest.mark.parametrize("start", [None, 3])
def test_a_place_that_cannot_be_written_to_is_an_error_at_the_start(tmp_path, start):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path, message in [
        (tmp_path / "file" / "h.jsonl", r"expected a folder, and '.*/file' is a file. Name another folder"),
        (
            tmp_path / "file" / "deep" / "h.jsonl",
            r"expected a folder, and '.*/file' is a file. Name another folder",
        ),
        (tmp_path / "folder", r"expected a file, and this is a folder. Name a file inside it"),
        (Path("/proc/none/h.jsonl"), r"expected a place that can be written to \(.*\). Name another one"),
    ]:
        with pytest.raises(InvalidValueError, match=message):
            JsonlHistory(path).start(start)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_without_permission_is_an_error_at_the_start(tmp_path, monkeypatch):
    # Root may write anywhere, so the answer is made up.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InvalidValueError, match=r"written to \(Permission denied\).*change its permissions"):
        JsonlHistory(tmp_path / "h.jsonl").start(None)


@pytest.mark.parametrize(
    ("step", "values", "error", "message"),
    [
        (-1, {}, InvalidValueError, "step is -1; expected an integer >= 0"),
        (1.0, {}, InvalidTypeError, "step is 1.0; expected an integer >= 0"),
        (True, {}, InvalidTypeError, "step is True; expected an integer >= 0"),
        (1, {"step": 2}, InvalidValueError, "a value is named 'step'; expected any other name"),
        (1, {3: 2}, InvalidTypeError, "the name of a value is 3; expected a string"),
        (1, {"a": "1.5"}, InvalidTypeError, "the value 'a' is '1.5'; expected a real number"),
        (1, {"a": None}, InvalidTypeError, "the value 'a' is None; expected a real number"),
        (1, {"a": 1j}, InvalidTypeError, "the value 'a' is 1j; expected a real number"),
        (1, {"a": np.complex64(1)}, InvalidTypeError, "expected a real number. Log one number per name"),
        (1, {"a": np.zeros(3)}, InvalidTypeError, "expected a real number. Log one number per name"),
    ],
)
def test_a_row_that_is_none_is_refused_and_nothing_is_written(tmp_path, step, values, error, message):
    history = JsonlHistory(tmp_path / "h.jsonl")
    history.start(None)
    with pytest.raises(error, match=message):
        history.log(step, values)
    history.close()
    assert history.path.read_bytes() == b""


def test_a_negative_start_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"step is -1; .* A fresh run is announced with None"):
        JsonlHistory(tmp_path / "h.jsonl").start(-1)
    assert list(tmp_path.iterdir()) == []
