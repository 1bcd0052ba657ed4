import logging
import re
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.tracking import ConsoleTracker, FileLog, _folder

LOGGER = logging.getLogger("parhelion")
TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  ", re.MULTILINE)
ROW = {"epoch": 3, "loss": 0.12341, "lr": 1e-3, "samples_per_second": 2310.4}


def text(path):
    """Return the lines without their times, every first line of an entry having one."""
    return TIME.sub("", path.read_text("utf-8")).splitlines()


def write(path, start, *told):
    """Log rows (integers), messages (strings) and problems (exceptions)."""
    log = FileLog(path)
    log.start(start)
    for one in told:
        if isinstance(one, int):
            log.log(one, {})
        elif isinstance(one, str):
            LOGGER.info(one)
        else:
            LOGGER.error("failed", exc_info=one)
    log.close()
    return text(path)


def test_rows_and_messages_are_lines_with_the_time(tmp_path, monkeypatch):
    # Half a surrogate pair in pytest's own capture is more than it can send from one process to another.
    monkeypatch.setattr(LOGGER, "propagate", False)
    path = tmp_path / "made" / "run.log"
    log = FileLog(path, epochs=10, iterations=5000)
    log.start(None)
    LOGGER.info("first\nsecond")
    log.log(1200, ROW)
    logging.getLogger("parhelion.data").warning("odd: %s", "é\ud800")
    LOGGER.critical("worse")
    log.close()
    assert text(path) == [
        "INFO     first",
        "    second",
        "VALUES   iteration 1200/5000  epoch 3/10  loss 0.1234  lr 1.0e-03  2,310 samples/s",
        r"WARNING  odd: é\ud800",
        "CRITICAL  worse",
    ]
    assert len(TIME.findall(path.read_text())) == 4


def test_beside_a_console_each_shows_a_row_once(tmp_path, capsys):
    log, console = FileLog(tmp_path / "run.log"), ConsoleTracker()
    for tracker in (console, log):
        tracker.start(None)
    LOGGER.info("message")
    for tracker in (console, log):
        tracker.log(1, {})
    # Closed in the order of their start: the level must come back all the same.
    for tracker in (console, log):
        tracker.close()
    assert text(log.path) == ["INFO     message", "VALUES   iteration 1"]
    assert capsys.readouterr().out == "message\niteration 1\n"
    assert LOGGER.handlers == []
    assert LOGGER.level == logging.NOTSET


def test_a_level_that_the_user_set_costs_no_row(tmp_path):
    LOGGER.setLevel(logging.ERROR)
    try:
        assert write(tmp_path / "run.log", None, "message", 1) == ["VALUES   iteration 1"]
        assert LOGGER.level == logging.ERROR
    finally:
        LOGGER.setLevel(logging.NOTSET)


def test_each_line_is_in_the_file_at_once(tmp_path):
    log = FileLog(tmp_path / "run.log")
    log.start(None)
    log.log(1, {})
    assert text(log.path) == ["VALUES   iteration 1"]
    log.close()


def test_a_resume_drops_later_rows_and_messages_but_no_warning_and_no_error(tmp_path):
    path = tmp_path / "run.log"
    log = FileLog(path)
    log.start(None)
    LOGGER.info("begin")
    log.log(10, {})
    LOGGER.info("between")
    log.log(20, {})
    LOGGER.info("saved\nlate")
    LOGGER.warning("odd\nvery")
    log.log(30, {})
    try:
        int("why")
    except ValueError:
        LOGGER.exception("failed")
    LOGGER.info("bye")
    log.close()
    *kept, _ = write(path, 20)
    assert kept[:7] == [
        "INFO     begin",
        "VALUES   iteration 10",
        "INFO     between",
        "VALUES   iteration 20",
        "INFO     saved",
        "    late",
        "WARNING  odd",
    ]
    *kept, mark = write(path, 10, 20)[:-1]
    assert kept[:4] == ["INFO     begin", "VALUES   iteration 10", "INFO     between", "WARNING  odd"]
    assert kept[4:7] == ["    very", "ERROR    failed", "    Traceback (most recent call last):"]
    assert kept[-1] == "    ValueError: invalid literal for int() with base 10: 'why'"
    assert mark == "INFO     resumed after iteration 10"
    assert write(path, 20)[-2:] == ["VALUES   iteration 20", "INFO     resumed after iteration 20"]


@given(steps=st.lists(st.integers(0, 60), unique=True, max_size=10).map(sorted), stop=st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_the_rows_left_after_a_resume_are_those_up_to_its_step(steps, stop):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.log")
        write(path, None, *steps)
        before = path.read_bytes()
        lines = write(path, stop, stop + 1)
        kept = [f"VALUES   iteration {step}" for step in steps if step <= stop]
        assert lines == [*kept, f"INFO     resumed after iteration {stop}", f"VALUES   iteration {stop + 1}"]
        assert path.read_bytes().startswith(b"".join(before.splitlines(keepends=True)[: len(kept)]))
        assert [p.name for p in Path(folder).iterdir()] == ["run.log"]


def test_a_message_that_looks_like_a_row_is_none(tmp_path):
    path = tmp_path / "run.log"
    fake = "2026-01-31 12:00:00.123  VALUES   iteration 99"
    lines = write(path, None, "iteration 99", f"x\n{fake}", f"x\r{fake}", f"x\x0b{fake}", f"x\u2028{fake}", 1)
    assert write(path, 1)[: len(lines)] == lines


def test_a_line_that_a_kill_left_half_written_is_dropped(tmp_path):
    path = tmp_path / "run.log"
    write(path, None, 1, 2)
    for half in (path.read_bytes()[:-1], path.read_bytes()[:-10]):
        path.write_bytes(half)
        assert write(path, 2)[:2] == ["VALUES   iteration 1", "INFO     resumed after iteration 2"]


ENDLESS = """
import itertools, logging, sys
from parhelion.tracking import FileLog
log = FileLog(sys.argv[1])
log.start(None)
for step in itertools.count():
    log.log(step, {"loss": 0.5})
    print(step, flush=True)
"""


@pytest.mark.processes
def test_a_killed_run_keeps_every_row_it_had_logged(tmp_path, child):
    path = tmp_path / "run.log"
    process = child(ENDLESS, path, stdout=-1, text=True)
    for line in process.stdout:
        if line == "300\n":
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    last = [line for line in process.stdout if line.endswith("\n")][-1:]
    logged = int(last[0]) if last else 300
    rows = [line for line in text(path) if line.startswith("VALUES")]
    assert rows[: logged + 1] == [f"VALUES   iteration {step}  loss 0.5000" for step in range(logged + 1)]
    assert write(path, 100)[100:] == [
        "VALUES   iteration 100  loss 0.5000",
        "INFO     resumed after iteration 100",
    ]


def test_a_replacement_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "run.log"
    write(path, None, 1, 2)
    before = path.read_bytes()

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_folder.os, "fsync", fail)
    with pytest.raises(InvalidValueError, match=r"the log's path is .*written to \(Input/output error\)"):
        FileLog(path).start(1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert LOGGER.handlers == []


def test_a_replaced_file_keeps_its_permissions_and_stays_behind_its_link(tmp_path):
    path, link = tmp_path / "run.log", tmp_path / "link.log"
    write(path, None, 1, 2)
    path.chmod(0o640)
    link.symlink_to(path)
    assert write(link, 1) == ["VALUES   iteration 1", "INFO     resumed after iteration 1"]
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_fresh_start_sets_an_older_log_aside(tmp_path):
    path = tmp_path / "run.log"
    write(path, None, 1)
    write(path, None, 2)
    assert {p.name: text(p) for p in tmp_path.iterdir()} == {
        "run.1.log": ["VALUES   iteration 1"],
        "run.log": ["VALUES   iteration 2"],
    }


def test_a_resume_without_a_file_begins_one(tmp_path):
    assert write(tmp_path / "run.log", 7, 8) == ["INFO     resumed after iteration 7", "VALUES   iteration 8"]


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path, full_disk, capsys):
    log = FileLog(tmp_path / "run.log")
    log.start(None)
    log.log(1, {})
    with full_disk(log.path.stat().st_size):
        log.log(2, {})
        LOGGER.info("message")
    log.close()
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: the log '.*run.log' cannot be written: \[Errno 27\] File too large\n", err)


def test_a_place_that_cannot_be_written_to_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    for path, message in [
        (tmp_path / "file" / "run.log", "the log's path is .*; expected a folder, and '.*file' is a file"),
        (tmp_path, "the log's path is .*; expected a file, and this is a folder"),
        (Path("/proc/none/run.log"), "the log's path is .*; expected a place that can be written to"),
    ]:
        with pytest.raises(InvalidValueError, match=message):
            FileLog(path).start(None)
    assert LOGGER.handlers == []


def test_what_is_no_row_is_refused(tmp_path):
    log = FileLog(tmp_path / "run.log")
    with pytest.raises(InvalidValueError, match=r"the log '.*' is not open; expected start\(\) before log\(\)"):
        log.log(1, {})
    with pytest.raises(InvalidTypeError, match="step is None; expected an integer >= 0"):
        log.log(None, {})
    with pytest.raises(InvalidValueError, match="step is -1; expected an integer >= 0"):
        log.start(-1)
