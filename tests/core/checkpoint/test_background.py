"""Saves behind the training: one at a time, no failure lost, none raised twice."""

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from parhelion.checkpoint import (
    Hold,
    Saver,
    _background,
    find_last_checkpoint,
    flatten,
    list_checkpoints,
    load_newest,
    prune,
    write_checkpoint,
)
from parhelion.errors import CheckpointError


@pytest.fixture
def gate():
    """An event that a save in flight waits for; open at the end whatever happens."""
    event = threading.Event()
    yield event
    event.set()


def fail(error):
    raise error


def wait_until(happened, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_start_returns_before_the_save_is_done(gate):
    done = []
    saver = Saver()
    saver.start(lambda: (gate.wait(10), done.append(1)))
    assert saver.is_busy
    assert not done
    assert saver.wait(0.01) is False
    gate.set()
    assert saver.wait() is True
    assert done == [1]
    assert not saver.is_busy


def test_two_saves_are_never_in_flight():
    now, most = [], []

    def write():
        now.append(1)
        most.append(len(now))
        time.sleep(0.002)
        now.pop()

    with Saver() as saver:
        for _ in range(20):
            saver.start(write)
    assert most == [1] * 20


@pytest.mark.parametrize("error", [ValueError("no"), OSError(28, "No space left"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("ask", ["check", "start", "wait", "close"])
def test_a_failure_is_raised_once_where_it_is_next_looked_for(ask, error):
    saver = Saver()
    saver.start(lambda: fail(error))
    wait_until(lambda: not saver.is_busy)
    calls = []
    arguments = [lambda: calls.append(1)] if ask == "start" else []
    with pytest.raises(CheckpointError, match=rf"in the background \({type(error).__name__}: ") as raised:
        getattr(saver, ask)(*arguments)
    assert raised.value.__cause__ is error
    assert calls == []
    saver.check()
    saver.start(lambda: calls.append(2))
    saver.close()
    assert calls == [2]


def test_a_look_while_a_save_is_in_flight_does_not_wait(gate):
    saver = Saver()
    saver.start(lambda: gate.wait(10))
    saver.check()
    assert saver.is_busy
    gate.set()
    saver.close()


def test_a_save_that_waits_long_for_the_one_before_says_so_once(gate, monkeypatch, caplog):
    monkeypatch.setattr(_background, "_LONG_WAIT", 0.01)
    saver = Saver()
    for _ in range(3):
        saver.start(lambda: time.sleep(0.05))
    saver.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "s for the checkpoint before to be written; save less often" in caplog.text


def test_without_a_background_a_save_is_done_at_once_and_its_error_leaves_as_it_is():
    saver, threads = Saver(in_background=False), []
    saver.start(lambda: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]
    assert not saver.is_busy
    with pytest.raises(KeyError, match="mine"):
        saver.start(lambda: fail(KeyError("mine")))
    saver.close()


def test_the_context_waits_and_raises():
    done = []
    with Saver() as saver:
        saver.start(lambda: (time.sleep(0.02), done.append(1)))
    assert done == [1]
    with pytest.raises(CheckpointError, match="ValueError: lost"), Saver() as saver:
        saver.start(lambda: fail(ValueError("lost")))


def test_a_failed_save_does_not_hide_the_error_that_ends_training(caplog):
    def train():
        with Saver() as saver:
            saver.start(lambda: fail(ValueError("of the save")))
            raise ZeroDivisionError("of the training")

    with pytest.raises(ZeroDivisionError, match="of the training"):
        train()
    assert "ValueError: of the save" in caplog.text


def test_an_interrupt_while_waiting_leaves_the_save_in_flight(gate):
    done = []
    saver = Saver()
    saver.start(lambda: (gate.wait(10), done.append(1)))
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        saver.wait(10)
    timer.join()
    assert saver.is_busy
    gate.set()
    saver.close()
    assert done == [1]


def test_where_there_are_no_threads_the_save_is_done_at_once(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    saver, done = Saver(), []
    monkeypatch.setattr(threading.Thread, "start", start)
    saver.start(lambda: done.append(1))
    assert done == [1]
    saver.close()


def run_script(body, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *map(str, arguments)], capture_output=True, text=True, timeout=60,
        check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


@pytest.mark.processes
def test_an_interpreter_that_ends_does_not_lose_a_save_in_flight(tmp_path):
    ended = run_script(
        """
        import sys, threading, time
        from pathlib import Path
        from parhelion.checkpoint import Saver
        def train():
            Saver().start(lambda: (time.sleep(0.2), Path(sys.argv[1]).write_text("saved")))
        thread = threading.Thread(target=train, daemon=True)  # what it starts must not be a daemon like it
        thread.start()
        thread.join()
        raise SystemExit("an error of the training")
        """,
        tmp_path / "file",
    )
    assert ended.returncode == 1
    assert ended.stderr == "an error of the training\n"
    assert (tmp_path / "file").read_text() == "saved"


@pytest.mark.processes
def test_a_forked_process_has_no_save_to_wait_for(tmp_path):
    ended = run_script(
        """
        import os, sys, threading
        from parhelion.checkpoint import Saver
        gate = threading.Event()
        saver = Saver()
        saver.start(lambda: gate.wait(30))
        pid = os.fork()
        if not pid:
            saver.check()
            assert saver.wait() and not saver.is_busy
            done = []
            saver.start(lambda: done.append(1))
            saver.close()
            os._exit(0 if done else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), saver.is_busy)
        gate.set()
        saver.close()
        """
    )
    assert (ended.stdout, ended.stderr) == ("0 True\n", "")


# -- a real writer that fails -----------------------------------------------------------------------------------------


def save_behind(saver, hold, root, iteration, live):
    skeleton, arrays = flatten(live)
    held = hold.copy(arrays)
    meta = {"run_name": "run", "global_epoch": 1, "global_iteration": iteration}

    def write():
        write_checkpoint(root, f"run_epoch_1_iter_{iteration}", skeleton, held, meta)
        prune(root, 1)

    saver.start(write)


def no_room(root, size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    def put_back():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)

    return put_back


def no_folder(root, size):
    aside = root.with_name("aside")
    root.rename(aside)
    root.write_text("a file where the folder was")

    def put_back():
        root.unlink()
        aside.rename(root)

    return put_back


@pytest.mark.parametrize(
    ("break_it", "share", "number"),
    [(no_room, 0.1, errno.EFBIG), (no_room, 0.9, errno.EFBIG), (no_room, 0.999, errno.EFBIG), (no_folder, 0, None)],
    ids=["full at 10 %", "full at 90 %", "full at 99.9 %", "no folder"],
)
def test_a_save_that_fails_behind_keeps_the_old_one_and_the_next_one_works(tmp_path, break_it, share, number):
    root = tmp_path / "run"
    live = {"w": np.zeros(1 << 19, np.float32), "b": np.zeros(3)}
    size = sum(array.nbytes for array in live.values())
    saver, hold = Saver(), Hold()
    save_behind(saver, hold, root, 1, live)
    saver.wait()
    put_back = break_it(root, int(size * share))
    try:
        live["w"] += 1
        save_behind(saver, hold, root, 2, live)
        wait_until(lambda: not saver.is_busy)
        with pytest.raises(CheckpointError, match="in the background") as raised:
            saver.check()
    finally:
        put_back()
    assert isinstance(raised.value.__cause__, CheckpointError)
    assert number is None or raised.value.__cause__.__cause__.errno == number
    assert sorted(path.name for path in root.iterdir()) == ["last.json", "run_epoch_1_iter_1"]
    assert load_newest(root).tree["w"].max() == 0
    live["w"] += 1
    save_behind(saver, hold, root, 3, live)
    live["w"][...] = -1
    saver.close()
    assert [info.iteration for info in list_checkpoints(root)] == [3]
    assert set(load_newest(root).tree["w"]) == {2.0}
    assert find_last_checkpoint(root).name == "run_epoch_1_iter_3"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_whoever_is_told_of_a_failure_finds_it(error):
    found = []

    def look():
        try:
            saver.check()
        except CheckpointError as failure:
            found.append(failure.__cause__)
        told.set()

    saver, told = Saver(on_failure=look), threading.Event()
    saver.start(lambda: fail(error))
    assert told.wait(10)
    assert found == [error]
    saver.start(lambda: None)
    saver.close()
    assert found == [error]
