"""A small launcher: n processes of one program on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

from parhelion.errors import InvalidValueError

from ._crew import Command, Crew
from ._overdue import PREEMPTED

__all__ = ["describe_ranks", "launch"]


def launch(
    command: Sequence[str],
    num_processes: int,
    *,
    environ: Mapping[str, str] | None = None,
    grace: float = 15.0,
    prefix: bool = True,
) -> int:
    """Run a program in several processes that find each other by torchrun's variables, and return an exit status.

    SIGINT, SIGTERM and SIGUSR1 are passed on to every process; a second SIGINT or SIGTERM, more than a second
    later, kills all at once. When a process fails, the others have some time to end by themselves; then they are
    terminated, then killed. All die with this process.

    Args:
        command: the program and its arguments.
        num_processes: how many.
        environ: environment variables; None for those of this process.
        grace: seconds that the others have when one has failed.
        prefix: put ``[rank]`` in front of each line that they print.

    Returns:
        0 if all ended well, 75 if those that did not were preempted and ended in order, else the status of the first
        that failed: 128 and its number for a signal.

    Raises:
        InvalidValueError: there are to be none.
        OSError: the system refuses to start one.
    """
    environ = {"PYTHONUNBUFFERED": "1", **os.environ} if environ is None else environ
    commands = [Command(command, {**environ, **variables}) for variables in describe_ranks(num_processes)]
    crew = Crew(commands, grace=grace, prefix=prefix)
    crew.run()
    if crew.ended_by is not None:
        return 128 + crew.ended_by
    if crew.failed:
        status = crew.statuses[crew.failed[0]] or 0
        return status if status > 0 else 128 - status
    return PREEMPTED if PREEMPTED in crew.statuses else 0


def describe_ranks(num_processes: int) -> list[dict[str, str]]:
    """Return the variables that tell each of several processes on this machine who it is.

    Raises:
        InvalidValueError: there are to be none.
    """
    if num_processes < 1:
        raise InvalidValueError(f"num_processes is {num_processes}; expected 1 or more.")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
