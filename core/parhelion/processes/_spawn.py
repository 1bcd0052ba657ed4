"""Functions that run in several fresh interpreters at once, as one program that has been launched several times."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import attrs

from parhelion._by_value import create_pickler
from parhelion.errors import WorldError

from ._crew import Command, Crew
from ._launch import describe_ranks
from ._overdue import OVERDUE, PREEMPTED

__all__ = ["spawn", "work"]

# Before anything else is found, the path must be that of the parent.
_BOOT: Final = """import sys
sys.path[:] = {path!r}
from parhelion.processes._spawn import work
work({task}, {answer})
"""


@attrs.frozen
class _Outcome:
    """What a function came to in one process.

    Attributes:
        value: the pickle of what it returned, or of what it raised if that can be pickled.
        trace: the traceback of what it raised; None if it returned.
        kind: the name of the type of what it raised.
    """

    value: bytes | None
    trace: str | None = None
    kind: str = ""


def spawn(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    num_processes: int,
    *,
    environ: Mapping[str, str] | None = None,
    grace: float = 15.0,
) -> list[Any]:
    """Call a function in each of several new processes, and return what it returned in each, by rank.

    The processes find each other by torchrun's variables, as after :func:`launch`, and get this one's signals, end with
    each other and die with it in the same way. They are fresh interpreters, which do not run the script again:
    functions and classes of a script travel by value, and instances that come back are of the classes here. Arguments
    may hold a :class:`SharedQueue`, and what ``multiprocessing.get_context("spawn")`` makes.

    Args:
        function: called with the arguments.
        arguments: whatever cloudpickle takes.
        num_processes: how many.
        environ: environment variables; None for those of this process.
        grace: seconds that the others have to end when one has failed.

    Raises:
        WorldError: a process failed; has its traceback, and what it raised as the cause.
        KeyboardInterrupt: SIGINT came twice.
        Exception: whatever pickling raises.
    """
    with contextlib.ExitStack() as stack:
        with _lend_descriptors() as (lent, reducers):
            content = _pickle((function, tuple(arguments), sys.argv), is_reply=False, reducers=reducers)
        task = _write(stack, content)
        answers = [_write(stack, b"") for _ in range(num_processes)]
        commands: list[Command] = []
        for variables, answer in zip(describe_ranks(num_processes), answers, strict=True):
            code = _BOOT.format(path=_list_path(), task=task.fileno(), answer=answer.fileno())
            line = [sys.executable, *vars(subprocess).get("_args_from_interpreter_flags", list)(), "-c", code]
            surroundings = {**(os.environ if environ is None else environ), **variables}
            commands.append(Command(line, surroundings, [task.fileno(), answer.fileno(), *lent]))
        crew = Crew(commands, grace=grace, prefix=False)
        crew.run()
        if crew.ended_by is not None:
            signal.raise_signal(crew.ended_by)
        return _collect(crew, [_read(answer.fileno()) for answer in answers])


def _collect(crew: Crew, answers: list[bytes]) -> list[Any]:
    outcomes: list[_Outcome | None] = [pickle.loads(each) if each else None for each in answers]  # noqa: S301 - ours
    failed = {rank: outcomes[rank] for rank in crew.failed}
    failed |= {rank: outcome for rank, outcome in enumerate(outcomes) if outcome is None}
    if failed:
        # The others are told of the first failure, and may be the first to have ended by it.
        told = [rank for rank, outcome in failed.items() if outcome is not None and outcome.kind == "WorldError"]
        rank = next((rank for rank in failed if rank not in told), next(iter(failed)))
        raise _explain(rank, crew.statuses[rank] or 0, failed[rank])
    return [pickle.loads(outcome.value or b"") for outcome in outcomes if outcome is not None]  # noqa: S301 - ours


def _explain(rank: int, status: int, outcome: _Outcome | None) -> WorldError:
    if outcome is not None and outcome.trace is not None:
        error = WorldError(f"process {rank} failed:\n{outcome.trace}")
        with contextlib.suppress(Exception):  # it cannot be made again here
            error.__cause__ = pickle.loads(outcome.value or b"")  # noqa: S301 - from a process of ours
        return error
    if outcome is None and status == PREEMPTED:
        return WorldError(f"process {rank} ended with status {status}: {OVERDUE}.")
    how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    when = "before the function returned" if outcome is None else "after the function had returned"
    return WorldError(f"process {rank} ended {how} {when}; expected status 0. See what it has printed.")


def work(task: int, answer: int) -> None:
    """Do in a new process what it is there for, and end it.

    Args:
        task: descriptor of a file with the function and its arguments.
        answer: descriptor of a file for what that comes to.
    """
    status: Any = 0
    try:
        function, arguments, sys.argv[:] = pickle.loads(_read(task))  # noqa: S301 - from the process that started this
        outcome: _Outcome | None = _Outcome(_pickle(function(*arguments), is_reply=True))
    except SystemExit as end:
        status = end.code
        outcome = None if status else _Outcome(_pickle(None, is_reply=True))
    except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
        traceback.print_exc()
        status, outcome = 1, _describe(error)
    if outcome is not None:
        with open(answer, "wb", closefd=False) as file:
            file.write(pickle.dumps(outcome))
    sys.exit(status)


def _describe(error: BaseException) -> _Outcome:
    value = None
    with contextlib.suppress(Exception):  # user code may raise anything here
        value = _pickle(error, is_reply=True)
    return _Outcome(value, "".join(traceback.format_exception(error)), type(error).__name__)


def _pickle(value: Any, *, is_reply: bool, reducers: Mapping[type, Any] | None = None) -> bytes:
    file = io.BytesIO()
    create_pickler(file, is_reply=is_reply, reducers=reducers).dump(value)
    return file.getvalue()


def _write(stack: contextlib.ExitStack, data: bytes) -> BinaryIO:
    file = stack.enter_context(os.fdopen(os.memfd_create("parhelion"), "w+b"))
    file.write(data)
    file.flush()
    return file


def _read(descriptor: int) -> bytes:
    # All processes share one place in the file.
    size, data = os.fstat(descriptor).st_size, bytearray()
    while len(data) < size and (part := os.pread(descriptor, size - len(data), len(data))):
        data += part
    return bytes(data)


def _list_path() -> list[str]:
    return [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109 - text is wanted


class _Lent:
    """A descriptor that a new process has under the same number; multiprocessing asks for it so."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def detach(self) -> int:
        """Return the descriptor."""
        return self._descriptor


class _Lender:
    """Takes the place of multiprocessing's own way to start a process while its objects are pickled."""

    DupFd = _Lent

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        """Note that new processes need a descriptor."""
        self.descriptors.append(descriptor)
        return descriptor


@contextmanager
def _lend_descriptors() -> Generator[tuple[list[int], dict[type, Any]]]:
    """Let multiprocessing's queues and locks be pickled; yield the descriptors that go with them, and reducers."""
    lender = _Lender()
    if "multiprocessing.connection" not in sys.modules:  # nobody has any
        yield lender.descriptors, {}
        return
    connection: Any = sys.modules["multiprocessing.connection"]
    context: Any = sys.modules["multiprocessing.context"]
    context.set_spawning_popen(lender)
    try:
        yield lender.descriptors, {connection.Connection: connection.reduce_connection}
    finally:
        context.set_spawning_popen(None)
