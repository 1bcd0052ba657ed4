"""TensorBoard's event files, holding every step once however often a run was stopped."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import platform
import re
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from parhelion.errors import InvalidValueError, MissingExtraError

from ._folder import make_folder, numbered, replace_bytes, writable
from ._row import check_step, plain_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# TensorBoard reads the files of a folder in the order of their names: the number is the second of creation.
_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\.")
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEAD = _LENGTH.size + _CHECKSUM.size


class TensorBoardTracker:
    """Writes every value of a row as a scalar, under its own name, to event files in a folder of one run.

    A fresh start moves event files of an earlier run into the folder ``earlier.1`` (or the next free number)
    inside, where TensorBoard shows them as another run. A resumed start goes on in a new file; from the older
    ones, every summary of a later step is removed, along with what a kill left half written, so that any
    reader sees each step once. A TensorBoard that is running is told to forget them as well. Each file is
    replaced as a whole. Folders inside are left alone.

    A row is one record and one write: a killed process loses at most that one. A value that is logged again
    for the same step is written only if it differs. The format holds 32-bit floats; the exact values are in
    the history.

    Args:
        run_path: the folder, made where it is missing.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, run_path: str | os.PathLike[str]) -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise MissingExtraError(
                "TensorBoard's event files need tensorboardX, which is not installed; "
                "install it with: pip install 'parhelion[tensorboard]'"
            )
        self.run_path = Path(run_path)
        self._format: _EventFormat | None = None
        self._file: io.FileIO | None = None
        self._end = 0
        # What the last step has already.
        self._step = -1
        self._written: set[bytes] = set()

    def start(self, step: int | None) -> None:
        """Open a new event file, and take the steps after ``step`` out of the older ones.

        Raises:
            InvalidValueError: the folder cannot be written to, or ``step`` is negative.
            InvalidTypeError: ``step`` is neither None nor an integer.
        """
        step = None if step is None else check_step(step)
        self.close()
        form = self._format = self._format or _EventFormat()
        with writable("run_path", self.run_path):
            make_folder(self.run_path)
            older = sorted(path for path in self.run_path.iterdir() if _NAME.match(path.name))
            self._step, self._written = -1 if step is None else step, set()
            if step is None:
                _move_into(numbered(self.run_path / "earlier"), older)
            else:
                for path in older:
                    self._written |= form.drop_later(path, step)
            self._file = io.FileIO(self.run_path / _file_name(older), "x")
            self._end = 0
            self._write(form.version())
            if step is not None:
                self._write(form.restart(step + 1))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one record with every value that this step does not have yet.

        Raises:
            InvalidValueError: the tracker is not started, ``step`` is negative, or a value is named ``step``.
            InvalidTypeError: ``step`` is no integer, or a value no real number.
            OSError: the record could not be written.
        """
        step, row = check_step(step), plain_row(values)
        if self._file is None or self._format is None:
            raise InvalidValueError(f"run_path {str(self.run_path)!r} is not open; expected start() before log().")
        if step != self._step:
            self._step, self._written = step, set()
        scalars = [scalar for scalar in self._format.scalars(row) if scalar not in self._written]
        if scalars:
            self._write(self._format.row(step, scalars))
            self._written.update(scalars)

    def close(self) -> None:
        """Make the records durable and close the file."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with file:
            os.fsync(file.fileno())

    def _write(self, record: bytes) -> None:
        if self._file is not None:
            # From a known place: half a record that a failed write left behind is written over.
            self._file.seek(self._end)
            rest = memoryview(record)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._end += len(record)


class _EventFormat:
    """Events as bytes: protocol buffers, each framed by its length and two checksums."""

    def __init__(self) -> None:
        # Imported now: tensorboardX takes a second, and imports torch where it finds it.
        self._events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        self._summaries: Any = importlib.import_module("tensorboardX.proto.summary_pb2")
        self._checksum: Any = importlib.import_module("tensorboardX.record_writer").masked_crc32c
        self._damage: Any = importlib.import_module("google.protobuf.message").DecodeError

    def version(self) -> bytes:
        """Return the record that every file begins with."""
        return self._record(self._events.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def restart(self, step: int) -> bytes:
        """Return the record that makes a running TensorBoard forget what it has read from ``step`` on."""
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        return self._record(self._events.Event(wall_time=time.time(), step=step, session_log=log))

    def scalars(self, row: Mapping[str, float]) -> list[bytes]:
        """Return every value with its name."""
        value = self._summaries.Summary.Value
        return [value(tag=name, simple_value=number).SerializeToString() for name, number in row.items()]

    def row(self, step: int, scalars: Iterable[bytes]) -> bytes:
        """Return the record of one step."""
        value = self._summaries.Summary.Value
        summary = self._summaries.Summary(value=[value.FromString(scalar) for scalar in scalars])
        return self._record(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def drop_later(self, path: Path, step: int) -> set[bytes]:
        """Remove from a file what is later than ``step``, and return the scalars that it has at ``step``."""
        written: set[bytes] = set()
        size = 0
        with path.open("rb") as file:
            for record, event in self._kept(file, step):
                size += len(record)
                if event.step == step:
                    written.update(value.SerializeToString() for value in event.summary.value)
        if size < path.stat().st_size:
            with path.open("rb") as file:
                replace_bytes(path, (record for record, _ in self._kept(file, step)))
        return written

    def _kept(self, file: BinaryIO, step: int) -> Iterator[tuple[bytes, Any]]:
        for record in self._records(file):
            try:
                event = self._events.Event.FromString(record[_HEAD : -_CHECKSUM.size])
            except self._damage:
                return
            if event.step <= step:
                yield record, event

    def _records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield whole records up to the first one that is not."""
        while len(head := file.read(_HEAD)) == _HEAD:
            length = head[: _LENGTH.size]
            if _CHECKSUM.pack(self._checksum(length)) != head[_LENGTH.size :]:
                return
            # The other checksum is left to readers: it is Python at 11 MB/s, and a kill only ever cuts off.
            size = _LENGTH.unpack(length)[0] + _CHECKSUM.size
            rest = file.read(size)
            if len(rest) < size:
                return
            yield head + rest

    def _record(self, event: Any) -> bytes:
        data: bytes = event.SerializeToString()
        length = _LENGTH.pack(len(data))
        parts = (length, _CHECKSUM.pack(self._checksum(length)), data, _CHECKSUM.pack(self._checksum(data)))
        return b"".join(parts)


def _file_name(older: list[Path]) -> str:
    # Never a name that exists or sorts before one: the clock may be set back, or not have moved on.
    newest = max((int(match[1]) for path in older if (match := _NAME.match(path.name))), default=0)
    return f"events.out.tfevents.{max(int(time.time()), newest + 1):010d}.{platform.node()}"


def _move_into(folder: Path, paths: list[Path]) -> None:
    if paths:
        folder.mkdir()
    for path in paths:
        path.rename(folder / path.name)
