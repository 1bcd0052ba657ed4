"""The history of a run as a file: one JSON object per line, one line per print.

::

    {"step": 100, "epoch": 1, "loss": 0.6931471805599453}
    {"step": 200, "epoch": 1, "loss": "NaN"}

Every line is strict JSON. What JSON has no number for is written as in the JSON mapping of protocol buffers:
the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``. Floats are written with the digits that read back
to the same bits.
"""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from parhelion.errors import InvalidValueError

from ._folder import make_folder, set_aside, writable
from ._row import check_step, plain_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BLOCK = 1 << 16


class JsonlHistory:
    """Writes one row per step to a file; :func:`read_history` reads it back exactly.

    A fresh start sets a file of an earlier run aside as ``<name>.1.jsonl`` (or the next free number). A
    resumed start cuts the file after the last row that it keeps: rows of later steps go, and so does a line
    that a kill left half written. Only the end of the file is read for that, however long the file is.

    A row is one write to the operating system, so a killed process loses at most the row it was writing. A
    second row of the same step is merged into the first: later values win, other names stay. Rows that could
    not be written (a full disk) are kept and go out with the next one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: io.FileIO | None = None
        self._step = -1
        self._row: dict[str, float] = {}
        # The rows from byte `place` on: the last one, and before it those that a failed write still owes.
        self._place = 0
        self._tail = b""
        self._last = 0
        self._written = True

    def start(self, step: int | None) -> None:
        """Open the file: empty for a fresh run, or cut after ``step`` for one that goes on.

        Raises:
            InvalidValueError: the path cannot be written to, or ``step`` is negative.
            InvalidTypeError: ``step`` is neither None nor an integer.
        """
        step = None if step is None else check_step(step)
        self.close()
        with writable("the history's path", self.path):
            make_folder(self.path.parent)
            if step is None:
                set_aside(self.path)
            self.path.open("ab").close()
            self._file = io.FileIO(self.path, "r+")
            self._go_on(self._file, -1 if step is None else step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row, or add to the last one if it has the same step.

        Raises:
            InvalidValueError: the history is not started, ``step`` is before the last row's, or a value is
                named ``step``.
            InvalidTypeError: ``step`` is no integer, or a value no real number.
            OSError: the row could not be written; the next one tries again.
        """
        step, row = check_step(step), plain_row(values)
        if self._file is None:
            raise InvalidValueError(f"the history {str(self.path)!r} is not open; expected start() before log().")
        if step < self._step:
            raise InvalidValueError(
                f"step is {step}; expected {self._step} or later, the step of the last row "
                f"in {str(self.path)!r}. To go back, start the history again with the step to go on from."
            )
        if step == self._step:
            self._row |= row
            # Spaces over what the former row had more: one write replaces it whole.
            line = _line(step, self._row, len(self._tail) - self._last)
            self._tail = self._tail[: self._last] + line
        elif self._written:
            self._row = row
            self._place += len(self._tail)
            self._tail, self._last = _line(step, row), 0
        else:
            self._row = row
            self._last = len(self._tail)
            self._tail += _line(step, row)
        self._step = step
        self._write(self._file)

    def close(self) -> None:
        """Make the rows durable and close the file."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with file:
            if not self._written:
                self._write(file)
            os.fsync(file.fileno())

    def _go_on(self, file: io.FileIO, step: int) -> None:
        self._step, self._row, self._place, self._tail, self._last = -1, {}, 0, b"", 0
        with self.path.open("rb") as lines:
            for place, line in _lines_backward(lines):
                row = _parse(line)
                if row is None or row["step"] > step:
                    continue
                self._place, self._tail = place, line.rstrip(b"\n") + b"\n"
                self._step = cast("int", row.pop("step"))
                self._row = row
                break
        file.truncate(self._place + len(self._tail.rstrip(b"\n")))
        self._write(file)

    def _write(self, file: io.FileIO) -> None:
        self._written = False
        file.seek(self._place)
        rest = memoryview(self._tail)
        while rest:
            rest = rest[file.write(rest) :]
        self._written = True


def read_history(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Return the rows of a history, oldest first: ``step``, and exactly the values that were logged.

    A last line that a kill left half written is left out.

    Raises:
        InvalidValueError: another line is no row.
        OSError: the file cannot be read.
    """
    lines = Path(path).read_bytes().split(b"\n")
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number < len(lines):
            raise InvalidValueError(
                f"line {number} of {str(path)!r} is {line[:80]!r}; expected a JSON object with "
                "an integer 'step'. Repair or remove that line."
            )
    return rows


def _line(step: int, row: Mapping[str, float], size: int = 0) -> bytes:
    plain = {name: _plain(value) for name, value in row.items()}
    text = json.dumps({"step": step, **plain}, allow_nan=False)
    return text.encode().ljust(size - 1) + b"\n"


def _plain(value: float) -> float | str:
    if isinstance(value, int) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _parse(line: bytes) -> dict[str, float] | None:
    try:
        found: Any = json.loads(line)
    except ValueError:  # also bytes that are no UTF-8
        return None
    if not isinstance(found, dict):
        return None
    row = cast("dict[str, Any]", found)
    if type(row.get("step")) is not int:
        return None
    for name, value in row.items():
        if isinstance(value, str) and value in _SPECIAL:
            row[name] = _SPECIAL[value]
    return row


def _lines_backward(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line with its newline) from the last line to the first."""
    place = file.seek(0, os.SEEK_END)
    head = b""
    while place:
        size = min(_BLOCK, place)
        place -= size
        file.seek(place)
        # The first line of a block may begin in the block before; readlines, as splitlines cuts at \r too.
        head, *lines = io.BytesIO(file.read(size) + head).readlines()
        offset = place + len(head) + sum(map(len, lines))
        for line in reversed(lines):
            offset -= len(line)
            yield offset, line
    if head:
        yield 0, head
