import io
import logging
import os
import platform
import sys

import numpy as np
import pytest

import parhelion
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.tracking import ConsoleTracker, banner_text

LOGGER = logging.getLogger("parhelion")
ROW = {"loss": 0.12341, "lr": 1e-3, "epoch": 3, "samples_per_second": 2310.4, "time": 12.5}


@pytest.fixture
def console():
    tracker = ConsoleTracker()
    tracker.start(None)
    yield tracker
    tracker.close()


@pytest.mark.parametrize(
    ("totals", "step", "values", "line"),
    [
        ((10, None), 1200, ROW, "epoch 3/10  iteration 1200  loss 0.1234  lr 1.0e-03  2,310 samples/s"),
        ((None, 5000), 7, {"epoch": 1}, "epoch 1  iteration 7/5000"),
        ((float("inf"), float("inf")), 7, {"epoch": 1}, "epoch 1  iteration 7"),
        ((None, None), 0, {}, "iteration 0"),
        (
            (None, None),
            5,
            {"b": 2, "a": 1.0, "big": 123456.7, "huge": 1.5e9, "tiny": 1e-7, "zero": 0.0, "minus": -2.34567},
            "iteration 5  b 2  a 1.000  big 123457  huge 1.500e+09  tiny 1.000e-07  zero 0.000  minus -2.346",
        ),
        (
            (None, None),
            5,
            {"loss": float("nan"), "x": float("-inf"), "samples_per_second": 0.51234},
            "iteration 5  loss nan  x -inf  0.512 samples/s",
        ),
        (
            (None, None),
            5,
            {"head/lr": 3e-4, "learning_rate": 0.5, "samples_per_second": 99.96, "flr": 3e-4},
            "iteration 5  head/lr 3.0e-04  learning_rate 5.0e-01  flr 0.0003000  100 samples/s",
        ),
        ((None, None), 5, {"100%\nodd": 1}, "iteration 5  100% odd 1"),
    ],
)
def test_a_row_is_one_line(capsys, totals, step, values, line):
    tracker = ConsoleTracker(*totals)
    tracker.start(None)
    tracker.log(step, values)
    tracker.close()
    assert capsys.readouterr() == (line + "\n", "")


def test_messages_go_to_stdout_and_warnings_to_stderr_with_their_level(capsys, console):
    child = logging.getLogger("parhelion.training")
    child.debug("not shown")
    child.info("saved: %s", "here")
    child.warning("odd")
    try:
        int("why")
    except ValueError:
        child.exception("failed")
    out, err = capsys.readouterr()
    assert out == "saved: here\n"
    assert err.startswith("warning: odd\nerror: failed\nTraceback (most recent call last):\n")
    assert err.endswith("int() with base 10: 'why'\n")


def test_the_logger_is_as_it_was_when_the_console_is_closed(capsys):
    before = (LOGGER.level, LOGGER.propagate, list(LOGGER.handlers))
    tracker = ConsoleTracker()
    tracker.start(5)
    assert LOGGER.getEffectiveLevel() == logging.INFO
    tracker.close()
    tracker.close()
    assert (LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)) == before
    LOGGER.info("nobody is told")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("first_closed", [0, 1])
def test_two_consoles_show_a_line_once(capsys, first_closed):
    trackers = [ConsoleTracker(), ConsoleTracker()]
    for tracker in [*trackers, trackers[0]]:
        tracker.start(None)
    LOGGER.info("once")
    assert capsys.readouterr().out == "once\n"
    for tracker in (trackers[first_closed], trackers[1 - first_closed]):
        tracker.close()
    assert LOGGER.handlers == []
    assert LOGGER.level == logging.NOTSET


def test_a_level_that_the_user_set_is_respected(capsys):
    LOGGER.setLevel(logging.WARNING)
    try:
        tracker = ConsoleTracker()
        tracker.start(None)
        tracker.log(1, {})
        LOGGER.warning("seen")
        tracker.close()
        assert LOGGER.level == logging.WARNING
    finally:
        LOGGER.setLevel(logging.NOTSET)
    assert capsys.readouterr() == ("", "warning: seen\n")


def test_the_users_handlers_show_nothing_twice_and_lose_nothing(capsys):
    root = logging.getLogger()
    on_terminal, elsewhere = logging.StreamHandler(sys.stdout), logging.StreamHandler(io.StringIO())
    root.addHandler(on_terminal)
    root.addHandler(elsewhere)
    try:
        tracker = ConsoleTracker()
        tracker.start(None)
        tracker.log(1, {"loss": 0.5})
        logging.getLogger("parhelion.data").warning("told once")
        logging.getLogger("parhelionist").warning("another library")
        tracker.close()
        assert capsys.readouterr() == (
            "iteration 1  loss 0.5000\nanother library\n",
            "warning: told once\n",
        )
        assert elsewhere.stream.getvalue() == "iteration 1  loss 0.5000\ntold once\nanother library\n"
        assert on_terminal.filters == []
        LOGGER.warning("after")
        assert capsys.readouterr().out == "after\n"
    finally:
        root.removeHandler(on_terminal)
        root.removeHandler(elsewhere)


def test_rows_can_be_told_from_messages_by_their_step(console, caplog):
    console.log(12, {"loss": 1})
    LOGGER.info("a message")
    assert [getattr(record, "parhelion_step", None) for record in caplog.records] == [12, None]


def test_a_reader_that_has_gone_away_does_not_disturb_the_run(console, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    problems = io.StringIO()
    monkeypatch.setattr(sys, "stderr", problems)
    console.log(1, {})
    monkeypatch.undo()
    assert problems.getvalue() == ""
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_broken_message_is_reported_as_logging_does(console, capsys, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", False)  # pytest's own handler would raise
    LOGGER.info("%d", "no number")
    assert "--- Logging error ---" in capsys.readouterr().err


def test_no_stream_at_all_is_fine(console, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    console.log(1, {})


def test_a_terminal_that_knows_ascii_alone_shows_everything(console, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    LOGGER.info("café")
    monkeypatch.undo()
    assert stream.buffer.getvalue() == b"caf\\xe9\n"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.start(-3), InvalidValueError, "step is -3; expected an integer >= 0"),
        (lambda c: c.log(1.5, {}), InvalidTypeError, "step is 1.5; expected an integer >= 0"),
        (lambda c: c.log(1, {"loss": "low"}), InvalidTypeError, "the value 'loss' is 'low'; expected a real"),
    ],
)
def test_what_is_no_row_is_refused(console, call, error, message):
    with pytest.raises(error, match=message):
        call(console)


def test_the_banner_is_two_columns():
    lines = {"torch": "2.13.0", "parameters": "1,234,567", "resumed from": "runs/a\nb"}
    assert banner_text(lines).splitlines() == [
        f"Parhelion {parhelion.__version__}",
        f"  Python        {platform.python_version()}",
        f"  NumPy         {np.__version__}",
        f"  platform      {platform.system()} {platform.release()} {platform.machine()}",
        "  torch         2.13.0",
        "  parameters    1,234,567",
        "  resumed from  runs/a b",
    ]
    assert len(banner_text({}).splitlines()) == 4
