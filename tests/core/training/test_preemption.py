"""Signals to real processes: the run ends in order, says how, and goes on as the one that never stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from parhelion.checkpoint import list_checkpoints

SCRIPT = Path(__file__).parents[2] / "support" / "preempted_run.py"
SECONDS = 60
OPTIONS = {"total_steps": 3, "valid_frequency": 1, "print_frequency": 2, "chkpt_every_iterations": 3}
pytestmark = pytest.mark.processes


@attrs.define
class Process:
    popen: subprocess.Popen[str]
    lines: list[str] = attrs.field(factory=list)

    def wait_for(self, line: str) -> None:
        for said in self.popen.stdout or ():
            self.lines.append(said)
            if line in said:  # other processes write there, too
                return
        raise AssertionError(f"it ended before it said {line!r}: {''.join(self.lines)}")

    def end(self) -> int:
        output, _ = self.popen.communicate(timeout=SECONDS)
        self.lines += output.splitlines(keepends=True)
        return self.popen.returncode

    @property
    def text(self) -> str:
        return "".join(self.lines)

    @property
    def facts(self) -> Any:
        return json.loads(self.lines[-1])


@contextlib.contextmanager
def started(root: Path, place: str, **options: Any) -> Iterator[Process]:
    paths = [str(SCRIPT.parent.parent), *sys.path]
    popen = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root), place]
        + [f"{name}={json.dumps(value)}" for name, value in {**OPTIONS, **options}.items()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    # Whatever it waits for, the test does not wait for ever.
    watchdog = threading.Timer(SECONDS, popen.kill)
    watchdog.start()
    try:
        yield Process(popen)
    finally:
        watchdog.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.communicate()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Any:
    with started(tmp_path_factory.mktemp("oracle"), "nowhere") as process:
        assert process.end() == 0, process.text
        return process.facts


def resume(root: Path, oracle: Any, before: list[Any]) -> None:
    """Go on, and compare with the run that never stopped."""
    with started(root, "nowhere") as process:
        assert process.end() == 0, process.text
        facts = process.facts
    assert facts["weights"] == oracle["weights"]
    assert facts["rows"] == oracle["rows"]
    assert facts["state"] == oracle["state"]
    assert before + facts["order"] == oracle["order"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_in_a_step_ends_the_run_behind_it_with_a_checkpoint(tmp_path, oracle, number):
    with started(tmp_path, "step") as process:
        process.wait_for("at step")
        process.popen.send_signal(number)
        assert process.end() == 75, process.text
        facts = process.facts
    assert (facts["reason"], facts["code"], facts["done"]) == ("preempted", 75, False)
    assert facts["state"]["global_iteration"] == 5
    assert list_checkpoints(tmp_path / "descent")[0].iteration == 5
    resume(tmp_path, oracle, facts["order"])


def test_one_in_the_set_up_ends_it_before_the_first_step(tmp_path, oracle):
    with started(tmp_path, "set-up") as process:
        process.wait_for("at set-up")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 75, process.text
        facts = process.facts
    assert (facts["reason"], facts["order"]) == ("preempted", [])
    assert list_checkpoints(tmp_path / "descent") == []
    resume(tmp_path, oracle, [])


def test_a_validation_is_left_when_time_is_short_and_done_by_the_resumed_run(tmp_path, oracle):
    with started(tmp_path, "validation", stop_deadline=2.0) as process:
        process.wait_for("at validation")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 75, process.text
        facts = process.facts
    assert facts["state"]["validation_cycles"] == 0
    assert facts["state"]["global_iteration"] == 5
    resume(tmp_path, oracle, facts["order"])


def test_a_validation_is_finished_when_there_is_time(tmp_path, oracle):
    with started(tmp_path, "validation", stop_deadline=60.0) as process:
        process.wait_for("at validation")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 75, process.text
        facts = process.facts
    assert facts["state"]["validation_cycles"] == 1
    resume(tmp_path, oracle, facts["order"])


@pytest.mark.parametrize("in_background", [True, False])
def test_one_during_a_save_lets_it_be_finished(tmp_path, oracle, in_background):
    with started(tmp_path, "save", chkpt_in_background=in_background) as process:
        process.wait_for("at save")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 75, process.text
        facts = process.facts
    iterations = [info.iteration for info in list_checkpoints(tmp_path / "descent")]
    assert iterations[0] == facts["state"]["global_iteration"]
    assert 3 in iterations
    assert not [path for path in (tmp_path / "descent").iterdir() if "saving" in path.name]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_whose_data_hangs_ends_with_what_it_has(tmp_path, oracle, num_workers):
    with started(tmp_path, "data", stop_deadline=2.0, params={"num_workers": num_workers}) as process:
        process.wait_for("at data")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 75, process.text
        facts = process.facts
    assert facts["reason"] == "preempted"
    found = [info.iteration for info in list_checkpoints(tmp_path / "descent")]
    assert found[:1] == [facts["state"]["global_iteration"]][: len(found)]
    resume(tmp_path, oracle, facts["order"])


def test_a_step_that_never_ends_is_ended_at_the_deadline(tmp_path, oracle):
    with started(tmp_path, "endless step", stop_deadline=1.0) as process:
        process.wait_for("at endless step")
        begin = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 75
        assert 0.9 < time.monotonic() - begin < 10
    assert "has not come to the end of its step" in process.text
    assert list_checkpoints(tmp_path / "descent")[0].iteration == 3
    resume(tmp_path, oracle, oracle["order"][:3])


@pytest.mark.parametrize("place", ["deaf step", "step with a log"])
def test_one_that_hangs_where_no_handler_is_run_or_in_a_log_is_ended_at_the_deadline(tmp_path, place):
    with started(tmp_path, place, stop_deadline=0.5) as process:
        process.wait_for(f"at {place}")
        begin = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 75
        assert 0.4 < time.monotonic() - begin < 10
    assert "has not come to the end of its step" in process.text


def test_a_second_signal_ends_one_that_hangs_where_no_handler_is_run(tmp_path):
    with started(tmp_path, "deaf step", stop_deadline=None) as process:
        process.wait_for("at deaf step")
        process.popen.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.popen.wait(1.2)
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 128 + signal.SIGTERM


def test_what_a_step_forks_is_ended_by_sigterm_and_leaves_what_a_group_gets_to_its_parent(tmp_path):
    with started(tmp_path, "step with a fork") as process:
        assert process.end() == 0, process.text
    assert f"at step with a fork: {-signal.SIGTERM}" in process.text


def test_a_second_signal_ends_it_at_once(tmp_path):
    with started(tmp_path, "endless step", stop_deadline=None) as process:
        process.wait_for("at endless step")
        process.popen.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.popen.wait(1.2)
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == -signal.SIGTERM


def test_the_echo_of_a_launcher_is_no_second_signal(tmp_path):
    with started(tmp_path, "step") as process:
        process.wait_for("at step")
        process.popen.send_signal(signal.SIGTERM)
        process.popen.send_signal(signal.SIGINT)
        assert process.end() == 75, process.text


def test_a_program_that_ends_amid_its_steps_ends_and_leaves_no_lock(tmp_path):
    program = """
import sys
from support.plain import Data, Descent, make_trainer

steps = make_trainer(total_steps=5, chkpt_root=sys.argv[1], chkpt_every_iterations=1).steps(Descent(), Data())
next(steps)
"""
    paths = [str(SCRIPT.parent.parent), *sys.path]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environ, check=True, timeout=SECONDS)
    assert [path.name for path in tmp_path.iterdir()] == ["descent"]
    assert [info.iteration for info in list_checkpoints(tmp_path / "descent")] == [1]
