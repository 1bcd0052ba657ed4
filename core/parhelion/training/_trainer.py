"""Trainer: wires a plan, a model, its data, plugins, trackers and checkpoints, and drains the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from parhelion.checkpoint import Place, as_place
from parhelion.data import DataLoaderParams, DataModule, DatasetSplit
from parhelion.errors import InvalidTypeError, InvalidValueError, ParhelionError
from parhelion.plugins import Plugin
from parhelion.processes import is_overdue
from parhelion.seeds import derive

from ._calls import FAILED, LEAVE, SAVE
from ._dispatch import hook_table, tell
from ._events import Event, StepCommitted
from ._loop import Loop
from ._model import Model
from ._reporting import show_values
from ._resume import check_facts, find_checkpoint, give_weights, load_run
from ._run import Run
from ._starter import Outcome, Starter
from ._state import TrainingState
from ._together import check_agreement, fail_together
from ._trainer_parts import TrainerParts

__all__ = ["Trainer"]

_log = logging.getLogger("parhelion")


class Trainer(TrainerParts):
    """Trains, validates and tests a model; a run that is stopped and started again is the run that never stopped.

    A backend's ``Trainer`` makes the two arguments from the ones that users know.

    Args:
        options: what the user decided.
        parts: what the backend brings.
    """

    # -- what users call ----------------------------------------------------------------------------------------------

    def register_plugin(self, plugin: Plugin) -> None:
        """Attach a plugin; attaching the same object again changes nothing.

        Raises:
            DuplicatePluginError: (a KeyError) another plugin has its id.
            PluginConflictError: (a ValueError) another plugin claims one of its unique overrides.
        """
        self._plugins[plugin.plug_id] = plugin

    def fit(
        self,
        model: Model,
        datamodule: DataModule,
        *,
        resume: str | Path = "auto",
        init_from: str | Path | None = None,
        allow_changes: Collection[str] = (),
    ) -> bool:
        """Train to the end of the plan, from the newest good checkpoint if there is one.

        Wrong arguments and refused checkpoints raise. Once training has begun, an exception listed in
        ``train_exceptions`` leaves; any other is logged with its traceback, kept in ``error``, and the result is False.

        Args:
            model: what to train.
            datamodule: its data.
            resume: "auto", "must", "never", or the path of a checkpoint.
            init_from: a checkpoint whose weights a fresh run begins with.
            allow_changes: facts of the checkpoint that may differ: "model", "random_seed", "data_seed", "sampler",
                "sampler_settings", "order_version", "data_length", "data_fingerprint", "accumulation_steps"; "stream"
                also lets an epoch begin again whose middle a stream cannot find.

        Returns:
            True when the run is done: finished or stopped early, now or before.

        Raises:
            InvalidValueError: the plan needs a split that the data module has not, or an argument is wrong.
            CheckpointMismatchError: the checkpoint belongs to another experiment.
            CheckpointError: a checkpoint named by path cannot be used.
        """

        def train() -> bool:
            if (starter := self._parts.starter) is not None:
                self._outcome = self._carried = None
                rest = {"resume": resume, "init_from": init_from, "allow_changes": allow_changes}
                outcome = self._outcome = self._run_elsewhere(starter, "fit", model, datamodule, **rest)
                self.stop_reason, self.history = outcome.stop_reason, outcome.history
                self._carried = None if outcome.trained is None else (model, outcome.trained)
                return outcome.result()
            for _ in self._train(model, datamodule, resume, init_from, allow_changes):
                pass
            return self.stop_reason in ("finished", "early_stop")

        return self._concluded(train, self._train_exceptions)

    def steps(
        self,
        model: Model,
        datamodule: DataModule,
        *,
        resume: str | Path = "auto",
        init_from: str | Path | None = None,
        allow_changes: Collection[str] = (),
    ) -> Iterator[TrainingState]:
        """Train as :meth:`fit` does, handing control back after every batch, or chunk of batches trained in one call.

        Exceptions leave. Abandoning the iteration ends the run where it is, without a last checkpoint.

        Yields:
            The committed state after each of them, with everything that was due at it done.
        """
        if self._parts.starter is not None:
            raise InvalidValueError(
                "steps was called on a trainer that starts its own processes, in which the steps would be; expected "
                "one that trains in this process. Start the program with torchrun, or give one GPU and no "
                "num_processes."
            )
        for event in self._train(model, datamodule, resume, init_from, allow_changes, {StepCommitted}):
            if isinstance(event, StepCommitted):
                self._is_between_steps = True
                yield event.state
                self._is_between_steps = False

    def test(self, model: Model, datamodule: DataModule) -> bool:
        """Test with the weights in memory if this trainer has just fitted this model, else the newest good checkpoint,
        else what ``model.load_for_testing`` loads.

        Returns:
            True when the test is done; its values are in ``test_results``.

        Raises:
            InvalidValueError: there is no test split.
        """  # noqa: D205 - one sentence that needs two lines

        def examine() -> bool:
            if (starter := self._parts.starter) is not None:
                outcome = self._run_elsewhere(starter, "test", model, datamodule)
                self.test_results = outcome.test_results
                return outcome.result()
            with self._session(model, datamodule, fast_init=True) as window:
                source = self._source(datamodule.test_dataloader(), "test")
                self._load_weights(model)
                run = Run(model, self._plugin_list(), self._parts, seed=self.random_seed, window=window)
                table = hook_table(self._plugin_list(), model)
                self._begun = True
                for event in run.test(source):
                    tell(table, event)
                self.test_results = run.evaluated("test")
                if self.rank == 0:
                    show_values(self.test_results)
            return True

        return self._concluded(examine, self._test_exceptions)

    def predict(self, model: Model, datamodule: DataModule) -> list[Any]:
        """Return the model's ``predict_step`` for every batch of the test split that this process gets, in order.

        Raises:
            InvalidValueError: there is no test split.
            ParhelionError: the model defines no ``predict_step``.
        """
        with self._session(model, datamodule, fast_init=True) as window:
            source = self._source(datamodule.test_dataloader(), "predict")
            self._load_weights(model)
            return Run(model, self._plugin_list(), self._parts, seed=self.random_seed, window=window).predict(source)

    def save_checkpoint(self, path: str | Path | None = None) -> Place:
        """Write a checkpoint of the committed state: after a fit, or between the steps of :meth:`steps`.

        Args:
            path: where the checkpoint goes; under ``chkpt_root`` with its usual name if None.

        Returns:
            The checkpoint's folder.

        Raises:
            InvalidValueError: ``path`` is None and there is no ``chkpt_root``.
            CheckpointError: it cannot be written, or the run has ended and another one is in its folder.
            ParhelionError: nothing has been fitted, or a step or an accumulation group is half done, so that a run
                resumed from here would differ.
        """
        if self._parts.starter is not None:
            raise ParhelionError(
                "save_checkpoint was called outside of the processes that the trainer starts, in which the run is; "
                "expected no call here. Pass chkpt_root: fit leaves a last checkpoint there."
            )
        if self._run is None or self._loop is None:
            raise ParhelionError("there is nothing to save yet; call fit or steps first.")
        if not self._is_between_steps:
            raise ParhelionError(
                "save_checkpoint was called inside a step or a hook, or after one that failed, where the state is half "
                "made. Save between the steps of trainer.steps(...), after fit, or with chkpt_every_iterations."
            )
        if not self._loop.state.is_update:
            raise ParhelionError(
                "save_checkpoint was called in the middle of an accumulation group, whose gradients no checkpoint "
                "holds. Save where state.is_update is True."
            )
        folder, name = self._folder(self._run.model), None
        if path is not None:
            place = as_place(path)
            folder, name = self._folder_at(place.parent, self._run.model), place.name
        if folder is None:
            raise InvalidValueError(
                "path is None and the trainer has no chkpt_root; expected one of them. Pass a path."
            )
        with ExitStack() as stack:
            if path is None and not self._is_locked:  # after the run, when another one may have begun
                self._lock(folder, None, stack)
            written = self._run.write(self._loop.state, folder, name)
            self._run.finish_saving()
        return written

    def request_stop(self, reason: str = "interrupted") -> None:
        """End the running fit after its current update, with a last checkpoint.

        Args:
            reason: what ``stop_reason`` will be.

        Raises:
            InvalidTypeError: ``reason`` is no text.
            InvalidValueError: it is a word by which the loop is told something else.
        """
        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
            raise InvalidTypeError(f"reason is {reason!r}; expected text. Leave it out for 'interrupted'.")
        if reason in (SAVE, LEAVE, FAILED):
            raise InvalidValueError(f"reason is {reason!r}, which means something else; expected another word.")
        if self._loop is not None:
            self._loop.calls.ask(reason)

    def create_dataloader(self, dataset: Any, split: DatasetSplit, params: DataLoaderParams) -> tuple[Any, Any]:
        """Return this backend's loader and sampler; the data module asks for it."""
        return self._parts.create_dataloader(dataset, split, params)

    # -- a whole run --------------------------------------------------------------------------------------------------

    def _concluded(self, body: Callable[[], bool], allowed: list[type[Exception]]) -> bool:
        """Run ``body``; turn what it raises into a result, once it has begun."""
        self.error, self._begun = None, False
        try:
            return body()
        except Exception as error:
            overdue = is_overdue(error)
            self.error, self.stop_reason = error, "preempted" if overdue else "error"
            refused = isinstance(error, ParhelionError) and not self._begun and not overdue
            if refused or isinstance(error, tuple(allowed)):
                raise
            if overdue:
                _log.warning("the run ends with another process, and goes on from its last checkpoint: %s", error)
            else:
                _log.exception("the run ended with an error")
            return False

    def _run_elsewhere(self, starter: Starter, task: str, model: Model, datamodule: DataModule, **rest: Any) -> Outcome:
        """Return what a call came to in processes of its own."""
        self._model, self._datamodule = model, datamodule
        self._begun = True  # an error by which there is no outcome is no refusal
        outcome = starter.run(self, task, model, datamodule, rest)
        self._begun = outcome.has_begun
        return outcome

    def _train(
        self,
        model: Model,
        datamodule: DataModule,
        resume: str | Path,
        init_from: str | Path | None,
        allow_changes: Collection[str],
        wanted: Collection[type[Event]] = (),
    ) -> Iterator[Event]:
        self.error, self.stop_reason, self._begun = None, None, False
        self._fitted, self._is_between_steps = None, False
        with ExitStack() as stack:
            calls = self._open_calls()
            saving = self._open_saving(calls)
            stack.enter_context(self._listening(calls, saving))
            window = stack.enter_context(self._session(model, datamodule, fast_init=False))
            folder = self._folder(model)
            self._check_options()
            self._lock(folder, saving, stack)
            stack.enter_context(saving)
            stack.enter_context(fail_together(self._parts.world, lambda: self._begun))
            checkpoint = find_checkpoint(folder, resume)
            if checkpoint is not None:
                datamodule.load_state_dict(checkpoint.tree["datamodule"])
            run, source = self._make_run(model, datamodule, window, folder, saving)
            check_facts({} if checkpoint is None else checkpoint.tree["facts"], run.facts, allow_changes)
            check_agreement(self._parts.world, {**run.facts, **run.setting})
            if init_from is not None and checkpoint is None:
                give_weights(model, load_run(init_from, self._parts.arrays, self._versions(model)), self._parts.name)
            model.watch_attributes()
            # However much the initialization drew, training begins at the same point of the streams.
            self._parts.randomness.seed(derive(self.random_seed, "steps", self.rank))
            begin = self._begin_source(source, checkpoint, allow_changes)
            calls.stop = run.stop_of(checkpoint)
            loop = Loop(plan=self._plan, state=begin, source=source, work=run, calls=calls)
            loop.chunk_size = self._parts.steps_per_execution
            loop.is_pending = checkpoint is not None and checkpoint.tree["pending"]
            self._run, self._loop = run, loop
            source.follow(lambda: self.state.position)
            table = hook_table(self._plugin_list(), model)
            events = loop.run()
            # The start is the same in every process, so the hooks of this moment come before the checkpoint's state.
            with run.starting():
                tell(table, next(events, None))
            if checkpoint is not None:
                run.restore(checkpoint.tree)
            source.announce()
            run.check_savable(begin)
            if folder is not None and self.rank == 0:
                folder.make_way(resume, checkpoint)
            reporting = self._report(run, source, checkpoint, begin, stack)
            checkpoint = None  # its arrays are as large as the model's
            table = reporting.listening(table, begin)
            loop.wanted = frozenset(table) | frozenset(wanted)
            self._begun = True
            for event in events:
                for hook in table.get(type(event), ()):
                    hook(*event)
                yield event
            run.end()
            saving.finish()
            self.stop_reason, self._fitted, self._is_between_steps = loop.reason, model, True
            reporting.conclude(loop.reason, begin, loop.state)
