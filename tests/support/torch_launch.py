"""Scripts on several ranks of torch, as launchers start them: on loopback, killed when one fails or time is up.

    run_ranks(2, script, "argument")                  # by the environment that launchers set, which is quick
    run_torchrun(2, script, "argument")               # by torchrun itself

Both return what each rank printed, standard output and error together, and its exit status. Every rank has one thread,
so that results are the same bits each time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "core", ROOT / "backends/torch", ROOT / "tests"]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    text: str


def free_port() -> int:
    """Return a port of the loopback device that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def run_ranks(size: int, script: Path, *arguments: Any, seconds: float = 90, check: bool = True) -> list[Ended]:
    """Return how each rank of a script ended; with ``check`` all must have ended well."""
    port = str(free_port())
    commands = []
    for rank in range(size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        environment = {name: str(value) for name, value in own.items()}
        commands.append(
            ([sys.executable, script, *arguments], environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        )
    return _run(commands if size > 1 else [(commands[0][0], {})], seconds, check=check)


def run_torchrun(
    size: int, script: Path, *arguments: Any, options: tuple[str, ...] = (), seconds: float = 90, check: bool = True
) -> Ended:
    """Return how ``torchrun`` ended."""
    how = ["--nproc-per-node", size, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *options]
    return _run(
        [([sys.executable, "-m", "torch.distributed.run", *how, script, *arguments], {})], seconds, check=check
    )[0]


def run_alone(script: Path, *arguments: Any, seconds: float = 90, check: bool = True) -> Ended:
    """Return how a script without a launcher ended."""
    return _run([([sys.executable, script, *arguments], {})], seconds, check=check)[0]


def _run(commands: list[tuple[list[Any], dict[str, str]]], seconds: float, *, check: bool) -> list[Ended]:
    surroundings = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    surroundings |= {"PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(commands))]
        started: list[subprocess.Popen[bytes]] = []
        try:
            for (command, own), file in zip(commands, files, strict=True):
                with file.open("wb") as output:
                    # In a group of its own, with whatever it starts.
                    started.append(
                        subprocess.Popen(
                            list(map(str, command)),
                            env=surroundings | own,
                            stdout=output,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            _await(started, time.monotonic() + seconds, check=check)
        finally:
            _kill(started)
        ended = [Ended(process.wait(), file.read_text()) for process, file in zip(started, files, strict=True)]
    if check and any(each.status for each in ended):
        raise AssertionError("\n".join(f"-- {each.status}\n{each.text}" for each in ended))
    return ended


def _await(started: list[subprocess.Popen[bytes]], deadline: float, *, check: bool) -> None:
    while time.monotonic() < deadline:
        statuses = [process.poll() for process in started]
        if None not in statuses or (check and any(statuses)):
            return
        time.sleep(0.02)


def _kill(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
