"""A plugin that moves batches: what backends' device plugins have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ._plugin import Plugin, UniquePluginOverrides
from ._protocols import StateView, TrainerView

__all__ = ["BatchMover"]


class BatchMover(Plugin):
    """Moves every batch before the model's steps; a backend says how.

    Args:
        plug_id: the plugin's id, under which it registers itself.
    """

    def __init__(self, plug_id: str) -> None:
        super().__init__(plug_id)
        self.unique_overrides = UniquePluginOverrides(training_batch=True, validation_batch=True, testing_batch=True)

    def setup(self) -> None:
        """Nothing has to be made."""

    def configure_trainer(self, trainer: TrainerView) -> None:
        """Register this plugin in the trainer."""
        trainer.register_plugin(self)

    def process_training_batch(self, batch: Any, state: StateView) -> Any:
        """Return the training batch where the steps need it."""
        return self._moved(batch)

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        """Return the validation batch where the steps need it."""
        return self._moved(batch)

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        """Return the test batch where the steps need it."""
        return self._moved(batch)

    def _moved(self, batch: Any) -> Any:
        moved = self._move_collection_to_device(batch)
        # Collections may also be changed in place, as lists and dictionaries can.
        return batch if moved is None else moved

    @abstractmethod
    def _move_collection_to_device(self, batch: Any) -> Any:
        """Return a moved batch, or change it in place and return None."""
