"""Train on both backends: without a break, killed in mid-epoch and started again, and begun on one, finished on the other.

python examples/digits/demo.py --out runs/digits-demo
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import attrs
from digits import NUM_EPOCHS, Digits
from picture import draw

import parhelion as ph
from parhelion.checkpoint import find_last_checkpoint, load_checkpoint
from parhelion.tracking import read_history

EXPERIMENT = Path(__file__).with_name("experiment.py")
KILL_AFTER = 307  # iterations: in the seventh of fifteen epochs, between two checkpoints
NEIGHBORS = 10  # rows before and after the change of backends whose losses are compared


# -- runs -------------------------------------------------------------------------------------------------------------


@attrs.define
class Run:
    """One training, in one process or in two.

    Attributes:
        backends: what it was trained with, first and last.
        out: its folder.
        killed_at: the iteration at which its first process was killed; None if it was not.
        lost: seconds from the second start until it had come as far again.
    """

    backends: tuple[str, ...]
    out: Path
    killed_at: int | None = None
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

    def accuracy(self) -> float:
        """Return the test accuracy at the end."""
        return float(json.loads((self.out / "test.json").read_text())["test_accuracy"])

    def losses(self) -> dict[int, float]:
        """Return the training loss by step."""
        rows = read_history(self.out / "cnn" / "history.jsonl")
        return {row["step"]: row["loss"] for row in rows if "loss" in row}

    def weights_hash(self) -> str:
        """Return a hash over the names and bytes of the newest checkpoint's weights."""
        last = find_last_checkpoint(self.out / "cnn")
        if last is None:
            raise SystemExit(f"there is no checkpoint in {self.out / 'cnn'}")
        digest = hashlib.sha256()
        weights: dict[str, Any] = load_checkpoint(last).tree["portable"]["weights"]
        for name, array in weights.items():
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def _log(self) -> list[str]:
        return (self.out / "order.jsonl").read_text().splitlines()


def start(run: Run, backend: str) -> subprocess.Popen[bytes]:
    """Start the experiment as a process of its own."""
    command = [sys.executable, str(EXPERIMENT), "--backend", backend, "--out", str(run.out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the experiment's end."""
    if process.wait() != 0:
        raise SystemExit("the experiment failed; its error is above")


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
    finish(start(run, backend))
    return run


def kill(backend: str, out: Path) -> Run:
    """Train, and kill that in the middle of an epoch."""
    print(f"{backend:<8}  training, to be killed ...", flush=True)
    run = Run((backend,), out)
    process = start(run, backend)
    wait_for(run, KILL_AFTER, process)
    process.kill()
    process.wait()
    run.killed_at = run.last_step()
    return run


def resume(run: Run, backend: str) -> Run:
    """Start a killed run again, and train to the end."""
    print(f"{backend:<8}  killed with SIGKILL at iteration {run.killed_at}; starting again ...", flush=True)
    run.backends = (run.backends[0], backend)
    known = (run.out / "order.jsonl").stat().st_size
    process = start(run, backend)
    run.lost = wait_for(run, (run.killed_at or 0) + 1, process, known)
    finish(process)
    return run


def examine(backend: str, run: Run) -> float:
    """Return the test loss of the newest checkpoint on a backend, whichever it was written on."""
    model = importlib.import_module(f"{backend}_model").DigitModel("cnn")
    trainer = ph.load_backend(backend).Trainer(chkpt_root=run.out, use_cpu=True, print_banner=False)
    if not trainer.test(model, Digits()):
        raise SystemExit(f"the checkpoint in {run.out} cannot be tested on {backend}; the error is above")
    return float(trainer.test_results["test_loss"])


# -- what is said -----------------------------------------------------------------------------------------------------


def print_runs(runs: list[Run]) -> None:
    """Print a line for each run."""
    line = "{:<12}  {:<16}  {:>8}  {:>5}  {:<16}  {}".format
    print("\n" + line("backend", "run", "accuracy", "steps", "weights", "time lost"))
    for run in runs:
        story, lost = "never stopped", ""
        if run.killed_at is not None:
            story = "killed, resumed" if len(set(run.backends)) == 1 else "killed, changed"
            lost = f"{run.lost:.1f} s: a start, and {run.num_repeated()} steps done twice"
        backend = ", then ".join(dict.fromkeys(run.backends))
        print(line(backend, story, f"{run.accuracy():.2%}", len(run.order()), run.weights_hash(), lost).rstrip())


def check(runs: list[Run], carried: tuple[float, float]) -> list[tuple[str, bool]]:
    """Return what was to be shown, and whether it was."""
    torch_whole, torch_broken, jax_whole, jax_broken, crossed = runs
    hashes = [run.weights_hash() for run in runs]
    before, after = losses_around(crossed)
    orders = [run.order() for run in runs]
    return [
        ("97 % or more of the test images are read", min(run.accuracy() for run in runs) >= 0.97),
        ("all runs trained on the same samples in the same order", all(order == orders[0] for order in orders)),
        ("torch: the same weights, bit for bit, killed or not", hashes[0] == hashes[1]),
        ("jax: the same weights, bit for bit, killed or not", hashes[2] == hashes[3]),
        (
            f"torch to jax: the weights went over, test loss {carried[0]:.5f} and {carried[1]:.5f}",
            abs(carried[0] - carried[1]) <= 1e-4 * carried[0],
        ),
        (f"torch to jax: training loss around it {before:.3f} and {after:.3f}", after <= 1.5 * before),
    ]


def losses_around(run: Run) -> tuple[float, float]:
    """Return the mean loss of some rows before a run was killed, and of as many after it."""
    killed_at = run.killed_at or 0
    before = [loss for step, loss in run.losses().items() if step <= killed_at][-NEIGHBORS:]
    after = [loss for step, loss in run.losses().items() if step > killed_at][:NEIGHBORS]
    return fmean(before), fmean(after)


def main() -> int:
    """Run all, print the table, save the picture; fail if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/digits-demo"), help="folder for all runs")
    out: Path = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    logging.getLogger("parhelion").setLevel(logging.WARNING)

    runs: list[Run] = []
    for backend in ("torch", "jax"):
        runs.append(train(backend, out / f"{backend}-whole"))
        runs.append(resume(kill(backend, out / f"{backend}-broken"), backend))
    crossed = kill("torch", out / "torch-to-jax")
    carried = examine("torch", crossed), examine("jax", crossed)
    runs.append(resume(crossed, "jax"))

    print_runs(runs)
    checks = check(runs, carried)
    print()
    for fact, holds in checks:
        print(f"{fact:<72}  {'yes' if holds else 'NO'}")
    draw(out / "loss.png", {run.out.name: run.losses() for run in runs}, [run.killed_at for run in runs])
    print(f"\nall loss curves: {out / 'loss.png'}")
    return 0 if all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
