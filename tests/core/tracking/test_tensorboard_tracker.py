import math
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from parhelion.tracking import TensorBoardTracker, _folder, _tensorboard

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def crc32c(data):
    """Return the masked checksum of the record format, one bit at a time (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
    """Return the events of a file, each record checked."""
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        assert struct.unpack_from("<I", data, 8)[0] == crc32c(data[:8])
        assert struct.unpack_from("<I", data, 12 + size)[0] == crc32c(data[12 : 12 + size])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert found[0].file_version == "brain.Event:2"
    return found


def files(folder):
    return sorted(path for path in Path(folder).iterdir() if "tfevents" in path.name)


def scalars(folder):
    """Return what a reader of the folder sees: (step, tag, value) in the order of files and records."""
    return [
        (event.step, value.tag, value.simple_value)
        for path in files(folder)
        for event in events(path)
        for value in event.summary.value
    ]


def write(folder, start, *steps):
    tracker = TensorBoardTracker(folder)
    tracker.start(start)
    for step in steps:
        tracker.log(step, {"loss": step / 8})
    tracker.close()


def test_values_are_scalars_of_their_step_in_one_record_with_a_time(tmp_path):
    before = time.time()
    tracker = TensorBoardTracker(tmp_path / "made" / "here")
    tracker.start(None)
    tracker.log(3, {"loss": 0.1, "val/acc": np.float32(0.5), "any name": 7})
    tracker.log(4, {"loss": 1e300, "nan": math.nan, "low": -math.inf})
    # Both rows are in the file before it is closed.
    (path,) = files(tracker.run_path)
    _, third, fourth = events(path)
    tracker.close()
    assert scalars(tracker.run_path)[:4] == [
        (3, "loss", float(np.float32(0.1))),
        (3, "val/acc", 0.5),
        (3, "any name", 7.0),
        (4, "loss", math.inf),
    ]
    assert math.isnan(scalars(tracker.run_path)[4][2])
    assert before <= third.wall_time <= fourth.wall_time <= time.time()


@given(
    parts=st.lists(st.lists(st.integers(0, 40), unique=True, max_size=5).map(sorted), max_size=3),
    stop=st.integers(0, 45),
    cut=st.integers(0, 39),
    zeros=st.booleans(),
)
# What is left of the event, four bytes less than of the record, is an event too: the first field alone.
@example(parts=[[1]], stop=5, cut=25, zeros=False)
@settings(max_examples=40, deadline=None)
def test_after_a_resume_no_file_holds_a_later_step_or_half_a_record(parts, stop, cut, zeros):
    with tempfile.TemporaryDirectory() as folder:
        for steps in parts:
            write(folder, 50, *steps)
        before = scalars(folder)
        for path in files(folder):
            # The first record of every file has 40 bytes.
            half = bytes(cut) if zeros else path.read_bytes()[:cut]
            path.write_bytes(path.read_bytes() + half)
        write(folder, stop, stop + 1)
        kept = [(step, tag, value) for step, tag, value in before if step <= stop]
        assert scalars(folder) == [*kept, (stop + 1, "loss", (stop + 1) / 8)]
        assert len(files(folder)) == len(list(Path(folder).iterdir())) == len(parts) + 1


def test_a_reader_never_sees_a_half_made_replacement(tmp_path, monkeypatch):
    write(tmp_path, None, 1, 2)
    (path,) = files(tmp_path)
    seen = []

    def look(descriptor, fsync=_folder.os.fsync):
        seen.append([(p.name, len(events(p))) for p in files(tmp_path)])
        fsync(descriptor)

    monkeypatch.setattr(_folder.os, "fsync", look)
    write(tmp_path, 1)
    assert seen[:2] == [[(path.name, 3)], [(path.name, 2)]]


def test_a_file_without_later_steps_is_left_alone(tmp_path):
    write(tmp_path, None, 1, 2)
    (path,) = files(tmp_path)
    before = path.stat()
    write(tmp_path, 2, 3)
    assert path.stat() == before


def test_a_running_tensorboard_is_told_to_forget_the_later_steps(tmp_path):
    write(tmp_path, None, 1, 2)
    write(tmp_path, 1, 2)
    first, second = files(tmp_path)
    assert not any(event.HasField("session_log") for event in events(first))
    (told,) = (event for event in events(second) if event.HasField("session_log"))
    assert told.session_log.status == event_pb2.SessionLog.START
    assert told.step == 2


def test_what_others_have_written_of_later_steps_goes_too(tmp_path):
    tensorboard_x = pytest.importorskip("tensorboardX")
    write(tmp_path, None, 1)
    with tensorboard_x.SummaryWriter(str(tmp_path), purge_step=9, filename_suffix=".other") as writer:
        for step in (7, 2, 8):
            writer.add_scalar("other", step, step)
            writer.add_histogram("many", np.arange(5.0), step)
    write(tmp_path, 7, 8)
    assert [(step, tag) for step, tag, _ in scalars(tmp_path)] == [
        (1, "loss"),
        (7, "other"),
        (7, "many"),
        (2, "other"),
        (2, "many"),
        (8, "loss"),
    ]


def test_a_value_that_the_step_has_already_is_not_written_again(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.start(None)
    tracker.log(1, {"epoch": 1, "loss": 0.1, "nan": math.nan})
    tracker.log(1, {"epoch": 1, "val": 2, "nan": math.nan})
    tracker.log(1, {"epoch": 1})
    tracker.close()
    tracker.start(1)
    tracker.log(1, {"loss": 0.1, "late": 3})
    tracker.log(2, {"loss": 0.1})
    tracker.close()
    assert [(step, tag) for step, tag, _ in scalars(tmp_path)] == [
        (1, "epoch"),
        (1, "loss"),
        (1, "nan"),
        (1, "val"),
        (1, "late"),
        (2, "loss"),
    ]


def test_a_fresh_start_moves_older_files_into_a_folder_of_their_own(tmp_path):
    (tmp_path / "events.txt").touch()
    for step in (1, 2, 3):
        write(tmp_path, None, step)
    assert scalars(tmp_path / "earlier.1") == [(1, "loss", 1 / 8)]
    assert scalars(tmp_path / "earlier.2") == [(2, "loss", 2 / 8)]
    assert scalars(tmp_path) == [(3, "loss", 3 / 8)]
    assert (tmp_path / "events.txt").exists()


def test_files_sort_in_the_order_of_their_making_whatever_the_clock_says(tmp_path, monkeypatch):
    for seconds in (2000, 2000, 1000, 1e9):
        monkeypatch.setattr(_tensorboard.time, "time", lambda now=seconds: now)
        write(tmp_path, 50, len(files(tmp_path)))
    assert [path.name.split(".")[3] for path in files(tmp_path)] == [
        "0000002000",
        "0000002001",
        "0000002002",
        "1000000000",
    ]
    assert [step for step, *_ in scalars(tmp_path)] == [0, 1, 2, 3]


ENDLESS = """
import itertools, sys
from parhelion.tracking import TensorBoardTracker
tracker = TensorBoardTracker(sys.argv[1])
tracker.start(None)
for step in itertools.count():
    tracker.log(step, {"loss": step / 8})
    print(step, flush=True)
"""


@pytest.mark.processes
def test_a_killed_run_has_every_step_that_it_had_logged(tmp_path, child):
    process = child(ENDLESS, tmp_path, stdout=-1, text=True)
    for line in process.stdout:
        if line == "200\n":
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    write(tmp_path, 150, 151)
    assert scalars(tmp_path) == [(step, "loss", step / 8) for step in range(152)]


def test_half_a_record_that_a_full_disk_left_is_written_over(tmp_path, full_disk):
    tracker = TensorBoardTracker(tmp_path)
    tracker.start(None)
    tracker.log(1, {"loss": 1})
    with full_disk(files(tmp_path)[0].stat().st_size + 20), pytest.raises(OSError, match="File too large"):
        tracker.log(2, {"loss": 2})
    tracker.log(3, {"loss": 3})
    tracker.close()
    assert scalars(tmp_path) == [(1, "loss", 1.0), (3, "loss", 3.0)]


def test_without_tensorboardx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        MissingExtraError, match=r"not installed; install it with: pip install 'parhelion\[tensorboard\]'"
    ):
        TensorBoardTracker(tmp_path)
    assert issubclass(MissingExtraError, ImportError)


def test_a_place_that_cannot_be_written_to_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    for path, message in [
        (tmp_path / "file", "run_path is .*; expected a folder, and '.*file' is a file. Name another folder"),
        (tmp_path / "file" / "run", "run_path is .*; expected a folder, and '.*file' is a file"),
        (Path("/proc/none"), "run_path is .*; expected a place that can be written to"),
    ]:
        with pytest.raises(InvalidValueError, match=message):
            TensorBoardTracker(path).start(None)


def test_what_is_no_row_is_refused(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    with pytest.raises(InvalidValueError, match=r"run_path '.*' is not open; expected start\(\) before log\(\)"):
        tracker.log(1, {})
    tracker.start(None)
    with pytest.raises(InvalidTypeError, match="the value 'loss' is 'low'; expected a real number"):
        tracker.log(1, {"loss": "low"})
    with pytest.raises(InvalidValueError, match="step is -1; expected an integer >= 0"):
        tracker.log(-1, {})
    tracker.close()
    tracker.close()
    assert scalars(tmp_path) == []
