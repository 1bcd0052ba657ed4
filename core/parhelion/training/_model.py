"""Model: the hooks a user fills in, on any backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

from parhelion.errors import CheckpointMismatchError, InvalidValueError, ParhelionError

from ._attributes import Attributes, mark_array, put_array, put_attributes
from ._merging import merge_metric
from ._metrics import AnyMetric
from ._state import TrainingState
from ._stateful import (
    SCALARS,
    gather_state,
    generator_state,
    has_state,
    is_generator,
    is_stateful,
    restore_generator,
    scatter_state,
)
from ._window import Reduce, Window

if TYPE_CHECKING:
    from ._weights import WeightMap

__all__ = ["Model"]


class _Owner(Protocol):
    """What a model asks of its trainer."""

    @property
    def device(self) -> Any: ...
    @property
    def rank(self) -> int: ...
    @property
    def is_distributed(self) -> bool: ...


class Model(ABC):
    """What is trained: its parts, its steps, and what to do at each moment of a run.

    Override :meth:`setup` and :meth:`train_step`, and any other hook. Saved and restored without a word are

    * what :meth:`setup` assigns to ``self`` and has ``state_dict`` and ``load_state_dict`` (modules, optimizers,
      schedulers, metrics), and random generators, also in lists and dicts;
    * attributes that change later and are numbers, strings, None, arrays, or lists, tuples and dicts with an array in
      them: counters, best values, running means, hidden states.

    Override :meth:`state_dict` and :meth:`load_state_dict` for anything else.

    Steps return None, a scalar loss, or a mapping of scalars; :meth:`log` adds one. Return fresh values: they are read
    later, when a print asks.

    Args:
        save_name: names the folder of this model's checkpoints.

    Attributes:
        weight_map: how names and layouts of weights map to another backend's, to go on from its checkpoints.
        monitor: the validation value that says which checkpoint is the best; None for none. Set, it is saved whenever
            :meth:`have_metrics_improved` says yes, and kept.
        state_versions: the form of what of the state has versions, by name; see
            :func:`parhelion.checkpoint.register_upgrade`.
        validated: the values of the last validation, there before :meth:`have_metrics_improved` is asked.

    Raises:
        InvalidValueError: ``save_name`` is empty or no folder name.
    """

    def __init__(self, save_name: str) -> None:
        if not save_name or save_name in {".", ".."} or "/" in save_name or "\0" in save_name:
            raise InvalidValueError(
                f"save_name is {save_name!r}; expected a name that can be a folder, such as 'digits'."
            )
        self._save_name = save_name
        self._trainer: _Owner | None = None
        self._window: Window | None = None
        self._attributes: Attributes | None = None
        self.weight_map: WeightMap | None = None
        self.state_versions: Mapping[str, int] = {}
        self.monitor: str | None = None
        self.monitor_mode: Literal["min", "max"] = "min"
        self.validated: dict[str, float] = {}

    # -- who and where ------------------------------------------------------------------------------------------------

    @property
    def save_name(self) -> str:
        """Name of the folder of this model's checkpoints; a plugin may set another one in ``configure_model``."""
        return self._save_name

    @save_name.setter
    def save_name(self, name: str) -> None:
        self._save_name = name

    @property
    def trainer(self) -> Any:
        """The trainer that runs this model.

        Raises:
            ParhelionError: there is none yet.
        """
        return self._owner

    @property
    def _owner(self) -> _Owner:
        if self._trainer is None:
            raise ParhelionError(
                f"model {self.save_name!r} has no trainer; it has one from Trainer.fit, test or predict on, "
                "so use it in setup and in the hooks, not in __init__."
            )
        return self._trainer

    @property
    def device(self) -> Any:
        """This rank's device."""
        return self._owner.device

    @property
    def rank(self) -> int:
        """This process among all ranks, from 0."""
        return self._owner.rank

    @property
    def is_distributed(self) -> bool:
        """Whether several processes train together."""
        return self._owner.is_distributed

    def attach(self, owner: _Owner, window: Window) -> None:
        """Bind the model to its trainer and to where its logged values go; the trainer calls this."""
        self._trainer = owner
        self._window = window

    def log(self, name: str, value: Any, reduce: Reduce = "mean") -> None:
        """Add a scalar to the row of the next print, or of the running validation or test.

        Args:
            name: what the row calls it.
            value: a number or a scalar array; it stays on its device until the row is made.
            reduce: over the iterations since the last row: "mean", "sum" or "last".

        Raises:
            ParhelionError: no trainer runs this model.
        """
        if self._window is None:
            raise ParhelionError(
                f"{name!r} was logged outside a run; log in the steps and hooks of Trainer.fit or test."
            )
        self._window.log(name, value, reduce)

    def merged(self, metric: AnyMetric) -> AnyMetric:
        """Return a metric that has counted what ``metric`` has on every rank; each rank must ask.

        ``self.merged(self.accuracy).compute()`` in ``on_validation_end`` is the accuracy over all records of the
        validation. It is ``metric`` itself on one rank, and where ranks compute as one.

        Raises:
            InvalidTypeError: it cannot be merged.
            ParhelionError: no trainer runs this model.
        """
        if self._window is None:
            raise ParhelionError("a metric was merged outside a run; do so in the hooks of Trainer.fit or test.")
        return merge_metric("metric", metric, self._window.world)

    # -- parts --------------------------------------------------------------------------------------------------------

    def start_setup(self) -> None:
        """Forget what an earlier :meth:`setup` made, for classes that keep it elsewhere than where it was assigned."""

    @abstractmethod
    def setup(self, fast_init: bool = False) -> None:
        """Make everything the model consists of, once in each process.

        Args:
            fast_init: the model will only be tested, so optimizers and the like can be left out.
        """

    def finish_setup(self, fast_init: bool = False) -> None:
        """Check and complete what :meth:`setup` made; a backend's short way places it on the device here."""

    def train(self) -> None:
        """Switch to training mode."""

    def eval(self) -> None:
        """Switch to evaluation mode."""

    def evaluating(self) -> AbstractContextManager[Any]:
        """Return the context that evaluation runs in (torch: without gradients)."""
        return nullcontext()

    # -- steps --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def train_step(self, batch: Any, state: TrainingState) -> Any:
        """Train on one batch.

        Args:
            batch: what the loader made of the records, on this rank's device.
            state: the state that counts this batch. Multiply the loss with ``state.loss_weight`` and step the optimizer
                when ``state.is_update``: with accumulation a group of batches is one update.

        Returns:
            None, a scalar loss, or a mapping from names to scalars.
        """

    def train_steps(self, batches: Sequence[Any], states: Sequence[TrainingState]) -> Any:
        """Train on several batches in one call, for backends that can (``steps_per_execution``).

        Args:
            batches: as the loader made them, or placed, where a plugin has processed them.
            states: the state that counts each.

        Returns:
            None, a vector of losses, or a mapping from names to vectors: an element for each batch.
        """

    def can_train_together(self) -> bool:
        """Return whether :meth:`train_steps` is there."""
        return False

    def valid_step(self, batch: Any, step: int) -> Any:
        """Validate on one batch, the ``step``-th of the pass; returns what :meth:`train_step` may return."""

    def test_step(self, batch: Any, step: int) -> Any:
        """Test on one batch, the ``step``-th of the pass; returns what :meth:`train_step` may return."""

    def idle_step(self, step: int) -> None:
        """Do what other ranks wait for while they evaluate the ``step``-th batch, of which this one has no record.

        Nothing, unless the forward pass takes part in a computation over all ranks, as that of a sharded module does.
        Nothing is counted, and hooks are called as for any step.
        """

    def predict_step(self, batch: Any, step: int) -> Any:
        """Return the model's output for one batch.

        Raises:
            ParhelionError: the model does not define it.
        """
        raise ParhelionError(f"{type(self).__name__} defines no predict_step; define it to use Trainer.predict.")

    # -- whole passes: for classes that write models' code, such as LossModel; users have the moments below -----------

    def row_values(self) -> Mapping[str, Any]:
        """Return values for the row of a print that no step logs, such as the learning rate."""
        return {}

    def start_evaluation(self) -> None:
        """Forget the metrics of the pass before."""

    def finish_evaluation(self) -> Mapping[str, Any]:
        """Return the metrics of a whole pass."""
        return {}

    def note_validation(self, values: dict[str, float]) -> None:
        """Take the values of a validation, before :meth:`have_metrics_improved` is asked."""
        self.validated = values

    # -- moments ------------------------------------------------------------------------------------------------------

    def on_training_start(self) -> None:
        """Training is about to begin, or to go on after a resume.

        What this does to anything that is saved is undone in a resumed run, where the checkpoint's state is put back
        afterwards; what it draws at random is the same each time and moves no stream.
        """

    def on_training_end(self) -> None:
        """Training has ended in order."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """The 1-based epoch begins; not called again by a resume in mid-epoch."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """The data of the 1-based epoch is exhausted."""

    def on_training_batch_start(self, state: TrainingState) -> None:
        """A training step is about to run; ``state`` counts its batch."""

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """A training step has run; ``should_log`` says that a row is printed after it."""

    def on_validation_start(self, validation_cycle: int) -> None:
        """The 1-based validation begins."""

    def on_validation_end(self, validation_cycle: int) -> None:
        """The 1-based validation has seen all its data; values logged here belong to its row."""

    def on_validation_batch_start(self, step: int) -> None:
        """A validation step is about to run."""

    def on_validation_batch_end(self, step: int) -> None:
        """A validation step has run."""

    def on_testing_start(self) -> None:
        """A test begins."""

    def on_testing_end(self) -> None:
        """A test has seen all its data; values logged here belong to its row."""

    def on_testing_batch_start(self, step: int) -> None:
        """A test step is about to run."""

    def on_testing_batch_end(self, step: int) -> None:
        """A test step has run."""

    # -- decisions ----------------------------------------------------------------------------------------------------

    def have_metrics_improved(self) -> bool:
        """Say whether the validation that just ended is an improvement; asked once after each."""
        return True

    def should_training_stop(self) -> bool:
        """Say whether training should end; asked once after every update, and when a run that it ended goes on."""
        return False

    def needs_validation(self) -> bool:
        """Say whether training goes by values of validations."""
        return self.monitor is not None

    def should_save_checkpoint(self) -> bool:
        """Say whether a checkpoint that is due should be written."""
        return True

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part by the name of its attribute."""
        return {
            name: gather_state(value, self.is_stateful_part, self.take_state)
            for name, value in self.stateful_parts().items()
        }

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Continue from what :meth:`state_dict` returned.

        Args:
            state_dict: state by attribute name.
            fast_init: the model was set up for testing only, so state without an attribute is passed over.

        Raises:
            CheckpointMismatchError: a part of the state is missing here, one here has no state there, or one does not
                fit. Nothing was changed.
        """
        parts = self.stateful_parts()
        unknown, missing = sorted(set(state_dict) - set(parts)), sorted(set(parts) - set(state_dict))
        if missing or (unknown and not fast_init):
            raise CheckpointMismatchError(
                f"the saved model has the parts {sorted(state_dict)} and {type(self).__name__} has {sorted(parts)}; "
                "expected the same. Build the model as it was when it was saved."
            )
        for give in (self.check_state, self.give_state):
            self.visit_parts(state_dict, give)

    def visit_parts(self, state_dict: Mapping[str, Any], give: Callable[[str, Any, Any], None]) -> None:
        """Call ``give`` with the place, the part and the state of every part whose attribute has state.

        Raises:
            CheckpointMismatchError: a list or dictionary has other entries.
        """
        for name, value in self.stateful_parts().items():
            if name in state_dict:
                scatter_state(name, value, state_dict[name], self.is_stateful_part, give)

    def stateful_parts(self) -> dict[str, Any]:
        """Return every attribute that is a part, or a container with one in it, by name."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in ("_trainer", "_window", "_attributes") and has_state(value, self.is_stateful_part)
        }

    def is_stateful_part(self, value: Any) -> bool:
        """Return whether something has state that a checkpoint must hold."""
        return is_stateful(value) or is_generator(value)

    def take_state(self, part: Any) -> Any:
        """Return the state of one part."""
        return generator_state(part) if is_generator(part) else part.state_dict()

    def check_state(self, where: str, part: Any, state: Any) -> None:
        """Raise CheckpointMismatchError if a state, saved at the place called ``where``, is not one of this part."""

    def give_state(self, where: str, part: Any, state: Any) -> None:
        """Give one part its state back."""
        if is_generator(part):
            restore_generator(part, state)
        else:
            part.load_state_dict(state)

    # -- attributes: for backends, which know their arrays ------------------------------------------------------------

    def watch_attributes(self) -> None:
        """From now on, know which attributes change; the trainer calls this once everything is set up."""
        self._attributes = Attributes(lambda: {"": self}, self.mark_value)

    def changed_attributes(self) -> dict[str, Any]:
        """Return the attributes that the run has changed, for the checkpoint."""
        return {} if self._attributes is None else self._attributes.changed()

    def put_attributes(self, state: Mapping[str, Any], fast_init: bool = False) -> None:
        """Put back what :meth:`changed_attributes` returned.

        Raises:
            CheckpointMismatchError: one belongs to an object that this model has not, and ``fast_init`` is False.
        """
        put_attributes({"": self}, state, self.put_value, strict=not fast_init)

    def put_foreign_attributes(self, state: Mapping[str, Any]) -> None:
        """Put back the numbers and strings among the attributes that another backend's model had, where this has them.

        Arrays in attributes stay behind: nothing says how they would map.
        """
        for name, (_, value) in state.get("own", state).get("", {}).items():
            if name in vars(self) and type(value) in SCALARS:
                vars(self)[name] = value

    def mark_value(self, value: Any) -> Hashable | None:
        """Return what tells one content of an array from another; None for what is no array to be kept."""
        return mark_array(value)

    def put_value(self, present: Any, saved: Any) -> Any:
        """Return what an attribute becomes, given what it is (None if it had been replaced) and what it was."""
        return put_array(present, saved)

    def load_weights(self, state_dict: dict[str, Any]) -> None:
        """Take only the weights out of what :meth:`state_dict` returned, for a run that begins with them.

        Raises:
            CheckpointMismatchError: they do not fit.
        """
        self.load_state_dict(state_dict, fast_init=True)

    def portable_state(self) -> dict[str, Any] | None:
        """Return what a model on another backend can go on from: ``weights``, ``average`` and ``moments`` by name.

        None, unless overridden: such a checkpoint opens on this backend only.
        """
        return None

    def load_portable(self, state: dict[str, Any] | None, backend: str, num_updates: int) -> None:
        """Continue from what :meth:`portable_state` returned on another backend.

        Args:
            state: weights by the writer's names, in its layouts.
            backend: the writer's name.
            num_updates: updates that the run had made.

        Raises:
            CheckpointMismatchError: nothing says how names and layouts map, or they do not fit. Nothing was changed.
        """
        raise CheckpointMismatchError(
            f"the checkpoint was written on {backend} and nothing says which of its weights are which of "
            f"{type(self).__name__}'s; expected a LossModel on both sides, and its weight_map here. "
            "Set self.weight_map = parhelion.weights.WeightMap({...}), or go on with the backend that wrote it."
        )

    def trained_state_dict(self) -> dict[str, Any]:
        """Return what is needed to use the trained model; everything, unless overridden."""
        return self.state_dict()

    def load_for_testing(self) -> None:
        """Load weights from elsewhere when a test finds neither trained weights in memory nor a checkpoint."""

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        """Return the name of a checkpoint, with anything added behind it."""
        return chkpt_name

    def describe(self) -> Mapping[str, str]:
        """Return facts for the summary at the start of a run, such as the number of parameters."""
        return {}
