"""What a person at the terminal reads: one line per print, messages, a banner."""

from __future__ import annotations

import logging
import platform
import sys
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ._line import epoch_text, one_line, rate_text, step_text, value_texts
from ._logger import LOGGER_NAME, STEP_ATTRIBUTE, RunHandler, attach, detach
from ._row import check_step, plain_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class ConsoleTracker:
    """Shows what is logged to ``logging.getLogger("parhelion")``, and every row as one line of it.

    ::

        epoch 3/10  iteration 1200  loss 0.1234  lr 1.0e-03  2,310 samples/s

    Of a row, ``epoch`` comes first, ``samples_per_second`` last, ``time`` not at all. Messages below WARNING
    go to ``sys.stdout``, the others to ``sys.stderr`` with their level in front; beside a live progress bar
    they are written above it. The handler is on the logger between ``start`` and ``close`` only, and only
    once however many consoles are started. Meanwhile other handlers that write this logger to the same
    terminal leave it to this one; handlers that write elsewhere still get everything. A level that the user
    has set on the logger is respected.

    Args:
        epochs: how many epochs the run has, where that is known and finite.
        iterations: how many iterations the run has, likewise.
    """

    def __init__(self, epochs: float | None = None, iterations: float | None = None) -> None:
        self._epochs = epochs
        self._iterations = iterations
        self._handler: _ConsoleHandler | None = None
        self._silenced: list[logging.Handler] = []

    def start(self, step: int | None) -> None:
        """Attach the handler; what an earlier part of the run showed stays on the screen.

        Raises:
            InvalidValueError: ``step`` is negative.
            InvalidTypeError: ``step`` is neither None nor an integer.
        """
        if step is not None:
            check_step(step)
        self.close()
        if any(isinstance(other, _ConsoleHandler) for other in logging.getLogger(LOGGER_NAME).handlers):
            return
        self._silenced = list(_handlers_of_the_terminal())
        for handler in self._silenced:
            handler.addFilter(_is_foreign)
        self._handler = _ConsoleHandler()
        attach(self._handler)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the row as one line.

        Raises:
            InvalidValueError: ``step`` is negative, or a value is named ``step``.
            InvalidTypeError: ``step`` is no integer, or a value no real number.
        """
        step, row = check_step(step), plain_row(values)
        texts = [
            epoch_text(row, self._epochs),
            step_text(step, self._iterations),
            *value_texts(row),
            rate_text(row),
        ]
        logging.getLogger(LOGGER_NAME).info(one_line(texts), extra={STEP_ATTRIBUTE: step})

    def close(self) -> None:
        """Take the handler off; the logger and the user's handlers are as they were."""
        if self._handler is None:
            return
        detach(self._handler)
        self._handler = None
        for handler in self._silenced:
            handler.removeFilter(_is_foreign)
        self._silenced = []


def banner_text(lines: Mapping[str, str]) -> str:
    """Return a few lines that say what is running, and where: one name and text per line, in two columns.

    Version, Python, NumPy and platform come first, then ``lines`` in the caller's order: versions of the
    backend, devices, seed, parameters, where the run goes on from.
    """
    # Looked up, not imported: the package's table is above this room, and complete only after it.
    version: str = sys.modules[__name__.partition(".")[0]].__version__
    known = {
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    shown = {name: " ".join(text.split()) for name, text in (known | dict(lines)).items()}
    width = max(map(len, shown))
    return "\n".join([f"Parhelion {version}", *(f"  {name:<{width}}  {text}" for name, text in shown.items())])


class _ConsoleHandler(RunHandler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            urgent = record.levelno >= logging.WARNING
            # Looked up now: tests and notebooks replace the streams. Without a console they are None.
            stream: TextIO | None = sys.stderr if urgent else sys.stdout
            if stream is None:
                return
            text = self.format(record)
            _write_line(f"{record.levelname.lower()}: {text}" if urgent else text, stream)
        except BrokenPipeError:
            # Whoever read (`| head`) is gone; the run goes on.
            return
        except Exception:  # noqa: BLE001 - logging's contract: a handler reports its failure, never raises it
            self.handleError(record)


def _write_line(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if getattr(tqdm, "_instances", ()):
        tqdm.write(text, file=stream)
    else:
        stream.write(f"{text}\n")
    stream.flush()


def _is_foreign(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] != LOGGER_NAME


def _handlers_of_the_terminal() -> Iterator[logging.Handler]:
    terminal = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    logger: logging.Logger | None = logging.getLogger(LOGGER_NAME)
    while logger is not None:
        for handler in logger.handlers:
            if any(getattr(handler, "stream", terminal) is one for one in terminal):
                yield handler
        logger = logger.parent if logger.propagate else None
