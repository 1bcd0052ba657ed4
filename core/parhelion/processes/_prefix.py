"""What several processes print, line by line, with the rank in front."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import IO, Final

__all__ = ["Prefixer"]

_CHUNK: Final = 1 << 16
_LONGEST: Final = 1 << 16  # bytes of a line that are held back


class Prefixer:
    """Passes on the output of processes to the streams of the same kind here.

    Args:
        size: how many processes there are.
    """

    def __init__(self, size: int) -> None:
        self._width = len(str(size - 1))
        self._unwritten: dict[IO[bytes], bytes] = {}
        self._targets: dict[IO[bytes], tuple[bytes, int]] = {}

    def add(self, rank: int, process: subprocess.Popen[bytes]) -> list[IO[bytes]]:
        """Return the streams of a process, which are to be waited for."""
        streams: list[IO[bytes]] = []
        for stream, descriptor in ((process.stdout, 1), (process.stderr, 2)):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                self._targets[stream] = f"[{rank:>{self._width}}] ".encode(), descriptor
                self._unwritten[stream] = b""
                streams.append(stream)
        return streams

    def pass_on(self, stream: IO[bytes]) -> bool:
        """Pass on what there is in a stream, and return whether more may come."""
        try:
            data = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return True
        prefix, descriptor = self._targets[stream]
        *lines, rest = (self._unwritten[stream] + data).split(b"\n")
        if rest and (not data or len(rest) > _LONGEST):
            lines, rest = [*lines, rest], b""
        self._unwritten[stream] = rest
        _write(descriptor, b"".join(prefix + line + b"\n" for line in lines))
        return bool(data)

    def finish(self) -> None:
        """Pass on what is left. Somebody else may still hold the other end, who is not waited for."""
        for stream in self._targets:
            os.set_blocking(stream.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(stream.fileno(), _CHUNK):
                    self._unwritten[stream] += data
            prefix, descriptor = self._targets[stream]
            lines = self._unwritten[stream].removesuffix(b"\n").split(b"\n")
            if self._unwritten[stream]:
                _write(descriptor, b"".join(prefix + line + b"\n" for line in lines))
            stream.close()


def _write(descriptor: int, data: bytes) -> None:
    for stream in (sys.stdout, sys.stderr):  # what was written here before comes first
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with contextlib.suppress(OSError):  # nobody reads it any more; the processes go on
        while data:
            data = data[os.write(descriptor, data) :]
