"""How connected processes end: together and in order, or all of them soon after one has failed.

jax has its own ideas of the end. A process that leaves waits up to 300 s for the others. One that is killed is missed
after 100 s, unless it is the first: then jax aborts the others at once. So the channel between the processes says who
has failed, and jax is asked to part only when all are there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax

from parhelion.errors import WorldError
from parhelion.processes import World, open_world

__all__ = ["leave", "look_after", "open_channel"]

_GRACE = 10.0  # seconds that a process has to end after another one has failed
_LONGER = 5.0  # more for the first, whose end jax takes for a reason to abort the others
_NEWS = 0.5  # that another one has failed may come a little later than what it has done to this one
_PAUSE = 0.02
_MILLISECONDS = 60_000
_jax: Any = jax  # it leaves some of it untyped


def open_channel(rank: int, local_rank: int, size: int, host: str | None) -> World:
    """Return the world of the processes that jax has connected; all of them come here."""
    grace = _GRACE if rank else _GRACE + _LONGER
    return open_world(rank, local_rank, size, _share, host=host, grace=grace, on_failure=_write_if_first)


def _write_if_first(text: str) -> None:
    # jax aborts this process as soon as it misses the first one, and says that a connection is broken.
    if text.startswith("process 0 "):
        _write(text)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"parhelion: {text}\n".encode(errors="replace"))


def _share(value: Any) -> list[Any]:
    """Return what every process gives here, by rank, without starting devices as a gather of arrays would."""
    client, rank, size = _connection().client, _jax.process_index(), _jax.process_count()
    client.key_value_set_bytes(f"parhelion/{rank}", pickle.dumps(value))
    shared = [client.blocking_key_value_get_bytes(f"parhelion/{each}", _MILLISECONDS) for each in range(size)]
    return [pickle.loads(each) for each in shared]  # noqa: S301 - it comes from this very program, in another process


def look_after(world: World) -> None:
    """From now on this process tells the others when it ends by an exception, and ends with them otherwise."""
    before = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        _wait_for(lambda: world.failure is not None, _NEWS)
        if world.failure is None:
            world.fail("".join(traceback.format_exception(kind, error, trace)))
        elif not isinstance(error, WorldError):
            # That a computation of all broke off is no reason.
            _write(f"process {world.rank} ends, as another one failed: {world.failure}")

    sys.excepthook = tell
    atexit.register(_end, world, os.getpid())


def leave(world: World) -> None:
    """Wait for the others, and part from them.

    Raises:
        WorldError: one of them has failed.
    """
    world.barrier()
    _jax.distributed.shutdown()
    world.close()


def _end(world: World, owner: int) -> None:
    """Part from the others when the program ends, or see that this one ends if one has failed."""
    if not jax.distributed.is_initialized():
        return
    if os.getpid() != owner:  # a fork, which is none of them
        _abandon()
        return
    try:
        if world.failure is None:
            leave(world)
            return
    except WorldError as error:
        world.fail(str(error))  # nothing, if that is what the others know
    # The channel stays open until the process is gone, which tells the first one that it is.
    _wait_for(lambda: world.is_alone, _GRACE + _LONGER)
    _abandon()


def _wait_for(has_come: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not has_come() and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _abandon() -> None:
    """Let jax forget its connection, and keep the other side of it as it is until the process is gone.

    Closing it would wait for processes that never come, and destroying it under its threads would abort this one.
    """
    connection = _connection()
    for name in ("preemption_sync_manager", "client", "service"):
        if (kept := getattr(connection, name, None)) is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
            setattr(connection, name, None)


def _connection() -> Any:
    from jax._src.distributed import global_state  # noqa: PLC0415 - a private name, needed here only

    return global_state
