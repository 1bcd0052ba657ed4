"""What the benchmarks share: rounds of measurements that have a process each, and the clock of a loop."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Rounds: TypeAlias = dict[str, list[list[float]]]  # by peer: the figures of each round

LONGEST = 300  # seconds that one measurement may take


class Tick:
    """Counts steps; remembers when the first one began, after ``skip`` that do not count, and the last one was done."""

    def __init__(self, skip: int = 0) -> None:
        self.count = 0
        self.skip = skip
        self.began = self.ended = (0.0, 0.0)

    def __call__(self) -> None:
        if self.count == self.skip:
            self.began = (time.perf_counter(), time.process_time())
        self.count += 1

    def stop(self) -> None:
        self.ended = (time.perf_counter(), time.process_time())

    def microseconds(self, wanted: int) -> list[float]:
        """Return the time per step, by the wall and of CPU."""
        count = self.count - self.skip
        if count < wanted:
            raise SystemExit(f"only {count} of {wanted} steps ran")
        return [(end - begin) / count * 1e6 for begin, end in zip(self.began, self.ended, strict=True)]


def compare(
    script: str,
    peers: Mapping[str, Iterable[str]],
    measure: Callable[[str, str], Sequence[float]],
    print_table: Callable[[str, Rounds], None],
    *,
    description: str,
    rounds: int = 7,
) -> int:
    """Be the whole of a benchmark's script: measure all peers of every kind in rounds, or, in a child, one of them.

    Args:
        script: the script's own path.
        peers: names by kind; one that fails, as it is not installed, is left out, and why is said on stderr.
        measure: is called in the child with kind and name.
        print_table: is called with a kind and what its peers came to.
        description: what ``--help`` says.
        rounds: how many there are unless ``--rounds`` says otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--kinds", help="the tables to print, separated by commas; a word stands for all that begin so")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        _be_child(measure, *arguments.child)
    report: dict[str, Rounds] = {}
    for kind in _choose(peers, arguments.kinds):
        report[kind] = _run_rounds(script, kind, peers[kind], arguments.rounds)
        print_table(kind, report[kind])
        sys.stdout.flush()
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _choose(kinds: Iterable[str], wanted: str | None) -> list[str]:
    words = wanted.split(",") if wanted else [""]
    chosen = [kind for kind in kinds if any(word in ("", kind, kind.split("-")[0]) for word in words)]
    if not chosen:
        raise SystemExit(f"no table is called {wanted}; there are {', '.join(kinds)}")
    return chosen


def _run_rounds(script: str, kind: str, names: Iterable[str], rounds: int) -> Rounds:
    found: Rounds = {name: [] for name in names}
    for _ in range(rounds):
        for name in list(found):
            result = _run_child(script, kind, name)
            if isinstance(result, str):
                print(f"{kind}: {name} is left out ({result})", file=sys.stderr, flush=True)
                del found[name]
            else:
                found[name].append(result)
    return found


def _be_child(measure: Callable[[str, str], Sequence[float]], kind: str, name: str) -> None:
    warnings.filterwarnings("ignore")
    os.chdir(tempfile.mkdtemp())
    print("@@" + json.dumps(measure(kind, name)), flush=True)
    os._exit(0)


def _run_child(script: str, kind: str, name: str) -> list[float] | str:
    """Return the figures that a process of its own came to, or the last that it said instead."""
    child = subprocess.Popen(
        [sys.executable, script, "--child", kind, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaint = child.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"no figures within {LONGEST} s"
    finally:
        _end_group(child)
    for line in said.splitlines():
        if line.startswith("@@"):
            result: list[float] = json.loads(line[2:])
            return result
    return next((line for line in reversed(complaint.splitlines()) if line.strip()), f"exit code {child.returncode}")


def _end_group(child: subprocess.Popen[str]) -> None:
    """End what a measurement may have left running, which would disturb the next one."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.wait()


def print_steps(mode: str, found: Rounds) -> None:
    """Print the medians of loops, and what is over the bare loop, the first one, in the same round."""
    print(f"\n### One {mode} step, us\n")
    print("| loop | CPU, median | over the bare loop | best | wall, median |")
    print("|---|---|---|---|---|")
    first, floor = next(iter(found.items()))
    for name, rounds in found.items():
        over = [mine[1] - base[1] for mine, base in zip(rounds, floor, strict=True)]
        cpu, wall = ([each[k] for each in rounds] for k in (1, 0))
        extra = "" if name == first else f"{statistics.median(over):+.2f}"
        best = "" if name == first else f"{min(cpu) - min(each[1] for each in floor):+.2f}"
        print(f"| {name} | {statistics.median(cpu):.2f} | {extra} | {best} | {statistics.median(wall):.2f} |")


def make_arrays(count: int) -> list[dict[str, Any]]:
    """Return batches of 64 rows as NumPy arrays, of which 64 differ: ``x`` of 32 floats, and labels ``y``."""
    import numpy as np

    rng = np.random.default_rng(0)
    distinct = [
        {"x": rng.standard_normal((64, 32), np.float32), "y": rng.integers(0, 10, 64, np.int32)} for _ in range(64)
    ]
    return [distinct[k % 64] for k in range(count)]
