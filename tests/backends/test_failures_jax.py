"""What becomes of processes of jax when one of them fails: all end soon, and each says why.

jax alone lets the others wait for 100 s and more, or aborts them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

pytest.importorskip("parhelion_jax")

from support import jax_child

SCRIPT = Path(jax_child.__file__).with_name("failing_jax.py")
SECONDS, GRACE = 60, 1
pytestmark = pytest.mark.processes


@attrs.frozen
class Case:
    size: int
    victim: int
    how: str
    others: str


RAISED = Case(2, 1, "raise", "wait")
HUNG = Case(2, 0, "hang", "wait")
KILLED = Case(2, 0, "kill", "sleep")
TERMINATED = Case(2, 1, "term", "wait")
GATHERED = Case(3, 1, "raise", "gather")
CASES = (RAISED, HUNG, KILLED, TERMINATED, GATHERED)


@attrs.frozen
class Ended:
    """How a process ended; the status is None if it had not."""

    status: int | None
    output: str


@pytest.fixture(scope="module")
def ended() -> Iterator[dict[Case, list[Ended]]]:
    """Run all cases side by side."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, jax_child.PATHS)),
        "PYTHONWARNINGS": "error",
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        runs: dict[Case, list[tuple[Any, Path]]] = {}
        for number, case in enumerate(CASES):
            address = f"127.0.0.1:{jax_child.free_port()}"
            for rank in range(case.size):
                path = Path(folder) / f"{number}-{rank}"
                arguments = [address, case.size, rank, case.victim, case.how, case.others, GRACE]
                child = subprocess.Popen(
                    [sys.executable, str(SCRIPT), *map(str, arguments)],
                    env=environment,
                    stdout=stack.enter_context(path.open("w")),
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                stack.callback(end, child)
                runs.setdefault(case, []).append((child, path))
        wait([child for case, each in runs.items() for rank, (child, _) in enumerate(each) if is_to_end(case, rank)])
        yield {case: [Ended(child.poll(), path.read_text()) for child, path in each] for case, each in runs.items()}


def is_to_end(case: Case, rank: int) -> bool:
    return not (case.how == "hang" and rank == case.victim)


def wait(children: list[Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)


def end(child: Any) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.size}-{case.victim}-{case.how}-{case.others}")
def test_no_process_waits_for_one_that_has_failed(ended, case) -> None:
    for rank, each in enumerate(ended[case]):
        if is_to_end(case, rank):
            assert each.status not in {None, 0}, f"process {rank}: {each}"


def test_a_computation_that_breaks_off_is_told_with_its_cause(ended) -> None:
    survivor, victim = ended[RAISED]
    assert survivor.status == victim.status == 1
    assert "parhelion: process 0 ends, as another one failed: process 1 (" in survivor.output
    assert "ValueError: the reason" in survivor.output
    assert victim.output.count("ValueError: the reason") == 1


def test_a_process_in_a_computation_that_never_ends_is_ended(ended) -> None:
    survivor = ended[HUNG][1]
    assert survivor.status == 1
    assert f"process 1 ends, as another one failed and this one has not ended within {GRACE} s" in survivor.output
    assert "ValueError: the reason" in survivor.output


def test_the_first_process_is_missed_by_name_although_jax_aborts(ended) -> None:
    victim, survivor = ended[KILLED]
    assert victim.status == -signal.SIGKILL
    assert "parhelion: process 0 (host " in survivor.output
    assert "is gone without a word" in survivor.output


def test_a_process_can_be_terminated_and_is_missed(ended) -> None:
    survivor, victim = ended[TERMINATED]
    assert victim.status == -signal.SIGTERM
    assert "process 1 (host " in survivor.output
    assert "is gone without a word" in survivor.output


def test_who_gathers_gets_the_traceback_of_the_one_that_failed_and_jax_aborts_nobody(ended) -> None:
    for rank in (0, 2):
        found = ended[GATHERED][rank]
        assert found.status == 1, found.output
        assert "parhelion.errors.WorldError: process 1 (host " in found.output
        assert 'raise ValueError("the reason")' in found.output
