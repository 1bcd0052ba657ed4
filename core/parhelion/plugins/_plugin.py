"""Plugin: what extends a run without being the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import attrs

from parhelion.errors import InvalidValueError, PluginError
from parhelion.registry import Registry

from ._protocols import ModelView, StateView, TrainerView

__all__ = ["PLUGIN_REGISTRY", "Plugin", "UniquePluginOverrides", "create_plugin"]


@attrs.define
class UniquePluginOverrides:
    """What only one plugin of a trainer may do.

    Attributes:
        training_batch: it processes training batches.
        validation_batch: it processes validation batches.
        testing_batch: it processes test batches.
        should_training_stop: it may stop training.
    """

    training_batch: bool = False
    validation_batch: bool = False
    testing_batch: bool = False
    should_training_stop: bool = False


class Plugin(ABC):
    """Extends a run: its hooks have the names of the model's and run before them.

    To process batches or to stop training, set the flag in ``unique_overrides`` and override the method.

    Args:
        plug_id: the id under which the trainer keeps the plugin; its state is saved under it.

    Raises:
        InvalidValueError: ``plug_id`` is empty.
    """

    def __init__(self, plug_id: str) -> None:
        if not plug_id:
            raise InvalidValueError(f"plug_id is {plug_id!r}; expected a name such as 'cuda'.")
        self._plug_id = plug_id
        self._trainer: TrainerView | None = None
        self._unique_overrides = UniquePluginOverrides()

    @property
    def plug_id(self) -> str:
        """The id under which the trainer keeps this plugin."""
        return self._plug_id

    @property
    def unique_overrides(self) -> UniquePluginOverrides:
        """What this plugin does that no other one may do."""
        return self._unique_overrides

    @unique_overrides.setter
    def unique_overrides(self, overrides: UniquePluginOverrides) -> None:
        self._unique_overrides = overrides

    @property
    def trainer(self) -> Any:
        """The trainer that runs this plugin.

        Raises:
            PluginError: it is not registered in one.
        """
        return self._owner

    @trainer.setter
    def trainer(self, trainer: TrainerView) -> None:
        self._trainer = trainer

    @property
    def _owner(self) -> TrainerView:
        if self._trainer is None:
            raise PluginError(
                f"plugin {self._plug_id!r} has no trainer; attach it with trainer.register_plugin(plugin)."
            )
        return self._trainer

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train together."""
        return self._owner.is_distributed

    @property
    def map_loc(self) -> str | dict[str, str]:
        """Where loaded weights are mapped to."""
        return self._owner.map_loc

    @property
    def device(self) -> Any:
        """This rank's device."""
        return self._owner.device

    @property
    def rank(self) -> int:
        """The local rank (device id) that the plugin runs on."""
        return self._owner.local_rank

    def append_train_exceptions(self, *exceptions: type[Exception]) -> None:
        """Let these exceptions leave ``Trainer.fit``."""
        self._owner.train_exceptions.extend(exceptions)

    def append_test_exceptions(self, *exceptions: type[Exception]) -> None:
        """Let these exceptions leave ``Trainer.test``."""
        self._owner.test_exceptions.extend(exceptions)

    def configure_trainer(self, trainer: TrainerView) -> None:
        """Set properties of the trainer; called once per fit or test, before anything is built."""

    def configure_model(self, model: ModelView) -> None:
        """Set properties of the model, such as its save name; called once per fit or test."""

    @abstractmethod
    def setup(self) -> None:
        """Make everything the plugin consists of, once in each process."""

    def on_training_start(self) -> None:
        """Training is about to begin, or to go on after a resume."""

    def on_training_end(self) -> None:
        """Training has ended in order."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """The 1-based epoch begins."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """The data of the 1-based epoch is exhausted."""

    def on_training_batch_start(self, state: StateView) -> None:
        """A training step is about to run; ``state`` counts its batch."""

    def on_training_batch_end(self, state: StateView, should_log: bool = False) -> None:
        """A training step has run; ``should_log`` says that a row is printed after it."""

    def on_validation_start(self, validation_cycle: int) -> None:
        """The 1-based validation begins."""

    def on_validation_end(self, validation_cycle: int) -> None:
        """The 1-based validation has seen all its data."""

    def on_validation_batch_start(self, step: int) -> None:
        """A validation step is about to run."""

    def on_validation_batch_end(self, step: int) -> None:
        """A validation step has run."""

    def on_testing_start(self) -> None:
        """A test begins."""

    def on_testing_end(self) -> None:
        """A test has seen all its data."""

    def on_testing_batch_start(self, step: int) -> None:
        """A test step is about to run."""

    def on_testing_batch_end(self, step: int) -> None:
        """A test step has run."""

    def process_training_batch(self, batch: Any, state: StateView) -> Any:
        """Return the batch that ``train_step`` gets; asked only with ``unique_overrides.training_batch``."""
        return batch

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        """Return the batch that ``valid_step`` gets; asked only with ``unique_overrides.validation_batch``."""
        return batch

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        """Return the batch that ``test_step`` gets; asked only with ``unique_overrides.testing_batch``."""
        return batch

    def should_training_stop(self) -> bool:
        """Say whether training should end; asked only with ``unique_overrides.should_training_stop``."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should keep of this plugin."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""


PLUGIN_REGISTRY: Registry[type[Plugin]] = Registry("plugin")
"""Plugins by name. A backend adds its own when it is imported."""


def create_plugin(type_name: str, *args: Any, **kwargs: Any) -> Plugin:
    """Return a new plugin of the registered type.

    Raises:
        UnknownNameError: there is no such type.
    """
    return PLUGIN_REGISTRY.get(type_name)(*args, **kwargs)
