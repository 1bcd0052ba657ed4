"""Plain Python processes that make a world: started, watched and killed by the tests of ``parhelion.processes``.

    with start_ranks(3, "tests/support/world_facts.py", "argument") as ranks:
        ranks.processes[1].send_signal(signal.SIGTERM)
        ranks.wait_for("ready", 3)          # lines that begin so, of all ranks together
        assert ranks.end(seconds=20) == [0, 0, 0]
        ranks.output(1)

In such a script ``open_ranks()`` gives the world, and ``say(...)`` writes a line that is there at once.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "core", ROOT / "tests"]


class Ranks:
    """Running processes, by rank."""

    def __init__(self, processes, folder) -> None:
        self.processes, self.folder = processes, folder

    def output(self, rank) -> str:
        return (self.folder / f"output-{rank}").read_text()

    def lines(self, start="") -> list[str]:
        outputs = [self.output(rank) for rank in range(len(self.processes))]
        return [line for output in outputs for line in output.splitlines() if line.startswith(start)]

    def everything(self) -> str:
        return "\n".join(
            f"--- rank {rank}, status {process.poll()}\n{self.output(rank)}"
            for rank, process in enumerate(self.processes)
        )

    def wait_for(self, start, count, seconds=20) -> None:
        deadline = time.monotonic() + seconds
        while len(self.lines(start)) < count:
            assert time.monotonic() < deadline, f"no {count} lines {start!r}\n{self.everything()}"
            time.sleep(0.005)

    def end(self, seconds=20) -> list[int]:
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            assert time.monotonic() < deadline, f"not ended\n{self.everything()}"
            time.sleep(0.005)
        return [process.returncode for process in self.processes]


def environment(**more) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), "PYTHONWARNINGS": "error", **more}


@contextlib.contextmanager
def start_ranks(size, script, *arguments, **more) -> Iterator[Ranks]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = []
        try:
            for rank in range(size):
                with (folder / f"output-{rank}").open("w") as file:
                    variables = {"TEST_RANK": str(rank), "TEST_SIZE": str(size), "TEST_FOLDER": name}
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, str(script), *map(str, arguments)],
                            env=environment(**variables, **more),
                            stdout=file,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            yield Ranks(processes, folder)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def share(value) -> list:
    """Gather through files, as a framework would through its own connections."""
    rank, size, folder = int(os.environ["TEST_RANK"]), int(os.environ["TEST_SIZE"]), Path(os.environ["TEST_FOLDER"])
    partial = folder / f"partial-{rank}"
    partial.write_bytes(pickle.dumps(value))
    partial.rename(folder / f"shared-{rank}")
    deadline = time.monotonic() + 20
    found = [folder / f"shared-{each}" for each in range(size)]
    while not all(path.exists() for path in found):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return [pickle.loads(path.read_bytes()) for path in found]  # noqa: S301 - from this very test


def open_ranks(**options):
    from parhelion.processes import open_world

    rank, size = int(os.environ["TEST_RANK"]), int(os.environ["TEST_SIZE"])
    return open_world(rank, rank, size, share, **{"host": "127.0.0.1", **options})


def say(*words) -> None:
    print(*words, flush=True)
