"""The launcher: who the processes are, what becomes of their output, how signals reach them and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from parhelion.errors import InvalidValueError
from parhelion.launch import main
from parhelion.processes import launch
from support import ranks
from support.ranks import environment

PROGRAM = Path(ranks.__file__).with_name("launched_program.py")


class Launcher:
    """A running launcher and what it has printed."""

    def __init__(self, process) -> None:
        self.process, self.lines, self.pids = process, [], []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(process.stdout.readline, "")))
        self._reader.start()

    def wait_for(self, part, count) -> list[str]:
        deadline = time.monotonic() + 30
        while len(found := [line for line in [*self.lines] if part in line]) < count:
            assert time.monotonic() < deadline, self.lines
            assert self.process.poll() is None or self._reader.is_alive(), self.lines
            time.sleep(0.005)
        return found

    def end(self) -> int:
        status = self.process.wait(30)
        self._reader.join(30)
        return status


@contextlib.contextmanager
def start(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "parhelion.launch", *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    launcher = Launcher(process)
    try:
        yield launcher
    finally:
        process.kill()
        kill(launcher.pids)
        launcher.end()
        process.stdout.close()


def kill(pids) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_alive(pid) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids) -> None:
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.005)


def test_each_process_knows_who_it_is_and_its_lines_say_so() -> None:
    with start("-n", 2, PROGRAM, "facts", "-n", "x", "--no-prefix") as launcher:
        assert launcher.end() == 0
    assert sorted(launcher.lines) == sorted(
        line
        for rank in (0, 1)
        for line in (
            f"[{rank}] {rank} {rank} 2 2 127.0.0.1 True -n x --no-prefix\n",
            f"[{rank}] own group True\n",
            f"[{rank}] no newline\n",
        )
    )


def test_output_is_left_alone_if_asked_and_modules_run_too() -> None:
    with start("-n", 1, "--no-prefix", "-m", "support.launched_program", "facts") as launcher:
        assert launcher.end() == 0
    assert launcher.lines == ["0 0 1 1 127.0.0.1 True\n", "own group True\n", "no newline"]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["0", "0"], 0),
        (["0", "3"], 3),
        (["75", "0"], 75),
        (["75", "75"], 75),
        (["75", "4"], 4),
        (["wait", "5"], 5),
        (["-9", "wait"], 137),
        (["wait", "-15"], 143),
    ],
)
def test_the_status_is_that_of_the_first_that_failed(statuses, expected) -> None:
    command = [sys.executable, str(PROGRAM), "exit", *statuses]
    assert launch(command, len(statuses), environ=environment(), grace=0.1, prefix=False) == expected


def test_when_one_fails_the_others_get_time_then_sigterm_then_sigkill(monkeypatch, capfd) -> None:
    monkeypatch.setattr("parhelion.processes._crew._LAST_SECONDS", 0.3)
    status = launch([sys.executable, str(PROGRAM), "stubborn"], 3, environ=environment(), grace=0.2)
    output = capfd.readouterr().out
    assert status == 7
    assert "[0] terminated" in output
    wait_until_gone(int(output.partition("grandchild ")[2].split()[0]))


def test_signals_are_passed_on_to_each_process_once() -> None:
    with start("-n", 2, PROGRAM, "signals") as launcher:
        launcher.wait_for("ready", 2)
        for number in (signal.SIGUSR1, signal.SIGINT):
            # As the terminal does it: to the whole group of the launcher.
            os.killpg(launcher.process.pid, number)
            launcher.wait_for(f"got {number.name}", 2)
        os.killpg(launcher.process.pid, signal.SIGUSR1)
        launcher.wait_for("got SIGUSR1", 4)
        assert len(launcher.wait_for("got", 6)) == 6


def test_a_run_that_is_preempted_ends_with_75() -> None:
    with start("-n", 2, PROGRAM, "signals") as launcher:
        launcher.wait_for("ready", 2)
        launcher.process.send_signal(signal.SIGTERM)
        assert launcher.end() == 75


def test_the_echo_of_a_signal_is_no_second_one() -> None:
    with start("-n", 2, PROGRAM, "signals") as launcher:
        launcher.wait_for("ready", 2)
        for _ in range(2):
            launcher.process.send_signal(signal.SIGINT)
            launcher.wait_for("got SIGINT", 2)
        launcher.process.send_signal(signal.SIGTERM)
        os.killpg(launcher.process.pid, signal.SIGUSR1)
        launcher.wait_for("got SIGUSR1", 2)
        assert len(launcher.wait_for("got", 4)) == 4


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_ends_all_at_once(numbers) -> None:
    with start("-n", 2, PROGRAM, "deaf") as launcher:
        pids = launcher.pids = [int(line.split()[-1]) for line in launcher.wait_for("ready", 2)]
        launcher.process.send_signal(numbers[0])
        launcher.wait_for("got", 2)
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.process.wait(1.1)
        launcher.process.send_signal(numbers[1])
        assert launcher.end() == 128 + numbers[1]
        wait_until_gone(*pids)


def test_the_processes_die_with_the_launcher() -> None:
    with start("-n", 2, PROGRAM, "deaf") as launcher:
        pids = launcher.pids = [int(line.split()[-1]) for line in launcher.wait_for("ready", 2)]
        launcher.process.kill()
        wait_until_gone(*pids)


def test_former_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    launch([sys.executable, "-c", ""], 1, prefix=False)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_there_must_be_a_process(capsys) -> None:
    with pytest.raises(InvalidValueError, match="num_processes is 0; expected 1 or more"):
        launch(["true"], 0)
    with pytest.raises(SystemExit):
        main(["-n", "0", "x.py"])
    assert "0 is given; expected 1 or more" in capsys.readouterr().err
