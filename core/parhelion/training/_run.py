"""One run: what the loop has done for it, wired from the model, the plugins and a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parhelion.plugins import Plugin
from parhelion.seeds import derive

from ._dispatch import overridden
from ._evaluation import evaluate
from ._events import (
    Event,
    TestBatchEnded,
    TestBatchStarted,
    TestEnded,
    TestStarted,
    ValidationBatchEnded,
    ValidationBatchStarted,
    ValidationEnded,
    ValidationStarted,
)
from ._model import Model
from ._protocols import BackendParts, Verdict
from ._reporting import Reporting
from ._resume import CheckpointFolder
from ._source import Source
from ._state import TrainingState
from ._window import Window

__all__ = ["Run"]


class Run:
    """The work of one fit or test.

    Args:
        model: what is trained.
        plugins: in the order in which they were registered.
        parts: the backend's.
        seed: keys what steps draw.
        window: where the model's values go.
        facts: what a resumed run must agree with.
        setting: what it may change.
        folder: where checkpoints go; None for nowhere.
        source: the training split.
        valid_source: the validation split.
    """

    def __init__(
        self,
        model: Model,
        plugins: Sequence[Plugin],
        parts: BackendParts,
        *,
        seed: int,
        window: Window,
        facts: Mapping[str, Any] | None = None,
        setting: Mapping[str, Any] | None = None,
        folder: CheckpointFolder | None = None,
        source: Source | None = None,
        valid_source: Source | None = None,
    ) -> None:
        self._model = model
        self._plugins = plugins
        self._parts = parts
        self._seed = seed
        self._window = window
        self._facts = dict(facts or {})
        self._setting = dict(setting or {})
        self._folder = folder
        self._source = source
        self._valid_source = valid_source
        self._model_step = model.train_step
        self._saved: TrainingState | None = None
        self.best: str | None = None
        self._reporting: Reporting | None = None
        self.prepare: Callable[[Any, Any], Any] = self._preparation("training_batch", Plugin.process_training_batch)
        self.stop_asked = self._stop_question()

    def begin(self, reporting: Reporting) -> None:
        """Send rows to ``reporting`` from now on."""
        self._reporting = reporting

    # -- one batch ----------------------------------------------------------------------------------------------------

    def _preparation(self, flag: str, default: Callable[..., Any]) -> Callable[[Any, Any], Any]:
        """Return the function that places a batch and lets the one plugin that claims it process it."""
        place = self._parts.placement.place
        for plugin in self._plugins:
            process = overridden(plugin, default)
            if getattr(plugin.unique_overrides, flag) and process is not None:
                return lambda batch, at: process(place(batch), at)
        return lambda batch, _: place(batch)

    def _stop_question(self) -> Callable[[], bool] | None:
        asks = [overridden(self._model, Model.should_training_stop)]
        for plugin in self._plugins:
            if plugin.unique_overrides.should_training_stop:
                asks.insert(0, overridden(plugin, Plugin.should_training_stop))
        answers = [ask for ask in asks if ask is not None]
        return (lambda: any(ask() for ask in answers)) if answers else None

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Train on one batch and keep what it returned."""
        self._window.iteration = state.global_iteration
        outcome = self._model_step(batch, state)
        if outcome is not None:
            self._window.add(outcome)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def collect(self) -> dict[str, float]:
        """Return the values since the last print."""
        for name, value in self._model.row_values().items():
            self._window.log(name, value, "last")
        return self._window.flush()

    def report(self, state: TrainingState, row: Mapping[str, float]) -> None:
        """Give one row of values to the trackers."""
        if self._reporting is not None:
            self._reporting.row(state, row)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def validate(self, state: TrainingState) -> Iterator[Event]:
        """Run the validation without moving the training's random streams."""
        self._window.fold()
        cycle = state.validation_cycles + 1
        yield from self._evaluation(
            derive(self._seed, "validation", cycle),
            self._valid_source,
            self._preparation("validation_batch", Plugin.process_validation_batch),
            self._model.valid_step,
            (ValidationStarted(cycle), ValidationBatchStarted, ValidationBatchEnded, ValidationEnded(cycle)),
        )

    def test(self, source: Source) -> Iterator[Event]:
        """Run the test."""
        yield from self._evaluation(
            derive(self._seed, "test"),
            source,
            self._preparation("testing_batch", Plugin.process_testing_batch),
            self._model.test_step,
            (TestStarted(), TestBatchStarted, TestBatchEnded, TestEnded()),
        )

    def _evaluation(
        self,
        seed: int,
        source: Source | None,
        prepare: Callable[[Any, int], Any],
        step: Callable[[Any, int], Any],
        events: tuple[Event, Callable[[int], Event], Callable[[int], Event], Event],
    ) -> Iterator[Event]:
        if source is None:
            return
        started, batch_started, batch_ended, ended = events
        self._evaluated = Window(self._parts.placement, guard=False)
        self._model.attach(self._model.trainer, self._evaluated)
        self._model.eval()
        try:
            with self._parts.randomness.aside(), self._model.evaluating():
                self._parts.randomness.seed(seed)
                self._model.start_evaluation()
                yield started
                yield from evaluate(source, prepare, step, self._evaluated, batch_started, batch_ended)
                for name, value in self._model.finish_evaluation().items():
                    self._evaluated.log(name, value, "last")
                yield ended
        finally:
            self._model.train()
            self._model.attach(self._model.trainer, self._window)

    def evaluated(self, prefix: str) -> dict[str, float]:
        """Return the values of the evaluation that just ended."""
        return {f"{prefix}_{name}": value for name, value in self._evaluated.flush().items()}

    def judge(self) -> Verdict:
        """Return what the validation came to."""
        values = self.evaluated("valid")
        self._model.note_validation(values)
        improved = self._model.have_metrics_improved()
        return Verdict(improved, improved and self._model.monitor is not None, values)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, state: TrainingState, *, is_best: bool, is_final: bool) -> None:
        """Write a checkpoint of a committed state, unless the model declines or it is there already."""
        self._window.fold()
        if self._folder is None or (is_final and state == self._saved) or not self._model.should_save_checkpoint():
            return
        if is_best:
            self.best = self._checkpoint_name(self._folder, state)
        self.write(state, self._folder)
        self._saved = state

    def write(self, state: TrainingState, folder: CheckpointFolder, name: str | None = None) -> Path:
        """Write a checkpoint into a folder, under its usual name if none is given."""
        name = self._checkpoint_name(folder, state) if name is None else name
        kept = [] if self.best is None else [self.best]
        return folder.save(state, self.snapshot(state), name=name, protect=kept)

    def _checkpoint_name(self, folder: CheckpointFolder, state: TrainingState) -> str:
        return self._model.append_metadata_to_chkpt_name(folder.name_for(state))

    def snapshot(self, state: TrainingState) -> dict[str, Any]:
        """Return everything that a resumed run needs, as one tree."""
        return {
            "state": state,
            "model": self._model.state_dict(),
            "plugins": {plugin.plug_id: plugin.state_dict() for plugin in self._plugins},
            # One entry for each rank: every process goes on with its own streams.
            "randomness": {str(self._parts.world.rank): self._parts.randomness.capture()},
            "window": self._window.state_dict(),
            "facts": self._facts,
            "setting": self._setting,
            "best": self.best,
        }

    def restore(self, tree: Mapping[str, Any]) -> TrainingState:
        """Continue from what :meth:`snapshot` returned; the random streams last, so that nothing moves them."""
        self._model.load_state_dict(tree["model"])
        for plugin in self._plugins:
            if plugin.plug_id in tree["plugins"]:
                plugin.load_state_dict(tree["plugins"][plugin.plug_id])
        self._window.load_state_dict(tree["window"])
        self.best = tree["best"]
        self._parts.randomness.restore(tree["randomness"][str(self._parts.world.rank)])
        state: TrainingState = tree["state"]
        self._saved = state
        return state
