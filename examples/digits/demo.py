"""Train once without a break, once killed in the middle of an epoch and started again; compare the two runs.

python examples/digits/demo.py --out runs/digits-demo
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from parhelion.checkpoint import find_last_checkpoint, load_checkpoint
from parhelion.tracking import read_history

EXPERIMENT = Path(__file__).with_name("experiment.py")
KILL_AFTER = 307  # iterations: in the seventh of fifteen epochs, between two checkpoints


def start(out: Path) -> subprocess.Popen[bytes]:
    """Start the experiment as a process of its own."""
    return subprocess.Popen([sys.executable, str(EXPERIMENT), "--out", str(out)], stdout=subprocess.DEVNULL)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the experiment's end."""
    if process.wait() != 0:
        raise SystemExit("the experiment failed; its error is above")


def wait_for(out: Path, iteration: int, process: subprocess.Popen[bytes]) -> float:
    """Wait until the experiment has come to an iteration; return the seconds that took."""
    began, order = time.perf_counter(), out / "order.jsonl"
    mark = f"[{iteration},".encode()
    while process.poll() is None and not (order.exists() and mark in order.read_bytes()):
        time.sleep(0.01)
    return time.perf_counter() - began


def read_order(out: Path) -> dict[int, list[int]]:
    """Return the records of every step; for a step that was done twice, those of the second time."""
    return dict(json.loads(line) for line in (out / "order.jsonl").read_text().splitlines())


def count_lines(path: Path) -> int:
    """Return how many steps a log holds."""
    return len(path.read_text().splitlines())


def weights_hash(out: Path) -> str:
    """Return a hash over the names and bytes of the final weights."""
    last = find_last_checkpoint(out / "cnn")
    if last is None:
        raise SystemExit(f"there is no checkpoint in {out / 'cnn'}")
    digest = hashlib.sha256()
    weights: dict[str, Any] = load_checkpoint(last).tree["model"]["module"]
    for name, array in weights.items():
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()[:16]


def draw(whole: Path, broken: Path, killed_at: int, picture: Path) -> None:
    """Save a picture of both loss curves."""
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for out, label, style in (
        (whole, "never stopped", {"color": "#9bb8d3", "linewidth": 7}),
        (broken, "killed and resumed", {"color": "#c8102e", "linewidth": 1.3}),
    ):
        rows = [row for row in read_history(out / "cnn" / "history.jsonl") if "loss" in row]
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=label, **style)
    axes.axvline(killed_at, color="black", linestyle=":", linewidth=1)
    axes.annotate(" SIGKILL", (killed_at, 1), xycoords=("data", "axes fraction"), va="top")
    axes.set(xlabel="update", ylabel="training loss", yscale="log", title="One run, stopped or not")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


def main() -> int:
    """Run both, print the table, save the picture; fail if the runs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/digits-demo"), help="folder for both runs")
    out: Path = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    whole, broken = out / "whole", out / "broken"

    print("training without a break ...", flush=True)
    finish(start(whole))
    print("training, to be killed in the middle of an epoch ...", flush=True)
    process = start(broken)
    wait_for(broken, KILL_AFTER, process)
    process.kill()
    process.wait()
    killed_at = count_lines(broken / "order.jsonl")
    print(f"killed with SIGKILL at iteration {killed_at}; starting again ...", flush=True)
    process = start(broken)
    lost = wait_for(broken, killed_at + 1, process)
    finish(process)

    orders = read_order(whole), read_order(broken)
    hashes = weights_hash(whole), weights_hash(broken)
    accuracies = [json.loads((each / "test.json").read_text())["test_accuracy"] for each in (whole, broken)]
    repeated = count_lines(broken / "order.jsonl") - len(orders[1])
    draw(whole, broken, killed_at, out / "loss.png")

    rows = [
        ("", "never stopped", "killed and resumed", ""),
        ("test accuracy", f"{accuracies[0]:.2%}", f"{accuracies[1]:.2%}", verdict(min(accuracies) >= 0.97)),
        ("steps in order", len(orders[0]), len(orders[1]), verdict(orders[0] == orders[1])),
        ("hash of weights", hashes[0], hashes[1], verdict(hashes[0] == hashes[1])),
        ("time lost", "", f"{lost:.1f} s", f"one start, and {repeated} steps done twice"),
    ]
    print()
    for row in rows:
        print("{:<16}  {:<17}  {:<19}  {}".format(*row).rstrip())
    print(f"\nboth loss curves: {out / 'loss.png'}")
    same = orders[0] == orders[1] and hashes[0] == hashes[1] and min(accuracies) >= 0.97
    return 0 if same else 1


def verdict(holds: bool) -> str:
    """Return what the table says of a comparison."""
    return "yes" if holds else "NO"


if __name__ == "__main__":
    raise SystemExit(main())
