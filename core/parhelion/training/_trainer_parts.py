"""How a run is put together: what the trainer makes for it, from what the user and the backend brought."""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from parhelion.checkpoint import Checkpoint, RunLock
from parhelion.data import DataModule
from parhelion.errors import InvalidValueError
from parhelion.plugins import Plugin
from parhelion.processes import OVERDUE, PREEMPTED

from ._calls import FAILED, Calls
from ._model import Model
from ._reporting import Reporting, note_setting
from ._resume import CheckpointFolder, give_model
from ._run import Run
from ._saving import Saving
from ._session import session
from ._signals import SignalStop
from ._source import AnySource, open_source
from ._state import TrainingState
from ._together import check_agreement, fail_together, let_first_act
from ._trainer_facts import TrainerFacts
from ._window import Window

__all__ = ["TrainerParts"]

_log = logging.getLogger("parhelion")

# What decides when processes that train together do something together.
_AGREED = (
    *("train_unit", "total_steps", "valid_frequency", "chkpt_frequency", "print_frequency", "early_stop_cycles"),
    *("chkpt_every_iterations", "limit_batches", "dry_run", "nan_guard", "stop_deadline"),
)


class TrainerParts(TrainerFacts):
    """A trainer's half that makes the parts of a run, each in a method of its own."""

    def _open_calls(self) -> Calls:
        """Return where wishes of this run are brought."""
        self._num_runs += 1
        world = self._parts.world
        # One clock for all: they differ.
        seconds = self._options.chkpt_every_seconds if world.rank == 0 else None
        return Calls(world.meeting, save_every=seconds, number=self._num_runs)

    def _open_saving(self, calls: Calls) -> Saving:
        """Return what writes the checkpoints of this run."""
        return Saving(
            self._parts.world,
            self._parts.arrays,
            in_background=self._options.chkpt_in_background,
            on_failure=lambda: calls.ask(FAILED),
        )

    def _lock(self, folder: CheckpointFolder | None, saving: Saving | None, stack: ExitStack) -> None:
        """Keep other runs out of the folder until this one has ended.

        Raises:
            CheckpointError: another run is in it; names its host and process.
        """
        if folder is not None:
            lock = RunLock(folder.path)
            let_first_act(self._parts.world, lambda: stack.enter_context(lock), "locking the run")
            stack.callback(setattr, self, "_is_locked", False)
            self._is_locked = True
            if saving is not None:
                saving.guard = lock.check if self.rank == 0 else None

    def _listening(self, calls: Calls, saving: Saving) -> SignalStop:
        """Return the context in which signals end the run."""
        return SignalStop(
            calls,
            deadline=self._options.stop_deadline,
            is_alone=not self.is_distributed,
            is_saving=lambda: saving.is_busy,
            end=self._end_process,
        )

    def _end_process(self, code: int, reason: str) -> None:
        """End this process at once, and let the others know that it was to end."""
        if code == PREEMPTED:
            self._parts.world.fail(OVERDUE)
        self._parts.world.leave_by(0.0, code, reason)

    @staticmethod
    def _begin_source(
        source: AnySource, checkpoint: Checkpoint | None, allow_changes: Collection[str]
    ) -> TrainingState:
        """Return the state that the run begins with, which is where the training data now stands.

        Raises:
            CheckpointMismatchError: the checkpoint does not say where a stream was.
        """
        state = TrainingState() if checkpoint is None else checkpoint.tree["state"]
        saved = None if checkpoint is None else checkpoint.tree.get("stream")
        return source.begin(state, saved, restart="stream" in allow_changes)

    def _check_options(self) -> None:
        """Refuse processes that would part on the way, before they do anything together.

        Raises:
            InvalidValueError: they have other arguments.
        """
        facts = {name: getattr(self._options, name) for name in _AGREED}
        facts["steps_per_execution"] = self._parts.steps_per_execution
        facts["chkpt_root"] = self._options.chkpt_root is not None
        check_agreement(self._parts.world, facts)

    def _make_run(
        self,
        model: Model,
        datamodule: DataModule,
        window: Window,
        folder: CheckpointFolder | None,
        saving: Saving,
    ) -> tuple[Run, AnySource]:
        """Return a run and the data that it trains on."""
        plan = self._plan
        source = self._source(datamodule.train_dataloader(), "train", plan.accumulation_steps)
        valid = None if plan.valid_frequency is None else self._source(datamodule.valid_dataloader(), "valid")
        if (steps := self._parts.steps_per_execution) > 1 and not model.can_train_together():
            raise InvalidValueError(
                f"steps_per_execution is {steps} and {type(model).__name__} has a train_step of its own, which takes "
                "one batch at a time; expected 1. Give a LossModel a loss to train on several in one call."
            )
        if plan.valid_frequency is None and model.needs_validation():
            _log.warning("the model waits for values of validations and valid_frequency is None; there are none")
        run = Run(
            model,
            self._plugin_list(),
            self._parts,
            seed=self.random_seed,
            window=window,
            facts=self._facts(model, datamodule, source),
            setting={"batch_size": source.shard.batch_size, "world_size": source.shard.world},
            folder=folder,
            saving=saving,
            source=source,
            valid_source=valid,
            datamodule=datamodule,
            describe_position=source.sampler.describe_position,
        )
        return run, source

    def _report(
        self, run: Run, source: AnySource, checkpoint: Checkpoint | None, begin: TrainingState, stack: ExitStack
    ) -> Reporting:
        """Say that the run begins; its rows go to the reporting that is returned."""
        model, folder = run.model, self._folder(run.model)
        # A history is appended to row by row, which no object store does.
        path = folder.path if folder is not None and isinstance(folder.path, Path) else None
        reporting = Reporting(self._options, self._plan, self._name(model), path, speaks=self.rank == 0)
        stack.callback(reporting.close)
        reporting.start(None if checkpoint is None else begin, source)
        if checkpoint is not None:
            # Only the first rank has the file.
            reporting.history[:] = self._parts.world.gather(reporting.history)[0]
        reporting.announce(self._summary(model, checkpoint))
        if checkpoint is not None:
            note_setting(checkpoint.tree["setting"], run.setting)
        run.begin(reporting)
        self.history = reporting.history
        return reporting

    @contextmanager
    def _session(self, model: Model, datamodule: DataModule, *, fast_init: bool) -> Generator[Window]:
        """Return the context in which everything is set up; a model that was just fitted stays as it is for a test."""
        is_ready = fast_init and model is self._fitted
        self._model, self._datamodule = model, datamodule
        try:
            with (
                fail_together(self._parts.world, lambda: self._begun),
                session(
                    self,
                    model,
                    datamodule,
                    self._plugins,
                    self._options,
                    self._parts,
                    fast_init=fast_init,
                    is_ready=is_ready,
                ) as window,
            ):
                yield window
        finally:
            for source in self._sources:
                source.close()
            self._sources.clear()

    def _plugin_list(self) -> list[Plugin]:
        return list(self._plugins.values())

    def _source(self, made: Any, split: str, accumulation_steps: int = 1) -> AnySource:
        """Return a split as the loop sees it."""
        source = open_source(
            made,
            split,
            accumulation_steps=accumulation_steps,
            randomness=self._parts.randomness,
            limit_batches=self._options.batch_limit(),
            aside=self._parts.randomness.aside,
        )
        self._sources.append(source)
        return source

    def _load_weights(self, model: Model) -> None:
        """Give a model that this trainer has not just fitted its weights."""
        if model is self._fitted:
            return
        if self._carried is not None and model is self._carried[0]:
            give_model(model, self._carried[1], self._parts.name, fast_init=True)
            return
        folder = self._folder(model)
        checkpoint = None if folder is None else folder.newest()
        if checkpoint is None:
            model.load_for_testing()
        else:
            give_model(model, checkpoint.tree, self._parts.name, fast_init=True)

    def _facts(self, model: Model, datamodule: DataModule, source: AnySource) -> dict[str, Any]:
        sampler = source.sampler
        params = datamodule.train_params
        return {
            "model": model.save_name,
            "random_seed": self.random_seed,
            "data_seed": sampler.seed if params is None else params.random_seed,
            "sampler": sampler.name,
            "sampler_settings": sampler.settings,
            "order_version": sampler.order_version,
            "data_length": sampler.size,
            "data_fingerprint": datamodule.train_fingerprint,
            "accumulation_steps": self._plan.accumulation_steps,
            **source.facts,
        }

    def _summary(self, model: Model, checkpoint: Checkpoint | None) -> dict[str, str]:
        return {
            **self._parts.describe(),
            "device": str(self.device),
            "seed": str(self.random_seed),
            **model.describe(),
            "start": "a fresh run" if checkpoint is None else f"resumed from {checkpoint.path}",
        }
