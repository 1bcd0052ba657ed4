import logging
import signal

import pytest

from parhelion.errors import InvalidValueError
from parhelion.tracking import (
    ConsoleTracker,
    FileLog,
    JsonlHistory,
    ProgressBar,
    TensorBoardTracker,
    Tracker,
    Trackers,
    read_history,
)


class Fake:
    def __init__(self, events, name, error=None):
        self.events = events
        self.name = name
        self.error = error

    def start(self, step):
        self._do("start", step)

    def log(self, step, values):
        self._do("log", step, dict(values))

    def close(self):
        self._do("close")

    def _do(self, *event):
        self.events.append((self.name, *event))
        if self.error is not None:
            raise self.error


@pytest.fixture
def events():
    return []


def test_every_tracker_is_told_in_order_and_closed_in_the_opposite_one(events):
    trackers = Trackers([Fake(events, "a"), Fake(events, "b")])
    trackers.start(3)
    trackers.log(4, {"loss": 1})
    trackers.close()
    assert events == [
        ("a", "start", 3),
        ("b", "start", 3),
        ("a", "log", 4, {"loss": 1}),
        ("b", "log", 4, {"loss": 1}),
        ("b", "close"),
        ("a", "close"),
    ]


def test_all_of_them_are_trackers():
    kinds = (ConsoleTracker, FileLog, JsonlHistory, ProgressBar, TensorBoardTracker, Trackers)
    assert all(issubclass(kind, Tracker) for kind in kinds)


def test_if_one_refuses_to_start_those_before_are_closed(events):
    trackers = Trackers([Fake(events, "a"), Fake(events, "b", InvalidValueError("no")), Fake(events, "c")])
    with pytest.raises(InvalidValueError, match="no"):
        trackers.start(None)
    assert events == [("a", "start", None), ("b", "start", None), ("b", "close"), ("a", "close")]


def test_what_cannot_be_written_is_said_once_and_again_when_it_can(events, caplog):
    failing = Fake(events, "a", OSError(28, "No space left on device"))
    trackers = Trackers([failing, Fake(events, "b")])
    with caplog.at_level(logging.INFO, "parhelion"):
        trackers.log(1, {})
        trackers.log(2, {})
        failing.error = None
        trackers.log(3, {})
        trackers.log(4, {})
        failing.error = OSError("lost")
        trackers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "Fake cannot write: [Errno 28] No space left on device. The run goes on without it until it can.",
        "Fake can write again.",
        "Fake cannot write: lost. The run goes on without it until it can.",
    ]
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO", "ERROR"]
    assert [event[2] for event in events if event[:2] == ("b", "log")] == [1, 2, 3, 4]
    assert ("b", "close") in events


def test_any_other_error_is_raised_once_the_others_have_their_row(events):
    mistake = ZeroDivisionError("a mistake")
    trackers = Trackers([Fake(events, "a", mistake), Fake(events, "b", ValueError("another")), Fake(events, "c")])
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        trackers.log(1, {})
    with pytest.raises(ValueError, match="another"):
        trackers.close()
    assert [name for name, *_ in events] == ["a", "b", "c", "c", "b", "a"]


def test_a_full_disk_costs_the_history_no_row_and_is_told_on_the_console(tmp_path, full_disk, capsys):
    history = JsonlHistory(tmp_path / "h.jsonl")
    trackers = Trackers([ConsoleTracker(), history])
    trackers.start(None)
    with full_disk(10):
        trackers.log(1, {"loss": 1})
    trackers.log(2, {"loss": 2})
    trackers.close()
    assert read_history(history.path) == [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}]
    out, err = capsys.readouterr()
    assert out == "iteration 1  loss 1\niteration 2  loss 2\nJsonlHistory can write again.\n"
    assert err == (
        "error: JsonlHistory cannot write: [Errno 27] File too large. The run goes on without it until it can.\n"
    )


@pytest.mark.processes
def test_importing_does_nothing_and_loads_neither_tqdm_nor_tensorboard(child):
    code = """
import logging, sys
import parhelion.tracking
loaded = {"tqdm", "tensorboardX", "torch", "google.protobuf"} & set(sys.modules)
assert not loaded, loaded
assert not logging.getLogger("parhelion").handlers
assert logging.getLogger("parhelion").level == logging.NOTSET
"""
    assert child(code).wait(60) == 0


STOPPED = """
import logging, os, signal, sys
from parhelion.tracking import *
folder = sys.argv[1]
start = None if sys.argv[2] == "None" else int(sys.argv[2])
trackers = Trackers([ConsoleTracker(), FileLog(folder + "/run.log"), JsonlHistory(folder + "/h.jsonl")])
trackers.start(start)
for step in range((start or 0) + 1, int(sys.argv[3]) + 1):
    trackers.log(step, {"loss": step / 7})
logging.getLogger("parhelion").error("about to die")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
def test_a_run_killed_and_resumed_three_times_has_every_step_once(tmp_path, child):
    for start, stop in [(None, 9), (5, 14), (14, 20), (3, 12)]:
        assert child(STOPPED, tmp_path, start, stop, stdout=-3, stderr=-3).wait(60) == -signal.SIGKILL
    assert read_history(tmp_path / "h.jsonl") == [{"step": step, "loss": step / 7} for step in range(1, 13)]
    lines = [line[25:] for line in (tmp_path / "run.log").read_text().splitlines()]
    rows = [line for line in lines if line.startswith("VALUES")]
    assert [line.split()[2] for line in rows] == [str(step) for step in range(1, 13)]
    assert lines.count("ERROR    about to die") == 4
