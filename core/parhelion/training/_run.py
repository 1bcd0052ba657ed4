"""One run: what the loop has done for it, wired from the model, the plugins and a backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parhelion.checkpoint import Checkpoint, flatten
from parhelion.data import DataModule
from parhelion.plugins import Plugin
from parhelion.sampling import Position
from parhelion.seeds import derive

from ._attributes import Attributes, put_attributes
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
from ._merging import get_merging_world
from ._model import Model
from ._protocols import BackendParts, Verdict
from ._reporting import Reporting
from ._resume import CheckpointFolder, give_model
from ._source import AnySource
from ._state import TrainingState
from ._together import let_first_act
from ._window import Window

__all__ = ["Run"]

_log = logging.getLogger("parhelion")


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
        datamodule: whose state belongs to the run.
        describe_position: what to write about the data's position, for whoever reads a checkpoint.
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
        source: AnySource | None = None,
        valid_source: AnySource | None = None,
        datamodule: DataModule | None = None,
        describe_position: Callable[[Position], Mapping[str, Any]] | None = None,
    ) -> None:
        self.model = model
        self._plugins = plugins
        self._parts = parts
        self._seed = seed
        self._window = window
        self.facts = dict(facts or {})
        self.setting = dict(setting or {})
        self._folder = folder
        self._source, self._valid_source = source, valid_source
        self._datamodule = datamodule
        self._describe_position = describe_position
        self._model_step = model.train_step
        self._saved: TrainingState | None = None
        self._stop_answer = False
        self._streams: Any = None
        self._plugin_attributes = Attributes(lambda: {plugin.plug_id: plugin for plugin in plugins}, model.mark_value)
        self.best: str | None = None
        self._reporting: Reporting | None = None
        self.prepare: Callable[[Any, Any], Any] = self._preparation(
            "training_batch", Plugin.process_training_batch, trains=True
        )
        self.stop_asked = self._stop_question()

    def begin(self, reporting: Reporting) -> None:
        """Send rows to ``reporting`` from now on."""
        self._reporting = reporting

    def end(self) -> None:
        """Keep the random streams as they are: what is drawn from now on belongs to no run."""
        self._streams = self._parts.randomness.capture()

    @contextmanager
    def starting(self) -> Generator[None]:
        """Return the context of what is done at the start of training, of which a resumed run has one more.

        What is drawn in it is the same each time and moves no stream.
        """
        with self._parts.randomness.aside():
            self._parts.randomness.seed(derive(self._seed, "start"))
            yield

    # -- one batch ----------------------------------------------------------------------------------------------------

    def _preparation(self, flag: str, default: Callable[..., Any], *, trains: bool = False) -> Callable[..., Any]:
        """Return the function that places a batch and lets the one plugin that claims it process it."""
        place = self._parts.placement.place
        process = next(self._claims(flag, default), None)
        if process is None and trains and self._parts.steps_per_execution > 1:
            return _as_it_is  # nobody looks at it before the model places a chunk as a whole
        # Rows of ready batches need not divide in evaluation; with several processes each brings other ones.
        is_whole = not trains and self._parts.world.size == 1

        def prepare(batch: Any, at: Any, shared: bool = False) -> Any:
            placed = place(batch, shared=shared or is_whole)
            return placed if process is None else process(placed, at)

        return prepare

    def _claims(self, flag: str, default: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
        """Yield the plugins' own versions of a method that only one of them may have, where its flag is set."""
        for plugin in self._plugins:
            own = overridden(plugin, default)
            if own is None:
                continue
            if getattr(plugin.unique_overrides, flag):
                yield own
            else:
                _log.warning(
                    "plugin %r has a %s of its own that is not called; set %s in its unique_overrides",
                    plugin.plug_id, default.__name__, flag,
                )  # fmt: skip

    def _stop_question(self) -> Callable[[], bool] | None:
        of_model = overridden(self.model, Model.should_training_stop)
        answers = [*self._claims("should_training_stop", Plugin.should_training_stop)]
        answers += [] if of_model is None else [of_model]

        def ask_all() -> bool:
            self._stop_answer = any(ask() for ask in answers)
            return self._stop_answer

        return ask_all if answers else None

    def stop_of(self, checkpoint: Checkpoint | None) -> str | None:
        """Return "early_stop" if the model or a plugin had ended the run of a checkpoint and still would."""
        if checkpoint is None or not checkpoint.tree["stop_asked"] or self.stop_asked is None:
            return None
        self.restore(checkpoint.tree)  # they answer by what they know
        return "early_stop" if self.stop_asked() else None

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Train on one batch and keep what it returned."""
        self._window.iteration = state.global_iteration
        outcome = self._model_step(batch, state)
        if outcome is not None:
            self._window.add(outcome)

    def train_steps(self, chunk: Sequence[tuple[Any, TrainingState]]) -> None:
        """Train on the batches of a chunk in one call and keep what that returned."""
        self._window.iteration = chunk[0][1].global_iteration
        batches, states = zip(*chunk, strict=True)
        self._window.add_many(self.model.train_steps(batches, states), len(chunk))

    # -- rows ---------------------------------------------------------------------------------------------------------

    def collect(self) -> dict[str, float]:
        """Return the values since the last print."""
        for name, value in self.model.row_values().items():
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
            self.model.valid_step,
            (ValidationStarted(cycle), ValidationBatchStarted, ValidationBatchEnded, ValidationEnded(cycle)),
        )

    def test(self, source: AnySource) -> Iterator[Event]:
        """Run the test."""
        yield from self._evaluation(
            derive(self._seed, "test"),
            source,
            self._preparation("testing_batch", Plugin.process_testing_batch),
            self.model.test_step,
            (TestStarted(), TestBatchStarted, TestBatchEnded, TestEnded()),
        )

    def _evaluation(
        self,
        seed: int,
        source: AnySource | None,
        prepare: Callable[..., Any],
        step: Callable[[Any, int], Any],
        events: tuple[Event, Callable[[int], Event], Callable[[int], Event], Event],
    ) -> Iterator[Event]:
        if source is None:
            return
        started, batch_started, batch_ended, ended = events
        with self._evaluating(seed):
            self.model.start_evaluation()
            yield started
            yield from evaluate(
                source, prepare, step, self.model.idle_step, self._evaluated, batch_started, batch_ended
            )
            for name, value in self.model.finish_evaluation().items():
                self._evaluated.log(name, value, "last")
            yield ended

    @contextmanager
    def _evaluating(self, seed: int) -> Generator[None]:
        """Return the context of a pass over an evaluation split: nothing of the training moves."""
        self._evaluated = Window(self._parts.placement, guard=False, world=get_merging_world(self._parts))
        self.model.attach(self.model.trainer, self._evaluated)
        self.model.eval()
        try:
            with self._parts.randomness.aside(), self.model.evaluating():
                self._parts.randomness.seed(seed)
                yield
        finally:
            self.model.train()
            self.model.attach(self.model.trainer, self._window)

    def predict(self, source: AnySource) -> list[Any]:
        """Return what the model's ``predict_step`` makes of every batch of this rank, in order."""
        outputs: list[Any] = []

        def keep(batch: Any, step: int) -> None:
            outputs.append(self.model.predict_step(batch, step))

        prepare = self._preparation("testing_batch", Plugin.process_testing_batch)
        with self._evaluating(derive(self._seed, "predict")):
            idle_step, window = self.model.idle_step, self._evaluated
            for _ in evaluate(source, prepare, keep, idle_step, window, TestBatchStarted, TestBatchEnded):
                pass
        return outputs

    def evaluated(self, prefix: str) -> dict[str, float]:
        """Return the values of the evaluation that just ended."""
        return {f"{prefix}_{name}": value for name, value in self._evaluated.flush().items()}

    def judge(self) -> Verdict:
        """Return what the validation came to; the first rank's answer counts for all."""
        values = self.evaluated("valid")
        self.model.note_validation(values)
        improved: bool = self._parts.world.gather(self.model.have_metrics_improved())[0]
        return Verdict(improved, improved and self.model.monitor is not None, values)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, state: TrainingState, *, is_best: bool, is_final: bool) -> None:
        """Write a checkpoint of a committed state, unless the model declines or it is there already."""
        self._window.fold()
        if self._folder is None or (is_final and state == self._saved) or not self._is_save_wanted():
            return
        if is_best:
            self.best = self._checkpoint_name(self._folder, state)
        self.write(state, self._folder)
        self._saved = state

    def _is_save_wanted(self) -> bool:
        """Ask the model; the first rank's answer counts for all, since all take part in a save."""
        is_wanted: bool = self._parts.world.gather(self.model.should_save_checkpoint())[0]
        return is_wanted

    def write(self, state: TrainingState, folder: CheckpointFolder, name: str | None = None) -> Path:
        """Write a checkpoint into a folder, under its usual name if none is given; the first rank does."""
        name = self._checkpoint_name(folder, state) if name is None else name
        kept = [] if self.best is None else [self.best]
        tree = self.snapshot(state)

        def save() -> Path:
            return folder.save(state, tree, name=name, protect=kept)

        return next(iter(let_first_act(self._parts.world, save, "saving a checkpoint")), folder.path / name)

    def _checkpoint_name(self, folder: CheckpointFolder, state: TrainingState) -> str:
        return self.model.append_metadata_to_chkpt_name(folder.name_for(state))

    def check_savable(self, state: TrainingState) -> None:
        """Refuse at the start what a checkpoint could not hold; the first one may be hours away.

        Raises:
            UnsavableValueError: a value has no place in a checkpoint; names where it is.
        """
        if self._folder is not None:
            flatten(self.snapshot(state), self._parts.arrays)

    def snapshot(self, state: TrainingState) -> dict[str, Any]:
        """Return everything that a resumed run needs, as one tree."""
        streams = self._streams or self._parts.randomness.capture()
        return {
            "state": state,
            "backend": self._parts.name,
            "model": self.model.state_dict(),
            "portable": self.model.portable_state(),
            "attributes": self.model.changed_attributes(),
            "validated": self.model.validated,
            "plugins": {plugin.plug_id: plugin.state_dict() for plugin in self._plugins},
            "plugin_attributes": self._plugin_attributes.changed(),
            "datamodule": {} if self._datamodule is None else self._datamodule.state_dict(),
            # One entry for each rank: every process goes on with its own streams.
            "randomness": {str(rank): each for rank, each in enumerate(self._parts.world.gather(streams))},
            # The position says all for a map dataset; a stream has a state there.
            "stream": None if self._source is None else self._source.gather(state.position, self._parts.world.gather),
            "window": self._window.state_dict(),
            "facts": self.facts,
            "setting": self.setting,
            "position": {} if self._describe_position is None else dict(self._describe_position(state.position)),
            "stop_asked": self._stop_answer,
            "best": self.best,
        }

    def restore(self, tree: Mapping[str, Any]) -> TrainingState:
        """Continue from what :meth:`snapshot` returned; the random streams last, so that nothing moves them.

        Raises:
            CheckpointMismatchError: it is of another model.
        """
        give_model(self.model, tree, self._parts.name)
        self.model.validated = dict(tree["validated"])
        plugins = {plugin.plug_id: plugin for plugin in self._plugins}
        if lost := sorted(set(tree["plugins"]) - set(plugins)):
            _log.warning("the checkpoint has the state of plugins that are not registered now: %s", ", ".join(lost))
        put_attributes(plugins, tree["plugin_attributes"], self.model.put_value, strict=False)
        for plug_id, plugin in plugins.items():
            if plug_id in tree["plugins"]:
                plugin.load_state_dict(tree["plugins"][plug_id])
        self._window.load_state_dict(tree["window"])
        self.best = tree["best"]
        if (streams := tree["randomness"].get(str(self._parts.world.rank))) is not None:
            self._parts.randomness.restore(streams)  # a rank that is new goes on with its own
        state: TrainingState = tree["state"]
        self._saved = state
        return state


def _as_it_is(batch: Any, _: Any) -> Any:
    return batch
