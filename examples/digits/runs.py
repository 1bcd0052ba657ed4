"""Runs of the experiment as processes of their own: trained without a break, or killed and started again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs

from parhelion.checkpoint import list_checkpoints, load_checkpoint
from parhelion.tracking import read_history

EXPERIMENT = Path(__file__).with_name("experiment.py")
KILL_AFTER = 307  # iterations: in the seventh of fifteen epochs, between two checkpoints


@attrs.define
class Run:
    """One training, in one process or in two.

    Attributes:
        backends: what it was trained with, first and last.
        out: its folder.
        killed_at: the iteration that its first process came to; 0 if it was not killed.
        resumed_at: the iteration of the checkpoint that the second one went on from.
        lost: seconds from the second start until it had come as far again.
    """

    backends: tuple[str, ...]
    out: Path
    killed_at: int = 0
    resumed_at: int = 0
    lost: float = 0.0

    def order(self) -> dict[int, list[int]]:
        """Return the records of every step; for a step that was done twice, those of the second time."""
        return dict(json.loads(line) for line in self._log())

    def num_repeated(self) -> int:
        """Return how many steps were done twice."""
        return len(self._log()) - len(self.order())

    def last_step(self) -> int:
        """Return the step that was trained on last."""
        return int(json.loads(self._log()[-1])[0])

    def last_checkpoint(self) -> Any:
        """Return the newest checkpoint's entry: its path and iteration."""
        found = list_checkpoints(self.out / "cnn")
        if not found:
            raise SystemExit(f"there is no checkpoint in {self.out / 'cnn'}")
        return found[0]

    def accuracy(self) -> float:
        """Return the test accuracy at the end."""
        return float(json.loads((self.out / "test.json").read_text())["test_accuracy"])

    def losses(self) -> dict[int, float]:
        """Return the training loss by step."""
        rows = read_history(self.out / "cnn" / "history.jsonl")
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def weights_hash(self) -> str:
        """Return a hash over the names and bytes of the newest checkpoint's weights."""
        digest = hashlib.sha256()
        weights: dict[str, Any] = load_checkpoint(self.last_checkpoint().path).tree["portable"]["weights"]
        for name, array in weights.items():
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def _log(self) -> list[str]:
        return (self.out / "order.jsonl").read_text().splitlines()


def start(run: Run, backend: str) -> subprocess.Popen[bytes]:
    """Start the experiment as a process of its own; what it says goes to a file."""
    command = [sys.executable, str(EXPERIMENT), "--backend", backend, "--out", str(run.out)]
    run.out.mkdir(parents=True, exist_ok=True)
    with (run.out / "said.log").open("ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def finish(run: Run, process: subprocess.Popen[bytes]) -> None:
    """Wait for the experiment's end."""
    if process.wait() != 0:
        raise SystemExit(f"the experiment failed; see {run.out / 'said.log'}")


def wait_for(run: Run, iteration: int, process: subprocess.Popen[bytes], known: int = 0) -> float:
    """Wait until the experiment has come to an iteration, in what it wrote after ``known`` bytes; return seconds."""
    began, order = time.perf_counter(), run.out / "order.jsonl"
    mark = f"[{iteration},".encode()
    while process.poll() is None and not (order.exists() and mark in order.read_bytes()[known:]):
        time.sleep(0.01)
    return time.perf_counter() - began


def train(backend: str, out: Path) -> Run:
    """Train without a break."""
    print(f"{backend:<8}  training without a break ...", flush=True)
    run = Run((backend,), out)
    finish(run, start(run, backend))
    return run


def kill(backend: str, out: Path) -> Run:
    """Train, and kill that in the middle of an epoch."""
    print(f"{backend:<8}  training, to be killed ...", flush=True)
    run = Run((backend,), out)
    process = start(run, backend)
    wait_for(run, KILL_AFTER, process)
    if process.poll() is not None:
        raise SystemExit(f"the experiment ended before it could be killed; see {run.out / 'said.log'}")
    process.kill()
    process.wait()
    run.killed_at, run.resumed_at = run.last_step(), run.last_checkpoint().iteration
    return run


def resume(run: Run, backend: str) -> Run:
    """Start a killed run again, and train to the end."""
    print(f"{backend:<8}  killed with SIGKILL at iteration {run.killed_at}; starting again ...", flush=True)
    run.backends = (run.backends[0], backend)
    known = (run.out / "order.jsonl").stat().st_size
    process = start(run, backend)
    run.lost = wait_for(run, run.killed_at + 1, process, known)
    finish(run, process)
    return run
