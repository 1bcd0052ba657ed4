"""Train on both backends: without a break, killed and resumed, and begun on one and finished on the other.

python examples/digits/demo.py --out runs/digits-demo
"""

from __future__ import annotations

import argparse
import importlib
import logging
import shutil
from pathlib import Path
from statistics import fmean

from digits import Digits
from picture import Panel, draw
from runs import Run, kill, resume, train

import parhelion as ph

NUM_ROWS = 10  # before and after the change of backends, whose losses are compared


def examine(backend: str, run: Run) -> float:
    """Return the test loss of the newest checkpoint on a backend, whichever it was written on."""
    model = importlib.import_module(f"{backend}_model").DigitModel("cnn")
    trainer = ph.load_backend(backend).Trainer(chkpt_root=run.out, use_cpu=True, print_banner=False)
    if not trainer.test(model, Digits()):
        raise SystemExit(f"the checkpoint in {run.out} cannot be tested on {backend}; the error is above")
    return float(trainer.test_results["test_loss"])


def print_runs(runs: list[Run]) -> None:
    """Print a line for each run."""
    line = "{:<15}  {:<15}  {:>8}  {:>5}  {:>10}  {:<16}  {:>9}".format
    print("\n" + line("backend", "run", "accuracy", "steps", "done twice", "weights", "time lost"))
    for run in runs:
        backend = ", then ".join(dict.fromkeys(run.backends))
        story, lost = ("killed, resumed", f"{run.lost:.1f} s") if run.killed_at else ("never stopped", "")
        values = f"{run.accuracy():.2%}", len(run.order()), run.num_repeated(), run.weights_hash(), lost
        print(line(backend, story, *values).rstrip())


def check(runs: list[Run], carried: tuple[float, float]) -> list[tuple[str, bool]]:
    """Return what was to be shown, and whether it was.

    Args:
        runs: in the order in which :func:`main` makes them.
        carried: test loss of the last run's weights at the change of backends, before it and after it.
    """
    hashes, orders = [run.weights_hash() for run in runs], [run.order() for run in runs]
    before, after = losses_around(runs[-1])
    return [
        ("every run reads 97 % of the test images or more", min(run.accuracy() for run in runs) >= 0.97),
        ("every run had the same samples in the same order", all(order == orders[0] for order in orders)),
        (
            "every killed run went on at the step of its checkpoint",
            all(run.num_repeated() == run.killed_at - run.resumed_at for run in runs),
        ),
        ("torch: the same weights, bit for bit, killed or not", hashes[0] == hashes[1]),
        ("jax: the same weights, bit for bit, killed or not", hashes[2] == hashes[3]),
        (
            f"torch to jax: weights carried over, test loss {carried[0]:.5f} -> {carried[1]:.5f}",
            abs(carried[0] - carried[1]) <= 1e-4 * carried[0],
        ),
        (f"torch to jax: training loss goes on, {before:.3f} -> {after:.3f}", after <= 1.5 * before),
    ]


def losses_around(run: Run) -> tuple[float, float]:
    """Return the mean loss of some rows before the change of processes, and of as many after it."""
    losses = run.losses()
    before = [loss for step, loss in losses.items() if step <= run.resumed_at][-NUM_ROWS:]
    after = [loss for step, loss in losses.items() if step > run.resumed_at][:NUM_ROWS]
    return fmean(before), fmean(after)


def make_panel(whole: Run, broken: Run) -> Panel:
    """Return what the picture shows of a killed run."""
    backends = broken.backends[0], broken.backends[-1]
    return Panel(backends, whole.losses(), broken.losses(), broken.resumed_at, broken.killed_at)


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
        print(f"{fact:<66}  {'yes' if holds else 'NO'}")
    torch_whole, torch_broken, jax_whole, jax_broken, _ = runs
    pairs = (torch_whole, torch_broken), (jax_whole, jax_broken), (torch_whole, crossed)
    draw(out / "loss.png", [make_panel(whole, broken) for whole, broken in pairs])
    print(f"\nall loss curves: {out / 'loss.png'}")
    return 0 if all(holds for _, holds in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
