"""What a run tells the world, through the trackers that the options ask for."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parhelion.tracking import (
    ConsoleTracker,
    FileLog,
    JsonlHistory,
    ProgressBar,
    TensorBoardTracker,
    Tracker,
    Trackers,
    banner_text,
    read_history,
)

from ._dispatch import HookTable
from ._events import EpochEnded, EpochStarted, StepCommitted
from ._options import TrainerOptions
from ._plan import Plan
from ._source import AnySource
from ._state import TrainingState, TrainingUnit

__all__ = ["Reporting"]

_log = logging.getLogger("parhelion")


class Reporting:
    """The rows, messages and bars of one run, on the one rank that speaks.

    Args:
        options: what the user asked for.
        plan: how far the run goes.
        name: names the run's files.
        folder: the run's checkpoint folder, beside whose checkpoints the history is kept; None for none.
        speaks: whether this rank does.
    """

    def __init__(self, options: TrainerOptions, plan: Plan, name: str, folder: Path | None, *, speaks: bool) -> None:
        self.history: list[dict[str, float]] = []
        self._options = options
        self._speaks = speaks
        self._by_epoch = by_epoch = plan.unit is TrainingUnit.EPOCH
        epochs = plan.total_steps if by_epoch else None
        iterations = None if by_epoch else plan.total_steps
        self._history_path = _history_path(options, name, folder) if speaks else None
        self._bar: ProgressBar | None = None
        trackers: list[Tracker] = []
        if speaks:
            trackers.append(ConsoleTracker(epochs, iterations))
            if options.enable_progress_bar and sys.stderr is not None and sys.stderr.isatty():  # pyright: ignore[reportUnnecessaryComparison] - without a console it is None
                self._bar = ProgressBar(epochs, iterations)
                trackers.append(self._bar)
            if self._history_path is not None:
                trackers.append(JsonlHistory(self._history_path))
            if options.enable_file_logging and options.log_path is not None and not options.dry_run:
                trackers.append(FileLog(options.log_path / f"{name}.log", epochs, iterations))
            if options.enable_tensorboard and options.run_path is not None and not options.dry_run:
                trackers.append(TensorBoardTracker(options.run_path / name))
        self._trackers = Trackers(trackers)
        self._source: AnySource | None = None
        self._measured = (0.0, 0)

    def start(self, state: TrainingState | None, source: AnySource | None = None) -> None:
        """Open everything: for a fresh run (None), or for one that goes on from ``state``, whose later rows go."""
        self._trackers.start(None if state is None else state.current_iteration)
        if state is not None and self._history_path is not None:
            self.history = read_history(self._history_path)
        self._source = source
        self._measured = (time.perf_counter(), self._records(state or TrainingState()))

    def close(self) -> None:
        """Close everything."""
        self._trackers.close()

    def announce(self, facts: Mapping[str, str]) -> None:
        """Say what is about to run: as a banner, or in one line."""
        if self._options.print_banner:
            _log.info(banner_text(facts))
        else:
            _log.info(", ".join(f"{name} {text}" for name, text in facts.items()))

    def row(self, state: TrainingState, values: Mapping[str, float]) -> None:
        """Give one row to the history and the trackers."""
        now, records = time.perf_counter(), self._records(state)
        before, seen = self._measured
        self._measured = (now, records)
        speed = round((records - seen) / max(now - before, 1e-9), 1)
        row = {"epoch": state.global_epoch, **values, "samples_per_second": speed}
        if self.history and self.history[-1]["step"] == state.current_iteration:
            self.history[-1] |= row
        else:
            self.history.append({"step": state.current_iteration, **row})
        self._trackers.log(state.current_iteration, row)

    def listening(self, table: HookTable, state: TrainingState) -> HookTable:
        """Return a table of hooks with the progress bar's behind them; as it is where none is shown, so that no step
        pays for it.
        """  # noqa: D205 - one sentence that needs two lines
        bar, source = self._bar, self._source
        if bar is None or source is None:
            return table
        by_epoch = self._by_epoch
        batches = source.num_batches()
        if state.offset != 0:
            bar.begin_epoch(state.epoch + 1, batches, state.offset // source.shard.global_batch)

        def begin(epoch: int) -> None:
            bar.begin_epoch(epoch, batches)

        def count(committed: TrainingState) -> None:
            # Where the run is counted in updates, so is the bar.
            if by_epoch or committed.is_update:
                bar.update()

        own: HookTable = {EpochStarted: [begin], StepCommitted: [count], EpochEnded: [bar.end_epoch]}
        return {kind: [*table.get(kind, []), *own.get(kind, [])] for kind in [*table, *own]}

    def conclude(self, reason: str | None, before: TrainingState, after: TrainingState) -> None:
        """Say why the run ended, and how far it came."""
        if reason == "finished" and after == TrainingState():
            _log.warning("total_steps is 0, so nothing is trained; pass how many epochs or updates to train for")
            return
        where = f"epoch {after.epoch}, iteration {after.current_iteration}"
        if before.global_iteration == after.global_iteration:
            _log.info("nothing to do: the run is %s (%s); a larger total_steps goes on", reason, where)
        else:
            _log.info("the run is %s after %s", reason, where)

    def _records(self, state: TrainingState) -> int:
        return 0 if self._source is None else self._source.count_records(state)


def _history_path(options: TrainerOptions, name: str, folder: Path | None) -> Path | None:
    """Return where the history goes: beside the checkpoints it must agree with, else with the logs, else nowhere."""
    if options.dry_run:
        return None
    if folder is not None:
        return folder / "history.jsonl"
    return None if options.log_path is None else options.log_path / f"{name}.jsonl"


def show_values(values: Mapping[str, float]) -> None:
    """Say what a test has measured, on the terminal."""
    console = Trackers([ConsoleTracker()])
    console.start(None)
    _log.info("  ".join(f"{name} {value:.4g}" for name, value in values.items()))
    console.close()


def note_setting(saved: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    """Say which of the settings that may change at a resume have changed."""
    for name, value in live.items():
        if name in saved and saved[name] != value:
            _log.info(
                "%s was %s and is %s; the learning rate and total_steps are not rescaled", name, saved[name], value
            )
