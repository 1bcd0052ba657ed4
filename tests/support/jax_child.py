"""jax in processes of its own: with several devices, or several processes on loopback.

How many devices the CPU has is fixed before jax starts, and whether processes are connected, too; so what needs either
never runs in the pytest process.

    results = run_facts(path, devices=8)          # {"name of a function": None, or its traceback}
    results = run_facts(path, processes=2)        # the same for each process: a list of dictionaries
    names = list_facts(path)                      # the functions of a file whose names begin with "fact_", unread
    outputs = run_children([...argument lists...], devices=1, seconds=60)

A *facts file* is a module under tests/support with functions ``fact_...()`` that assert. With several processes
each function runs in all of them at the same time, and ``parhelion_jax.connect`` has been called (devices are those of
each process). ``run_children`` runs any scripts side by side and returns what each printed; it kills all that it
started when one fails or time is up. ``free_port`` finds a port. Every warning in a child is an error.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "core", ROOT / "backends/jax", ROOT / "tests"]


def free_port() -> int:
    """Return a port of the loopback device that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def list_facts(path: Path) -> list[str]:
    """Return the names of the facts in a file, without running it."""
    body = ast.parse(path.read_text()).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("fact_")]


@functools.cache
def run_facts(path: Path, *, devices: int = 1, processes: int = 1, seconds: float = 120) -> Any:
    """Return for each fact None or its traceback; for several processes a list of such, by rank."""
    address = f"127.0.0.1:{free_port()}" if processes > 1 else ""
    arguments = [[__file__, path, address, processes, rank] for rank in range(processes)]
    outputs = run_children(arguments, devices=devices, seconds=seconds)
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    return results if processes > 1 else results[0]


def run_children(
    arguments: list[list[Any]], *, devices: int = 1, seconds: float = 60, check: bool = True, **environment: str
) -> list[str]:
    """Run ``python ARGUMENTS`` for each list side by side, and return what they printed.

    ``check=False``: return standard output and error together, whatever the exit status was.

    Raises:
        AssertionError: one failed, or time is up; with what it wrote.
    """
    surroundings = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
        "PYTHONWARNINGS": "error",
        **environment,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [(Path(folder) / str(rank)).open("w+") for rank in range(len(arguments))]
        children = [
            subprocess.Popen(
                [sys.executable, *map(str, each)],
                env=surroundings,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it starts can be killed with it
            )
            for each, file in zip(arguments, files, strict=True)
        ]
        try:
            _wait(children, time.monotonic() + seconds)
        finally:
            _kill(children)
        outputs = []
        for file in files:
            file.seek(0)
            outputs.append(file.read())
            file.close()
        failed = [rank for rank, child in enumerate(children) if child.returncode]
        said = "\n".join(f"--- process {rank}: status {children[rank].returncode}\n{outputs[rank]}" for rank in failed)
        assert not (check and failed), said
        return outputs


def _wait(children: list[Any], deadline: float) -> None:
    """Wait until all have ended, one has failed for some seconds, or time is up."""
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        if any(child.poll() for child in children):
            # The others may be about to say why.
            deadline = min(deadline, time.monotonic() + 5)
        time.sleep(0.01)


def _kill(children: list[Any]) -> None:
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _run(path: str, address: str, processes: str, rank: str) -> None:
    if address:
        import parhelion_jax.world

        parhelion_jax.world.connect(address, int(processes), int(rank), timeout=60)
    spec = importlib.util.spec_from_file_location("facts", path)
    facts = importlib.util.module_from_spec(spec)
    sys.modules["facts"] = facts
    spec.loader.exec_module(facts)
    results = {}
    for name, fact in inspect.getmembers(facts, inspect.isfunction):
        if name.startswith("fact_"):
            try:
                fact()
            except BaseException:
                results[name] = traceback.format_exc()
            else:
                results[name] = None
    if address:
        parhelion_jax.world.disconnect()
    print(json.dumps(results))


def words(name: str) -> str:
    """Return the name of a fact as a sentence, for the ids of tests."""
    return re.sub("^fact ", "", name.replace("_", " "))


if __name__ == "__main__":
    _run(*sys.argv[1:])
