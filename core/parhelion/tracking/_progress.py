"""Two bars on a terminal: the epochs of the run, the iterations of the epoch."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, TextIO

from ._line import epoch_text, one_line, rate_text, value_texts
from ._row import check_step, plain_row

if TYPE_CHECKING:
    from collections.abc import Mapping

_LABEL_WIDTH = 12
_EPOCHS = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
_EPOCHS_OPEN = "{desc} [{elapsed}]"
_ITERATIONS = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_ITERATIONS_OPEN = "{desc} {n_fmt} [{elapsed}, {rate_fmt}{postfix}]"


class ProgressBar:
    """Shows how far the run is, on a terminal; anywhere else, or if not enabled, it prints nothing.

    ::

        epoch 3/10    20%|████████▌                                  | [00:24<01:36]
        iteration     26%|██▌       | 120/468 [00:03<00:09, 38.1it/s, loss 0.1234, 2,310 samples/s]

    Between prints only :meth:`update` is called, once per iteration or for several at a time.

    Args:
        epochs: how many epochs the run has; None or infinity where no one knows.
        iterations: how many iterations the run has, if that is what it is counted in (infinity: no one
            knows). None: the second bar starts again with every epoch.
        enabled: False, on every rank but one, prints nothing.
        stream: where to; ``sys.stderr`` if None.
    """

    def __init__(
        self,
        epochs: float | None = None,
        iterations: float | None = None,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._num_epochs = epochs
        self._num_iterations = iterations
        self._enabled = enabled
        self._stream = stream
        # tqdm objects, or None while nothing is shown.
        self._epochs: Any = None
        self._iterations: Any = None
        self._first_epoch: int | None = None

    def start(self, step: int | None) -> None:
        """Draw both bars; where the run is counted in iterations, the second one begins at ``step``.

        Raises:
            InvalidValueError: ``step`` is negative.
            InvalidTypeError: ``step`` is neither None nor an integer.
        """
        done = 0 if step is None else check_step(step)
        self.close()
        stream = self._stream or sys.stderr
        if not self._enabled or stream is None or not stream.isatty():
            return
        bar = _bar_class()
        self._first_epoch = None
        shared = {"file": stream, "dynamic_ncols": True, "miniters": 1, "leave": True}
        self._epochs = bar(desc=_label("epoch"), total=self._num_epochs, **shared)
        self._iterations = bar(desc=_label("iteration"), total=self._num_iterations, initial=done, **shared)
        self._epochs.bar_format = _EPOCHS if self._epochs.total else _EPOCHS_OPEN
        self._iterations.bar_format = _ITERATIONS if self._iterations.total else _ITERATIONS_OPEN

    def begin_epoch(self, epoch: int, iterations: int | None = None, done: int = 0) -> None:
        """Name the epoch that runs now, and begin its iterations unless the bar counts those of the run.

        Args:
            epoch: its number, from 1.
            iterations: how many it has, where that is known.
            done: how many of them were done before; not 0 after a resume in mid-epoch.
        """
        if self._epochs is None:
            return
        self._epochs.set_description_str(_label(epoch_text({"epoch": epoch}, self._num_epochs)), refresh=False)
        if self._first_epoch is None:
            # What was done before this process must not count in the time that is left.
            self._first_epoch = epoch
            self._epochs.initial = epoch - 1
        self._show_epochs(epoch - 1)
        if self._num_iterations is not None:
            return
        bar = self._iterations
        bar.total = iterations
        bar.bar_format = _ITERATIONS if iterations else _ITERATIONS_OPEN
        bar.reset()
        bar.initial = bar.last_print_n = bar.n = done
        bar.refresh()

    def end_epoch(self, epoch: int) -> None:
        """Show the epoch, counted from 1, as done."""
        if self._epochs is not None:
            self._show_epochs(epoch)

    def update(self, n: int = 1) -> None:
        """Count ``n`` more iterations; drawn at most ten times a second."""
        if self._iterations is not None:
            self._iterations.update(n)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the row's ``loss`` (or its first value) and ``samples_per_second`` beside the iterations.

        Raises:
            InvalidValueError: ``step`` is negative, or a value is named ``step``.
            InvalidTypeError: ``step`` is no integer, or a value no real number.
        """
        check_step(step)
        row = plain_row(values)
        if self._iterations is None:
            return
        loss = value_texts({"loss": row["loss"]} if "loss" in row else row)[:1]
        self._iterations.set_postfix_str(", ".join(text for text in (one_line(loss), rate_text(row)) if text))

    def close(self) -> None:
        """Leave the bars as they are, and give the terminal back."""
        if self._epochs is None:
            return
        # The upper one first: the other one then moves up, and both stay in their order.
        self._epochs.close()
        self._iterations.close()
        self._epochs = self._iterations = None

    def _show_epochs(self, done: int) -> None:
        self._epochs.n = done
        self._epochs.refresh()


def _label(text: str) -> str:
    return text.ljust(_LABEL_WIDTH)


def _bar_class() -> Any:
    # Imported now: it takes 35 ms, and most processes of a run never show a bar.
    tqdm = importlib.import_module("tqdm").tqdm
    # Made on tqdm itself, so that our bars and lines written through it hold the same lock.
    tqdm.get_lock()
    # Without the thread that redraws idle bars: worker processes are forked beside it.
    return type("Bar", (tqdm,), {"monitor_interval": 0})
