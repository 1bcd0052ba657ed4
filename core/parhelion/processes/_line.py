"""Messages over a socket that nobody waits for: whole ones come out, and what is not taken at once is sent later."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Final

__all__ = ["HEADER", "Line"]

HEADER: Final = struct.Struct("<Q")
"""In front of each message: its bytes."""

_CHUNK: Final = 1 << 18
# Seconds after which a machine that is silent is asked, between questions, and how many stay unanswered.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class Line:
    """One end of a connection.

    Args:
        sock: is made non-blocking, and is this object's from now on.
        limit: bytes that a message may have; one that claims more ends the connection.
    """

    def __init__(self, sock: socket.socket, limit: int = 1 << 40) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # it is no TCP socket
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.socket = sock
        self.limit = limit
        self._unread = bytearray()
        self._unsent: deque[memoryview] = deque()

    @property
    def is_flushed(self) -> bool:
        """Whether all that was put has been taken by the system."""
        return not self._unsent

    def put(self, message: bytes) -> None:
        """Send a message, now as far as the socket takes it; whether the connection is broken is told by ``read``."""
        self._unsent += [memoryview(HEADER.pack(len(message))), memoryview(message)]
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._unsent:
                sent = self.socket.send(self._unsent[0])
                self._unsent[0] = self._unsent[0][sent:]
                if not self._unsent[0]:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()

    def read(self) -> Iterator[bytes]:
        """Yield the messages that have come.

        Raises:
            EOFError: the other end is closed.
            OSError: the connection is broken, or the message too long.
        """
        with contextlib.suppress(BlockingIOError):
            data = self.socket.recv(_CHUNK)
            if not data:
                raise EOFError
            self._unread += data
        while (message := self._take()) is not None:
            yield message

    def _take(self) -> bytes | None:
        if len(self._unread) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._unread)[0]
        if end > HEADER.size + self.limit:
            raise ConnectionAbortedError("a message of an unknown kind has come")
        if len(self._unread) < end:
            return None
        message = bytes(self._unread[HEADER.size : end])
        del self._unread[:end]
        return message

    def close(self) -> None:
        """Close the connection; what is not sent by now is not."""
        self.socket.close()
