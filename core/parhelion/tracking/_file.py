"""The text log of a run: every message and every row, with the time."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from parhelion.errors import InvalidValueError

from ._folder import make_folder, replace_bytes, set_aside, writable
from ._line import epoch_text, one_line, rate_text, step_text, value_texts
from ._logger import LOGGER_NAME, STEP_ATTRIBUTE, RunHandler, attach, detach
from ._row import check_step, plain_row

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

# The level column of a row. No record has this level and further lines of a message are indented, so nothing
# that a user logs can pass for a row.
_ROW = "VALUES"
_ENTRY = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  (?P<level>\S+) +(?:iteration (?P<step>\d+))?")
_WRITTEN_AGAIN = (_ROW.encode(), b"INFO", b"DEBUG")


class FileLog:
    """Writes what is logged to ``logging.getLogger("parhelion")``, and every row, to a text file.

    ::

        2026-01-31 12:00:00.123  INFO     checkpoint saved: runs/mnist_epoch_2_iter_1000
        2026-01-31 12:00:01.456  VALUES   iteration 1200  epoch 3/10  loss 0.1234  lr 1.0e-03  2,310 samples/s

    A fresh start sets a file of an earlier run aside as ``<name>.1.log`` (or the next free number). A resumed
    start goes on in the same file, in a line that says after which iteration. From the first row of a later
    step on, rows and messages are dropped, for the resumed run writes them again; warnings and errors stay,
    since they may say why it had to be resumed. A line that a kill left half written is dropped too. The file
    is replaced as a whole.

    Two rows logged for one step are two lines.

    Args:
        path: the file, made with its folders where they are missing.
        epochs: how many epochs the run has, where that is known and finite.
        iterations: how many iterations the run has, likewise.
    """

    def __init__(
        self, path: str | os.PathLike[str], epochs: float | None = None, iterations: float | None = None
    ) -> None:
        self.path = Path(path)
        self._epochs = epochs
        self._iterations = iterations
        self._handler: _TextHandler | None = None

    def start(self, step: int | None) -> None:
        """Open the file, empty or without the rows after ``step``, and attach the handler.

        Raises:
            InvalidValueError: the path cannot be written to, or ``step`` is negative.
            InvalidTypeError: ``step`` is neither None nor an integer.
        """
        step = None if step is None else check_step(step)
        self.close()
        with writable("the log's path", self.path):
            make_folder(self.path.parent)
            if step is None:
                set_aside(self.path)
            elif self.path.exists():
                _drop_rows(self.path, step)
            self._handler = _TextHandler(self.path)
        if step is not None:
            self._write("INFO", f"resumed after iteration {step}")
        attach(self._handler)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the row as one line.

        Raises:
            InvalidValueError: ``step`` is negative, or a value is named ``step``.
            InvalidTypeError: ``step`` is no integer, or a value no real number.
        """
        step, row = check_step(step), plain_row(values)
        texts = [
            step_text(step, self._iterations),
            epoch_text(row, self._epochs),
            *value_texts(row),
            rate_text(row),
        ]
        self._write(_ROW, one_line(texts))

    def close(self) -> None:
        """Take the handler off and close the file."""
        if self._handler is None:
            return
        detach(self._handler)
        self._handler.close()
        self._handler = None

    def _write(self, level: str, text: str) -> None:
        if self._handler is None:
            raise InvalidValueError(f"the log {str(self.path)!r} is not open; expected start() before log().")
        # Not through the logger: the console shows a line of its own, and a level set there must not cost a
        # row.
        record = logging.LogRecord(LOGGER_NAME, logging.INFO, "", 0, text, None, None)
        record.levelname = level
        self._handler.handle(record)


class _TextHandler(logging.FileHandler, RunHandler):
    """Appends entries; says once when it cannot."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(_Format())
        self.addFilter(lambda record: not hasattr(record, STEP_ATTRIBUTE))
        self._failing = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's signature
        if self._failing:
            return
        self._failing = True
        if sys.stderr is not None:
            sys.stderr.write(f"error: the log {self.baseFilename!r} cannot be written: {sys.exc_info()[1]}\n")


class _Format(logging.Formatter):
    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s  %(levelname)-7s  %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(super().format(record).splitlines())


def _drop_rows(path: Path, step: int) -> None:
    with path.open("rb") as lines:
        kept = sum(map(len, _kept(lines, step)))
    if kept == path.stat().st_size:
        return
    with path.open("rb") as lines:
        replace_bytes(path, _kept(lines, step))


def _kept(lines: Iterable[bytes], step: int) -> Iterator[bytes]:
    late = False
    keep = True
    for line in lines:
        entry = _ENTRY.match(line)
        # A line that begins no entry goes on with the one before and shares its fate.
        if entry is not None:
            level, number = entry["level"], entry["step"]
            late = late or (level == _ROW.encode() and number is not None and int(number) > step)
            keep = not (late and level in _WRITTEN_AGAIN)
        if keep and line.endswith(b"\n"):
            yield line
