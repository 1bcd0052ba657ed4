"""A worker process, from its start to its end.

It ends with the parent, however that ends, and on a closed socket at once, also in the middle of user code.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO, Final, NamedTuple

import attrs

from parhelion.errors import WorkerError

from ._collate import collate
from ._companions import expect_companions
from ._fetch import Fetch, Fetched
from ._fork_server import ForkedProcess, fork_worker
from ._link import BATCH, FAILED, NOTE, READY, UNUSABLE, Asked, Result, WorkerEnd
from ._memory import make_batches_in
from ._ring import Placed, Writer, map_file
from ._shipment import describe_unpicklable, read_file, write_error, write_file, write_value
from ._worker_info import tell_torch
from ._worker_options import WorkerOptions

__all__ = ["Task", "TaskFile", "main", "start_process", "write_indices", "write_task"]

_MANY = 8
_GLANCE: Final = 20  # milliseconds
_QUICK: Final = 3e-4  # seconds that a batch takes which is sent together with others
# Those that take long to import and are safe to fork afterwards; jax is not.
_FRAMEWORKS: Final = ("torch",)


@attrs.frozen
class Task:
    """What a worker is there for.

    Attributes:
        fetch: makes batches of requests.
        options: how the workers are used.
        companions: modules that go with frameworks, by the framework's name.
        arguments: the command line that user code will find.
    """

    fetch: Any
    options: WorkerOptions
    companions: Mapping[str, str]
    arguments: list[str]


class TaskFile(NamedTuple):
    """A task on its way to workers.

    Attributes:
        file: holds it; an open file without a name, for any number of workers.
        load: modules that it needs and that take long to import.
    """

    file: BinaryIO
    load: list[str]


def write_task(task: Task) -> TaskFile:
    """Return the task as a file, which is to be closed.

    Raises:
        WorkerError: something in it cannot be pickled; it is named.
    """
    try:
        file, modules = write_file(task)
    except Exception as error:
        name, value = _find_unsendable(task)
        raise WorkerError(
            f"{name} cannot be sent to a worker process: {describe_unpicklable(value, name, error)}; expected what "
            "cloudpickle can write. Make it in the worker at its first use, or load with num_workers=0."
        ) from error
    return TaskFile(file, _choose_load(modules, task.companions))


def _choose_load(modules: Collection[str], companions: Mapping[str, str]) -> list[str]:
    """Return the frameworks that some of the modules are of, or import, and what goes with them."""
    load: list[str] = []
    for framework in _FRAMEWORKS:
        if framework in sys.modules and any(_uses(name, framework) for name in modules):
            load += [framework, *(module for name, module in companions.items() if name == framework)]
    return load


def _uses(module: str, framework: str) -> bool:
    if module.partition(".")[0] == framework:
        return True
    names = vars(sys.modules[module]).values() if module in sys.modules else ()
    return any(value is sys.modules[framework] for value in names)


def _find_unsendable(task: Task) -> tuple[str, Any]:
    parts = {
        "dataset": getattr(task.fetch, "dataset", None),
        "collate_fn": getattr(task.fetch, "collate_fn", None),
        "worker_init_fn": task.options.worker_init_fn,
    }
    for name, value in parts.items():
        try:
            write_file(value)[0].close()
        except Exception:  # noqa: BLE001 - user code may raise anything here
            return name, value
    return "loader", task.fetch


def start_process(number: int, task: TaskFile, board: int) -> tuple[ForkedProcess, socket.socket]:
    """Return a worker process that is being started, and this end of the socket to it.

    Args:
        number: from 0; its name in messages.
        task: what :func:`write_task` returned.
        board: descriptor of a file of 8 bytes, where the worker notes the sample index that it is at.

    Raises:
        OSError: the system refuses.
    """
    here, there = socket.socketpair()
    try:
        process = fork_worker(number, there.fileno(), task.file.fileno(), board, load=task.load)
    except BaseException:
        here.close()
        raise
    finally:
        there.close()
    return process, here


def main(number: int, link: int, task: int, board: int) -> None:
    """Be a worker until the parent is gone.

    Args:
        number: this worker's, from 0.
        link: file descriptor of the socket.
        task: file descriptor of the task.
        board: file descriptor of the place to note sample indices.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] - it is where descriptor 2 is closed
        faulthandler.enable()
    sock = socket.socket(fileno=link)
    sock.set_inheritable(False)
    board_memory = map_file(board, 8)
    os.close(board)
    ring = Writer()
    end = WorkerEnd(sock, ring)
    threading.Thread(target=_watch, args=(sock, end), daemon=True).start()
    fetch, options = _prepare(number, end, task)
    ring.num_ahead, num_workers = options.most_ahead, options.num_workers
    if isinstance(fetch, Fetch):
        fetch.board = memoryview(board_memory).cast("q")
    make_batches_in(ring.empty)
    end.send(Result(0, 0, READY, []))
    is_fresh = getattr(fetch, "collate_fn", None) is collate
    for asked in end.requests():
        result, placed = _answer(fetch, asked, number, ring)
        # The first batches are being waited for.
        may_wait = len(result.parts) == 1 and asked.number >= num_workers and sum(result.times) < _QUICK
        end.send(result, placed, is_fresh=is_fresh, may_wait=may_wait)
        if (problem := ring.take_problem()) is not None:
            end.send(Result(0, 0, NOTE, [_describe(problem)]))
        _flush()
    os._exit(0)


def _describe(problem: OSError) -> bytes:
    return (
        f"a loader's worker gets no more memory to share with this process ({problem}); its batches come by a slower "
        "road. Give the machine or the container more shared memory, or load fewer or smaller batches ahead."
    ).encode()


def _watch(sock: socket.socket, end: WorkerEnd) -> None:
    """End with the parent, also in the middle of user code; let no batch wait for a slow one behind it."""
    poll = select.poll()
    poll.register(sock, 0)  # no event but the hang-up, which always counts
    while not poll.poll(_GLANCE):
        end.send_held(late=True)
    os._exit(1)


def _prepare(number: int, end: WorkerEnd, descriptor: int) -> tuple[Any, WorkerOptions]:
    """Return what to fetch with, and how; where that cannot be had, tell the parent why and end."""
    problem = "the dataset, or what is sent along with it, cannot be rebuilt"
    way_out = "expected modules that it can import as this process does"
    try:
        task: Task = read_file(descriptor)
        os.close(descriptor)
        sys.argv[:] = task.arguments
        expect_companions(task.companions)
        tell_torch(number, task.options.num_workers, task.fetch)
        if task.options.worker_init_fn is not None:
            problem, way_out = "worker_init_fn failed", "expected it to return"
            task.options.worker_init_fn(number)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        what = f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        message = f"{problem} in worker process {number} ({what}); {way_out}. Load with num_workers=0.\n\n{trace}"
        end.send_all(Result(0, 0, UNUSABLE, [message.encode(errors="replace")]))
        os._exit(1)
    return task.fetch, task.options


def _fetch(fetch: Any, asked: Asked) -> Fetched:
    if isinstance(fetch, Fetch):
        return fetch.timed(asked.request, in_worker=True)
    began = time.perf_counter()
    batch = fetch(asked.request, in_worker=True)
    return Fetched(batch, time.perf_counter() - began, 0.0)


def _answer(fetch: Any, asked: Asked, number: int, ring: Writer) -> tuple[Result, Placed | None]:
    """Return what to send for a request, and where the large arrays in it are."""
    ring.begin()
    try:
        fetched = _fetch(fetch, asked)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        return Result(asked.iteration, asked.number, FAILED, write_error(error, number)), None
    began = time.perf_counter()
    batch = fetched.batch
    try:
        parts = write_value(batch)
    except Exception as error:  # noqa: BLE001 - user code may raise anything here
        failure = WorkerError(
            f"batch with {write_indices(asked)} cannot be sent from worker process {number}: "
            f"{describe_unpicklable(batch, 'batch', error)}; expected what pickle can write. Let the collate "
            "function return arrays, or load with num_workers=0."
        )
        failure.__cause__ = error
        return Result(asked.iteration, asked.number, FAILED, write_error(failure, number)), None
    placed = ring.put(parts[1:]) if len(parts) > 1 else None
    times = fetched.records, fetched.collation, time.perf_counter() - began
    return Result(asked.iteration, asked.number, BATCH, parts if placed is None else parts[:1], times), placed


def write_indices(asked: Asked) -> str:
    """Return the sample indices of a batch in words, the first ones if there are many."""
    indices = asked.request.indices
    shown = ", ".join(map(str, indices[:_MANY].tolist()))
    return f"sample indices {shown}" + (f", ... ({len(indices)} in all)" if len(indices) > _MANY else "")


def _flush() -> None:
    # The process will end without ceremony.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
