"""All processes of a run find each other, before jax is told of them.

jax ends a process that waits in vain for another one. Here the first process listens at the address that its
coordinator will have, the others say who they are, and only when all are there does any of them go on. So what is
wrong (an address, a number, a process that never started) becomes an error in every process that can still be told.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from typing import Any

import attrs

from parhelion.errors import WorldError

__all__ = ["Address", "is_listening", "listen", "report"]

_PAUSE = 0.02
_LONGEST_LINE = 10_000
_HELLO_SECONDS = 5.0  # what connects and says nothing, such as a port scanner, is left after that


@attrs.frozen
class Address:
    """Where the first process is found.

    Attributes:
        host: its name or number, without brackets.
        port: a TCP port.
    """

    host: str
    port: int

    @property
    def bind_host(self) -> str:
        """What the first process listens on: the loopback device if it is named, else all of them."""
        return self.host if self.host in {"localhost", "::1"} or self.host.startswith("127.") else ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listen(address: Address, size: int, timeout: float) -> int:
    """Wait in process 0 until all others have reported, let them go on, and return this one's local rank.

    Raises:
        WorldError: the port is taken, a process has not come in time, or two do not fit together.
    """
    guests: dict[int, _Guest] = {}
    hosts = [""] * size
    hosts[0] = socket.gethostname()
    try:
        with _open(address) as server:
            deadline = time.monotonic() + timeout
            while len(guests) < size - 1:
                guest = _accept(server, deadline)
                if guest is None:
                    raise _missing(address, size, guests, timeout)
                _check(guest, guests, size)
                guests[guest.rank] = guest
                hosts[guest.rank] = guest.host
        for guest in guests.values():
            guest.tell(local_rank=hosts[: guest.rank].count(guest.host))
    except WorldError as error:
        for guest in guests.values():
            guest.tell(error=str(error))
        raise
    finally:
        for guest in guests.values():
            guest.connection.close()
    return 0


def _missing(address: Address, size: int, guests: dict[int, _Guest], timeout: float) -> WorldError:
    missing = [rank for rank in range(1, size) if rank not in guests]
    return WorldError(
        f"processes {missing} have not reached {address} within {timeout:g} s; expected all of {size}. "
        "Start them, see that they can reach it, or allow a longer timeout."
    )


def report(address: Address, size: int, rank: int, timeout: float) -> int:
    """Say in another process that it is there, wait until all are, and return its local rank.

    Raises:
        WorldError: the first process is not reached in time, something else is there, or processes do not fit together.
    """
    deadline = time.monotonic() + timeout
    answer: Any = None
    with _reach(address, deadline, timeout) as connection:
        # Longer than the first one waits, so that it is the one to say who is missing.
        connection.settimeout(max(deadline - time.monotonic(), 0) + timeout + _HELLO_SECONDS)
        hello = {"rank": rank, "size": size, "host": socket.gethostname()}
        with contextlib.suppress(OSError, ValueError):
            connection.sendall(json.dumps(hello).encode() + b"\n")
            answer = json.loads(_read_line(connection))
    try:
        return int(answer["local_rank"])
    except (KeyError, TypeError, ValueError):
        pass
    if isinstance(answer, dict) and "error" in answer:
        raise WorldError(str(answer["error"]))  # pyright: ignore[reportUnknownArgumentType] - it came as JSON
    raise WorldError(
        f"what listens at {address} did not answer as process 0 does; expected parhelion_jax.connect to run there. "
        "Check the address, and that process 0 is still alive."
    )


def _reach(address: Address, deadline: float, timeout: float) -> socket.socket:
    while True:
        left = max(deadline - time.monotonic(), _PAUSE)
        try:
            return socket.create_connection((address.host, address.port), left)
        except OSError as error:
            if left <= _PAUSE:
                raise WorldError(
                    f"the coordinator at {address} is not reached within {timeout:g} s ({error}); expected process 0 "
                    "to listen there. Start it, check the address and what is between, or allow a longer timeout."
                ) from None
        time.sleep(_PAUSE)


def is_listening(address: Address, timeout: float) -> bool:
    """Whether somebody accepts connections there, or begins to within the timeout."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), timeout):
            return True
        time.sleep(_PAUSE)
    return False


@attrs.frozen
class _Guest:
    connection: socket.socket
    rank: int
    size: int
    host: str

    def tell(self, **answer: Any) -> None:
        # One that has gone meanwhile is jax's to notice.
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(answer).encode() + b"\n")


def _open(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    both = not address.bind_host and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (address.bind_host, address.port), family=socket.AF_INET6 if both else family, dualstack_ipv6=both
        )
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise WorldError(
            f"process 0 cannot listen at {address} ({reason}); expected a free port of this machine. "
            "Choose another port, or end what uses it."
        ) from None


def _accept(server: socket.socket, deadline: float) -> _Guest | None:
    """Return the next process that says who it is; None when time is up."""
    while (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return None
        connection.settimeout(min(left, _HELLO_SECONDS))
        try:
            hello = json.loads(_read_line(connection))
            return _Guest(connection, int(hello["rank"]), int(hello["size"]), str(hello["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
    return None


def _check(guest: _Guest, guests: dict[int, _Guest], size: int) -> None:
    problem = ""
    if guest.size != size:
        problem = f"num_processes is {guest.size} in process {guest.rank} and {size} in process 0; expected one number"
    elif guest.rank in guests or not 0 < guest.rank < size:
        problem = f"process_id {guest.rank} came twice; expected each of 0 to {size - 1} once"
    if problem:
        error = WorldError(f"{problem}. Give all processes the same num_processes, and each a process_id of its own.")
        guest.tell(error=str(error))
        guest.connection.close()
        raise error


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(_LONGEST_LINE - len(line))
        if not part:
            raise ValueError("the other side has closed")
        line += part
    return line
