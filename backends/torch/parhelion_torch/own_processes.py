"""Training in processes that the trainer starts itself, one for each GPU, or several on the CPU."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from parhelion.errors import InvalidTypeError, InvalidValueError, WorldError
from parhelion.processes import SharedQueue, spawn
from parhelion.training import BackendParts, Outcome
from parhelion.training import Trainer as CoreTrainer

from .sharded import as_spread

__all__ = ["OwnProcesses", "count_processes"]


def count_processes(num_processes: Any, gpu_ids: list[int], launched_size: int) -> int:
    """Return how many processes a trainer is to start; 1 for none, since it trains in its own.

    Args:
        num_processes: what the user asks for; None for one for each GPU.
        gpu_ids: the GPUs to train on.
        launched_size: how many a launcher, or whoever made the process group, has started.

    Raises:
        InvalidTypeError: ``num_processes`` is no integer.
        InvalidValueError: it is not the number of processes that there are, or of GPUs.
    """
    if num_processes is not None and (isinstance(num_processes, bool) or not isinstance(num_processes, int)):
        raise InvalidTypeError(f"num_processes is {num_processes!r}; expected an integer >= 1, or None.")
    if num_processes is not None and num_processes < 1:
        raise InvalidValueError(f"num_processes is {num_processes}; expected 1 or more, or None.")
    if launched_size > 1:
        if num_processes not in {None, launched_size}:
            raise InvalidValueError(
                f"num_processes is {num_processes} and {launched_size} processes have been started already; expected "
                "None. Leave it out where a launcher starts the processes."
            )
        return 1
    if gpu_ids and num_processes not in {None, len(gpu_ids)}:
        raise InvalidValueError(
            f"num_processes is {num_processes} and the GPUs are {gpu_ids}; expected one process for each. Leave out "
            "num_processes, or pass use_cpu=True."
        )
    return num_processes or max(1, len(gpu_ids))


class OwnProcesses:
    """Starts processes for each fit and each test, and tells the trainer here what they came to.

    They are fresh interpreters, which do not run the script again, so it needs no ``if __name__ == "__main__"``. The
    trainer with its plugins, the model and the data module travel there as they are before ``setup``; home come the
    model's trained state and what the trainer knows. What else is to come home goes into the queue.

    Args:
        num_processes: how many.
        make_parts: returns the backend's parts in one of them.
    """

    def __init__(self, num_processes: int, make_parts: Callable[[], BackendParts]) -> None:
        self.num_processes = num_processes
        self.make_parts = make_parts
        self.own_names: frozenset[str] = frozenset()
        self.is_sending = False
        self._queue: SharedQueue | None = None

    @property
    def queue(self) -> SharedQueue:
        """What the processes put something into, and this one gets it from."""
        if self._queue is None:
            self._queue = SharedQueue()
        return self._queue

    def run(self, trainer: Any, task: str, model: Any, datamodule: Any, arguments: Mapping[str, Any]) -> Outcome:
        """Call a method of the trainer in every process; see :class:`parhelion.training.Starter`."""
        self.is_sending = True
        try:
            outcomes = spawn(_call, (trainer, task, model, datamodule, dict(arguments)), self.num_processes)
        except WorldError as error:
            ended = error.__cause__
            if not isinstance(ended, _EndedError):
                raise
            error.__cause__ = None
            return _failed(ended.args[0], error)
        finally:
            self.is_sending = False
        return cast("Outcome", outcomes[0])

    def pack(self, trainer: Any) -> tuple[Any, ...]:
        """Return how a trainer is pickled on its way to the processes: it becomes theirs, with what the user gave it.

        Args:
            trainer: the one that starts them.
        """
        given: dict[str, Any] = {
            "extra": {name: value for name, value in _attributes(trainer).items() if name not in self.own_names},
            "plugins": list(trainer.plugins.values()),
            "train_exceptions": trainer.train_exceptions,
            "test_exceptions": trainer.test_exceptions,
            "carried": trainer._carried,  # noqa: SLF001 - its other half
        }
        kind = cast("Any", type(trainer))
        made = kind, trainer._options, self.make_parts, self.queue  # noqa: SLF001 - see above
        return _rebuild, made, given, None, None, _fill


class _EndedError(Exception):
    """Brings home the outcome of a process that ended by an error."""

    def __str__(self) -> str:
        return "the call ended by the error above"


def _failed(outcome: Outcome, story: WorldError) -> Outcome:
    """Return an outcome whose error tells what happened in the process that it is from."""
    error = outcome.error
    if error is not None and not getattr(error, "__notes__", None):
        error.add_note(str(story))
    return outcome


def _attributes(trainer: CoreTrainer) -> dict[str, Any]:
    return vars(trainer)


# -- in the processes -------------------------------------------------------------------------------------------------


def _rebuild(kind: type[Any], options: Any, make_parts: Callable[[], BackendParts], queue: Any) -> Any:
    """Return a trainer for one of the processes, which joins the others."""
    if "OMP_NUM_THREADS" not in os.environ:  # all together have as many threads as one would have
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["WORLD_SIZE"])))
    trainer: Any = object.__new__(kind)
    CoreTrainer.__init__(trainer, options, attrs.evolve(make_parts(), queue=queue))
    return trainer


def _fill(trainer: Any, given: Mapping[str, Any]) -> None:
    """Give a trainer what the user gave to the one that started its process."""
    _attributes(trainer).update(given["extra"])
    for plugin in given["plugins"]:
        trainer.register_plugin(plugin)
    trainer.train_exceptions.extend(given["train_exceptions"])
    trainer.test_exceptions.extend(given["test_exceptions"])
    trainer._carried = given["carried"]  # noqa: SLF001 - its other half has sent it


def _call(trainer: Any, task: str, model: Any, datamodule: Any, arguments: Mapping[str, Any]) -> Outcome:
    """Call a method of the trainer, and return what it came to.

    Raises:
        WorldError: another process failed.
        _EndedError: this one did; holds the outcome.
    """
    error: Exception | None = None
    is_done = False
    try:
        is_done = getattr(trainer, task)(model, datamodule, **arguments)
        error = trainer.error
    except Exception as caught:  # noqa: BLE001 - it goes on in the process that started this one
        error = caught
    if isinstance(error, WorldError):
        raise error
    outcome = Outcome(
        is_done=is_done,
        has_begun=trainer._begun,  # noqa: SLF001 - its other half asks
        error=error,
        stop_reason=trainer.stop_reason,
        state=trainer.state,
        history=trainer.history,
        test_results=trainer.test_results,
        best_checkpoint=trainer.best_checkpoint,
        trained=_take_trained(trainer, model) if task == "fit" and error is None else None,
    )
    if error is not None:
        raise _EndedError(outcome) from error
    return outcome


def _take_trained(trainer: Any, model: Any) -> dict[str, Any] | None:
    """Return a trained model as a checkpoint holds it, in the first process; all must call it together."""
    tree = {
        "backend": "torch",
        "state": trainer.state,
        "model": _on_host(model.state_dict()),
        "attributes": _on_host(model.changed_attributes()),
    }
    return tree if trainer.rank == 0 else None


def _on_host(value: Any) -> Any:
    """Return a state with every tensor whole and on the CPU; all processes must come here together."""
    if isinstance(value, Tensor):
        spread = as_spread(value)
        return (value if spread is None else spread.full_tensor()).detach().cpu()
    if isinstance(value, dict):
        there = copy.copy(cast("Any", value))  # with torch's notes on it
        for key, each in there.items():
            there[key] = _on_host(each)
        return there
    if type(value) in {list, tuple}:
        return type(value)(map(_on_host, value))
    return value
