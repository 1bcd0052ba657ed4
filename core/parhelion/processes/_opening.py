"""Connecting the processes that a launcher has started."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable
from typing import Any, Final

from parhelion.errors import InvalidValueError, WorldError

from ._channel import Channel
from ._gate import Gate, Invitation, knock
from ._line import Line
from ._world import World

__all__ = ["open_world"]

_OTHER_FILES: Final = 512
_LONGER: Final = 10.0  # seconds, so that the first process is the one to say who is missing


def open_world(
    rank: int,
    local_rank: int,
    size: int,
    share: Callable[[Any], list[Any]],
    *,
    host: str | None = None,
    timeout: float = 60.0,
    grace: float = 10.0,
) -> World:
    """Connect this process to the others, and return their world. All of them call it.

    Args:
        rank: this process among all, from 0.
        local_rank: this process among those of its machine, from 0.
        size: how many there are.
        share: returns what all processes give, by rank; called once. The framework's own gather is one.
        host: name or address at which the others reach the first process, which listens there only if it is one of the
            loopback device. None for the names that its machine has for itself.
        timeout: seconds to wait for the others.
        grace: seconds that this process has to close its world after another one has failed.

    Raises:
        InvalidValueError: the numbers do not fit together.
        WorldError: a process is not reached in time, or fails to start.
    """
    if not 0 <= local_rank <= rank < size:
        raise InvalidValueError(
            f"rank is {rank}, local_rank {local_rank} and size {size}; expected 0 <= local_rank <= rank < size."
        )
    if size == 1:
        return World(rank, local_rank, size)
    end = _open_gate(share, size, host) if rank == 0 else _find_gate(share, rank, timeout)
    channel = Channel(rank, size, grace)
    place = f"host {socket.gethostname()}, pid {os.getpid()}"
    channel.start(end, ("hello", size, place), timeout if rank == 0 else timeout + _LONGER)
    return World(rank, local_rank, size, channel.member, channel=channel)


def _open_gate(share: Callable[[Any], list[Any]], size: int, host: str | None) -> Gate:
    _allow_files(size + _OTHER_FILES)
    try:
        gate = Gate(host)
    except WorldError as error:
        share(str(error))
        raise
    try:
        share(gate.invite(host))
    except BaseException:
        gate.socket.close()
        raise
    return gate


def _find_gate(share: Callable[[Any], list[Any]], rank: int, timeout: float) -> Line:
    invitation = share(None)[0]
    if isinstance(invitation, Invitation):
        return knock(invitation, rank, timeout)
    raise WorldError(
        str(invitation)
        if isinstance(invitation, str)
        else f"process 0 shared {invitation!r}; expected what its open_world gives to share. Return all values by rank."
    )


def _allow_files(count: int) -> None:
    """Let this process have so many files open, if the system does: the first one has a connection to each other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < count:
        with contextlib.suppress(ValueError, OSError):
            wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
