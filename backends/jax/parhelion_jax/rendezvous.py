"""All processes of a run find each other, before jax is told of them.

jax ends a process that waits in vain for another one. Here the first process listens at the address that its
coordinator will have, the others say who they are, and only when all are there does any of them go on. So what is
wrong (an address, a number, a process that never started) becomes an error in every process that can still be told.

A launcher may name a port that it uses itself, or that another job uses on the same machine. Then there are spare ones,
of which the first process takes the first that is free; the others ask at each who is there.
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

__all__ = ["Address", "Met", "is_listening", "listen", "report"]

_PAUSE = 0.02
_LONGEST_LINE = 10_000
_HELLO_SECONDS = 5.0  # what connects and says nothing, such as a port scanner, is left after that


@attrs.frozen
class Address:
    """Where the first process is found.

    Attributes:
        host: its name or number, without brackets.
        port: a TCP port.
        spare: other ports that are tried if it is taken.
        run: tells this run from others that may have one of the ports; the same in all its processes.
    """

    host: str
    port: int
    spare: tuple[int, ...] = ()
    run: str = ""

    @property
    def choices(self) -> tuple[Address, ...]:
        """One address for each port, in the order in which they are tried."""
        return tuple(attrs.evolve(self, port=port, spare=()) for port in (self.port, *self.spare))

    @property
    def bind_host(self) -> str:
        """What the first process listens on: the loopback device if it is named, else all of them."""
        return self.host if self.host in {"localhost", "::1"} or self.host.startswith("127.") else ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class Met:
    """What a process knows when all have met.

    Attributes:
        address: where they did.
        local_rank: this process among those of its machine, from 0.
    """

    address: Address
    local_rank: int


def listen(address: Address, size: int, timeout: float) -> Met:
    """Wait in process 0 until all others have reported, and let them go on.

    Raises:
        WorldError: the port is taken, a process has not come in time, or two do not fit together.
    """
    guests: dict[int, _Guest] = {}
    hosts = [""] * size
    hosts[0] = socket.gethostname()
    found, server = _open_first(address)
    try:
        with server:
            deadline = time.monotonic() + timeout
            while len(guests) < size - 1:
                guest = _accept(server, deadline, address.run)
                if guest is None:
                    raise _missing(found, size, guests, timeout)
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
    return Met(found, 0)


def _missing(address: Address, size: int, guests: dict[int, _Guest], timeout: float) -> WorldError:
    missing = [rank for rank in range(1, size) if rank not in guests]
    return WorldError(
        f"processes {missing} have not reached {address} within {timeout:g} s; expected all of {size}. "
        "Start them, see that they can reach it, or allow a longer timeout."
    )


def report(address: Address, size: int, rank: int, timeout: float) -> Met:
    """Say in another process that it is there, and wait until all are.

    Raises:
        WorldError: the first process is not reached in time, something else is there, or processes do not fit together.
    """
    deadline = time.monotonic() + timeout
    hello = {"rank": rank, "size": size, "host": socket.gethostname(), "run": address.run}
    found, connection = _find(address, hello, deadline, timeout)
    answer: Any = None
    with connection:
        # Longer than the first one waits, so that it is the one to say who is missing.
        connection.settimeout(max(deadline - time.monotonic(), 0) + timeout + _HELLO_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            answer = json.loads(_read_line(connection))
    try:
        return Met(found, int(answer["local_rank"]))
    except (KeyError, TypeError, ValueError):
        pass
    if isinstance(answer, dict) and "error" in answer:
        raise WorldError(str(answer["error"]))  # pyright: ignore[reportUnknownArgumentType] - it came as JSON
    raise _strange(found)


def _strange(address: Address) -> WorldError:
    return WorldError(
        f"what listens at {address} did not answer as process 0 does; expected parhelion_jax.connect to run there. "
        "Check the address, and that process 0 is still alive."
    )


def _find(address: Address, hello: Any, deadline: float, timeout: float) -> tuple[Address, socket.socket]:
    """Return where process 0 is, and a connection to it on which it knows who this is."""
    choices, strangers, reason = address.choices, set[int](), ""
    while True:
        for each in choices:
            left = max(deadline - time.monotonic(), _PAUSE)
            if each.port in strangers:
                continue
            try:
                connection = socket.create_connection((each.host, each.port), left)
            except OSError as error:
                reason = str(error)
                continue
            if _is_welcome(connection, hello, 2 * _HELLO_SECONDS if address.spare else left):
                return each, connection
            connection.close()
            if not address.spare:
                raise _strange(each)
            # Another job may end and leave the port to process 0, but it takes the first that was free when it came.
            strangers.add(each.port)
        if deadline - time.monotonic() <= _PAUSE:
            ports = f" or {', '.join(map(str, address.spare))}" if address.spare else ""
            raise WorldError(
                f"the coordinator at {address}{ports} is not reached within {timeout:g} s ({reason}); expected process "
                "0 to listen there. Start it, check the address and what is between, or allow a longer timeout."
            )
        time.sleep(_PAUSE)


def _is_welcome(connection: socket.socket, hello: Any, timeout: float) -> bool:
    """Say who this is, and return whether process 0 of this run is on the other side."""
    connection.settimeout(timeout)
    try:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        answer: Any = json.loads(_read_line(connection))
    except (OSError, ValueError):
        return False
    return isinstance(answer, dict) and answer == {"run": hello["run"]}


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


def _open_first(address: Address) -> tuple[Address, socket.socket]:
    """Listen at the first port that is free."""
    reason = ""
    for each in address.choices:
        try:
            return each, _open(each)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
    ports = f" or {', '.join(map(str, address.spare))}" if address.spare else ""
    raise WorldError(
        f"process 0 cannot listen at {address}{ports} ({reason}); expected a free port of this machine. "
        "Choose another port, or end what uses it."
    )


def _open(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    both = not address.bind_host and socket.has_dualstack_ipv6()
    return socket.create_server(
        (address.bind_host, address.port), family=socket.AF_INET6 if both else family, dualstack_ipv6=both
    )


def _accept(server: socket.socket, deadline: float, run: str) -> _Guest | None:
    """Return the next process of this run that says who it is; None when time is up."""
    while (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return None
        connection.settimeout(min(left, _HELLO_SECONDS))
        try:
            hello = json.loads(_read_line(connection))
            guest = _Guest(connection, int(hello["rank"]), int(hello["size"]), str(hello["host"]))
            guest.tell(run=run)
            if hello["run"] == run:
                return guest
        except (OSError, ValueError, KeyError, TypeError):
            pass
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
    # One by one: what follows belongs to the next line.
    while not line.endswith(b"\n"):
        part = connection.recv(1)
        if not part or len(line) == _LONGEST_LINE:
            raise ValueError("the other side has closed, or says no line")
        line += part
    return line
