"""How the processes of one run come to be connected: they prove to each other that they know the same secret.

What comes over a connection is unpickled, so nobody else may be at its other end.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import socket
import struct
import time
from pathlib import Path
from typing import Final

import attrs

from parhelion.errors import WorldError

from ._line import HEADER, Line

__all__ = ["Gate", "Invitation", "find_machine", "knock"]

_NONCE: Final = 32
_ANSWER: Final = struct.Struct(f"<Q{_NONCE}s32s")
_PAUSE: Final = 0.02  # seconds
_PATIENCE: Final = 5.0  # seconds for one attempt


@attrs.frozen
class Invitation:
    """What the first process tells the others: where it is, and the secret.

    Attributes:
        hosts: names or addresses that it may be reached by.
        port: a TCP port.
        machine: names the machine it runs on.
        secret: random bytes of this run.
    """

    hosts: tuple[str, ...]
    port: int
    machine: str
    secret: bytes = attrs.field(repr=False)


class Gate:
    """Where the first process lets the others in.

    Args:
        host: listened at; None for every device of this machine.

    Raises:
        WorldError: that cannot be listened at.
    """

    def __init__(self, host: str | None) -> None:
        try:
            self.socket = _listen(host)
        except OSError as error:
            raise WorldError(
                f"process 0 cannot listen at {host!r} ({error}); expected a name or address of its machine. Leave it "
                "out to listen on all of its devices."
            ) from error
        self.socket.setblocking(False)
        self.secret = secrets.token_bytes(32)
        self._nonces: dict[Line, bytes] = {}

    def invite(self, host: str | None) -> Invitation:
        """Return what others need to come in."""
        hosts = (host,) if host else _list_hosts()
        return Invitation(hosts, self.socket.getsockname()[1], find_machine(), self.secret)

    def accept(self) -> Line | None:
        """Return the line to somebody who has come, and is not known yet."""
        try:
            sock, _ = self.socket.accept()
        except OSError:  # gone again
            return None
        line = Line(sock, limit=_ANSWER.size)
        self._nonces[line] = secrets.token_bytes(_NONCE)
        line.put(self._nonces[line])
        return line

    def admit(self, line: Line, answer: bytes) -> int | None:
        """Return the rank of somebody who knows the secret, and prove it too; None for anybody else."""
        nonce = self._nonces.pop(line, None)
        if nonce is None or len(answer) != _ANSWER.size:
            return None
        rank, theirs, proof = _ANSWER.unpack(answer)
        if not hmac.compare_digest(proof, _prove(self.secret, b"guest", rank, nonce, theirs)):
            return None
        line.limit = 1 << 40
        line.put(_prove(self.secret, b"host", rank, nonce, theirs))
        return int(rank)

    def forget(self, line: Line) -> None:
        """Expect no answer from that one."""
        self._nonces.pop(line, None)


def knock(invitation: Invitation, rank: int, timeout: float) -> Line:
    """Return the line to the first process.

    Raises:
        WorldError: it is not reached in time.
    """
    deadline = time.monotonic() + timeout
    trouble: Exception | None = None
    hosts = invitation.hosts
    if invitation.machine == find_machine():
        hosts = ("127.0.0.1", "::1", *hosts)
    while True:
        for host in hosts:
            left = min(_PATIENCE, max(deadline - time.monotonic(), _PAUSE))
            try:
                return _enter(host, invitation, rank, left)
            except OSError as error:
                trouble = error
        if time.monotonic() > deadline:
            raise WorldError(
                f"process {rank} does not reach process 0 at {' or '.join(hosts)}, port {invitation.port}, within "
                f"{timeout:g} s ({trouble}); expected the machines to let each other's TCP connections through. Name "
                "a host that all can reach, or allow a longer timeout."
            )
        time.sleep(_PAUSE)


def _enter(host: str, invitation: Invitation, rank: int, timeout: float) -> Line:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection((host, invitation.port), timeout))
        nonce, mine = _read(sock, _NONCE), secrets.token_bytes(_NONCE)
        proof = _prove(invitation.secret, b"guest", rank, nonce, mine)
        sock.sendall(HEADER.pack(_ANSWER.size) + _ANSWER.pack(rank, mine, proof))
        if not hmac.compare_digest(_read(sock, 32), _prove(invitation.secret, b"host", rank, nonce, mine)):
            raise ConnectionAbortedError("somebody else is there")
        stack.pop_all()
        return Line(sock)


def _read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < HEADER.size + size:
        part = sock.recv(HEADER.size + size - len(data))
        if not part:
            raise ConnectionAbortedError("the connection was closed at once")
        data += part
    return bytes(data[HEADER.size :])


def _prove(secret: bytes, role: bytes, rank: int, nonce: bytes, theirs: bytes) -> bytes:
    return hmac.new(secret, role + struct.pack("<Q", rank) + nonce + theirs, hashlib.sha256).digest()


def _listen(host: str | None) -> socket.socket:
    if host is not None and _is_loopback(host):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, 0), family=family, backlog=4096)
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # built with IPv6 and run without
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=4096)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _list_hosts() -> tuple[str, ...]:
    """Return this machine's name, and the addresses that it has for itself."""
    name = socket.gethostname()
    found: list[str] = [name]
    with contextlib.suppress(OSError):
        found += [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    return tuple(dict.fromkeys(host for host in found if not _is_loopback(host)))


def find_machine() -> str:
    """Return what names this machine: processes for which it is the same reach each other by the loopback device."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot}".strip()
