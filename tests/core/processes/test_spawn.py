"""Functions of a script that has no guard, run in processes that the script starts."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parhelion.errors import WorldError
from parhelion.processes import OVERDUE, SharedQueue
from parhelion.processes._queue import _FarEnd
from support import ranks
from support.ranks import environment

SCRIPT = Path(ranks.__file__).with_name("spawning_script.py")


@contextlib.contextmanager
def start(case):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), case],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.pids = []
    try:
        yield process
    finally:
        process.kill()
        for pid in process.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def run(case) -> str:
    with start(case) as process:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output


def wait_until_gone(pids) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_a_script_defines_works_on_both_sides_and_queues_too() -> None:
    assert run("work") == ""


def test_an_exception_ends_all_and_comes_back_with_its_traceback() -> None:
    output = run("fail")
    assert "caught: process 1 failed:\nTraceback (most recent call last):\n" in output
    assert 'raise OwnError("of rank 1")' in output
    assert "cause: True" in output


def test_the_error_that_others_follow_from_is_the_one_that_comes_back() -> None:
    assert "caught: process 0 failed: OwnError('of rank 0')" in run("consequence")


def test_a_process_that_ends_without_a_result_is_named() -> None:
    rest = "before the function returned; expected status 0. See what it has printed."
    assert [line for line in run("end").splitlines() if line.startswith(("caught", "returned"))] == [
        f"caught: process 1 ended with status 3 {rest}",
        f"caught: process 0 ended by SIGKILL {rest}",
        f"caught: process 1 ended with status 75: {OVERDUE}.",
        "returned: [None, None]",
    ]


def test_what_cannot_come_back_is_an_error() -> None:
    assert "caught: TypeError: cannot pickle 'generator' object" in run("unpicklable")


def read_pids(process) -> list[int]:
    for _ in range(2):
        process.pids.append(int(process.stdout.readline().split()[1]))
    return process.pids


def test_a_signal_reaches_every_process() -> None:
    with start("signals") as process:
        read_pids(process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert output == "returned: [['SIGTERM'], ['SIGTERM']]\n"


def test_a_second_signal_kills_all_and_does_what_it_does() -> None:
    with start("deaf") as process:
        pids = read_pids(process)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            if process.stdout.readline() == "got\n":
                process.stdout.readline()
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(1.1)  # what comes at once is an echo
        process.communicate(timeout=30)
        assert process.returncode == 0
        wait_until_gone(pids)


def test_the_processes_die_with_the_one_that_started_them() -> None:
    with start("deaf") as process:
        pids = read_pids(process)
        process.kill()
        wait_until_gone(pids)


def test_a_queue_is_one_and_its_far_end_only_takes() -> None:
    near = SharedQueue()
    with pytest.raises(queue.Empty):
        near.get_nowait()
    make, arguments = near.__reduce__()
    far = make(*arguments)
    assert type(far) is _FarEnd
    far.put([1])
    far.put_nowait(bytes(3_000_000))
    assert near.get() == [1]
    assert len(near.get(timeout=1)) == 3_000_000
    with pytest.raises(WorldError, match=r"this queue is read in another process; expected get\(\) in the one that"):
        far.get()
    near.close()
    with pytest.raises(WorldError, match=r"the process that made this queue is gone or has closed it"):
        put_for_ever(far)
    far.close()


def put_for_ever(far) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        far.put(1)
