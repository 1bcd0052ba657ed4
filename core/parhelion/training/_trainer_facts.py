"""What can be asked of a trainer at any time: who, where, with what, and how it went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parhelion.checkpoint import Place, Retention
from parhelion.data import DataModule
from parhelion.errors import ParhelionError
from parhelion.plugins import PluginTable
from parhelion.processes import PREEMPTED

from ._loop import Loop
from ._model import Model
from ._options import TrainerOptions
from ._protocols import BackendParts, Placement
from ._resume import RUN_VERSION, CheckpointFolder
from ._run import Run
from ._source import AnySource
from ._starter import Outcome
from ._state import TrainingState

__all__ = ["TrainerFacts"]

_EXIT_CODES = {"finished": 0, "early_stop": 0, "error": 1, "preempted": PREEMPTED, "interrupted": 130}


class TrainerFacts:
    """What a trainer knows.

    Args:
        options: what the user decided.
        parts: what the backend brings.

    Attributes:
        error: the exception that ended the last fit or test, if one did.
        stop_reason: why the last fit ended: "finished", "early_stop", "preempted", "interrupted" or "error".
        history: the rows of the run so far, in memory.
        test_results: the values of the last test.
    """

    def __init__(self, options: TrainerOptions, parts: BackendParts) -> None:
        self._options = options
        self._parts = parts
        self._plan = options.plan()
        self._plugins = PluginTable(self)
        self._train_exceptions: list[type[Exception]] = []
        self._test_exceptions: list[type[Exception]] = []
        self._model: Model | None = None
        self._datamodule: DataModule | None = None
        self._fitted: Model | None = None
        self._run: Run | None = None
        self._loop: Loop | None = None
        self._sources: list[AnySource] = []
        self._num_runs = 0
        self._outcome: Outcome | None = None
        self._carried: tuple[Model, Mapping[str, Any]] | None = None
        self._begun = False
        self._is_between_steps = self._is_locked = False
        self.error: Exception | None = None
        self.stop_reason: str | None = None
        self.test_results: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    @property
    def model(self) -> Model:
        """The model of the last fit, test or predict.

        Raises:
            ParhelionError: there was none yet.
        """
        if self._model is None:
            raise ParhelionError("the trainer has no model yet; it has one from fit, test or predict on.")
        return self._model

    @property
    def datamodule(self) -> DataModule:
        """The data module of the last fit, test or predict.

        Raises:
            ParhelionError: there was none yet.
        """
        if self._datamodule is None:
            raise ParhelionError("the trainer has no datamodule yet; it has one from fit, test or predict on.")
        return self._datamodule

    @property
    def state(self) -> TrainingState:
        """The committed state of the last fit."""
        if self._outcome is not None:
            return self._outcome.state
        return TrainingState() if self._loop is None else self._loop.state

    @property
    def local_rank(self) -> int:
        """This process among those of its machine, from 0."""
        return self._parts.world.local_rank

    @property
    def rank(self) -> int:
        """This process among all, from 0."""
        return self._parts.world.rank

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train together."""
        return self._parts.world.size > 1

    @property
    def device(self) -> Any:
        """This rank's device."""
        return self._parts.device

    @property
    def placement(self) -> Placement:
        """Where batches go and how values come back."""
        return self._parts.placement

    @property
    def accumulation_steps(self) -> int:
        """Batches per update."""
        return self._plan.accumulation_steps

    @property
    def map_loc(self) -> str | dict[str, str]:
        """Where loaded weights are mapped to."""
        return self._parts.map_loc

    @property
    def gpu_ids(self) -> list[int]:
        """Ids of the accelerators in use; empty on the CPU."""
        return self._parts.gpu_ids

    @property
    def random_seed(self) -> int:
        """The seed of initialization and steps."""
        return self._options.random_seed

    @property
    def train_exceptions(self) -> list[type[Exception]]:
        """Exceptions that leave :meth:`fit`; append to it."""
        return self._train_exceptions

    @property
    def test_exceptions(self) -> list[type[Exception]]:
        """Exceptions that leave :meth:`test`; append to it."""
        return self._test_exceptions

    @property
    def plugins(self) -> PluginTable:
        """The plugins by id; assigning to it checks as :meth:`register_plugin` does."""
        return self._plugins

    @property
    def queue(self) -> Any:
        """The queue between this process and those that the trainer starts itself; None where it starts none."""
        starter = self._parts.starter
        return self._parts.queue if starter is None else starter.queue

    @property
    def exit_code(self) -> int:
        """What a launcher should exit with: 0 done, 75 preempted and saved (requeue), 130 interrupted, 1 failed."""
        return _EXIT_CODES.get(self.stop_reason or "finished", 1)

    @property
    def best_checkpoint(self) -> Place | None:
        """The checkpoint with the best monitored value, if the model monitors one."""
        if self._outcome is not None:
            return self._outcome.best_checkpoint
        if self._run is None or self._run.best is None:
            return None
        folder = self._folder(self._run.model)
        return None if folder is None else folder.path / self._run.best

    def _name(self, model: Model) -> str:
        return self._options.run_name or model.save_name

    def _folder(self, model: Model) -> CheckpointFolder | None:
        options = self._options
        if options.chkpt_root is None or options.dry_run:
            return None
        path = options.chkpt_root / model.save_name
        retention = options.retention(model.monitor, model.monitor_mode)
        return self._folder_at(path, model, retention)

    def _folder_at(self, path: Place, model: Model, retention: Retention | None = None) -> CheckpointFolder:
        parts = self._parts
        return CheckpointFolder(path, self._name(model), retention, parts.arrays, parts.world, self._versions(model))

    @staticmethod
    def _versions(model: Model) -> dict[str, int]:
        return {"run": RUN_VERSION, **model.state_versions}
