"""Scripts under a launcher, watched while they run; with all that they start they are gone when the test is over.

with start("launch", 2, SCRIPT, "argument") as group:     # or "torchrun", or "alone"
    os.kill(group.pids()[1], signal.SIGTERM)              # of a script that says "is RANK pid PID"
    group.wait_for("at step", 1)
    assert group.end() == 75, group.text
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "core", ROOT / "backends/torch", ROOT / "backends/jax", ROOT / "tests"]
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SAID = re.compile(r"^is (\d+) pid (\d+)$", re.MULTILINE)


@attrs.define
class Group:
    """A launcher and its processes.

    Attributes:
        process: the launcher.
        output: what all have printed.
    """

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def pids(self) -> dict[int, int]:
        """Return the process of each rank, the one that was started last."""
        return {int(rank): int(pid) for rank, pid in _SAID.findall(self.text)}

    def wait_for(self, part: str, count: int = 1, seconds: float = 60) -> list[str]:
        deadline = time.monotonic() + seconds
        while len(found := [line for line in self.lines if part in line]) < count:
            assert time.monotonic() < deadline, f"no {count} lines with {part!r}:\n{self.text}"
            assert self.process.poll() is None, f"ended before {count} lines with {part!r}:\n{self.text}"
            time.sleep(0.01)
        return found

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to the launcher."""
        os.kill(self.process.pid if rank is None else self.pids()[rank], number)

    def end(self, seconds: float = 90) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {seconds} s:\n{self.text}") from None


def command(launcher: str, size: int, options: tuple[Any, ...]) -> list[str]:
    head = {
        "alone": [],
        "launch": ["-m", "parhelion.launch", "-n", size, "--no-prefix"],
        "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", size, "--rdzv-backend", "c10d"],
    }[launcher]
    own = ["--rdzv-endpoint", "localhost:0"] if launcher == "torchrun" else []
    return [sys.executable, *map(str, [*head, *own, *options])]


@contextlib.contextmanager
def start(
    launcher: str, size: int, script: Path, *arguments: Any, options: tuple[Any, ...] = (), **environment: str
) -> Iterator[Group]:
    surroundings = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    surroundings |= {
        "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        # To compile takes longer than to train.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    # Others compile into it, too, and a process that is killed may leave half a program.
    surroundings.pop("JAX_COMPILATION_CACHE_DIR", None)
    surroundings |= environment
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*command(launcher, size, options), str(script), *map(str, arguments)],
                env=surroundings,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        group = Group(process, output)
        try:
            yield group
        finally:
            _kill(group)


def living(group: Group) -> list[int]:
    """Return the processes of all ranks that are still there."""
    return [int(pid) for _, pid in _SAID.findall(group.text) if _is_one(int(pid))]


def _is_one(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"whole_run" in Path(f"/proc/{pid}/cmdline").read_bytes()  # not another one that has the number now
    return False


def _kill(group: Group) -> None:
    """End the launcher and whatever has said who it is."""
    is_running = group.process.poll() is None
    if is_running:
        os.killpg(group.process.pid, signal.SIGKILL)
        group.process.wait()
    for pid in living(group):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
