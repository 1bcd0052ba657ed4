"""Training in processes that the trainer starts itself, one for each GPU, or several on the CPU."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import attrs
import torch
from torch import Tensor

from parhelion.errors import InvalidTypeError, InvalidValueError, WorldError
from parhelion.processes import spawn
from parhelion.training import BackendParts, Outcome
from parhelion.training import Trainer as CoreTrainer

from .sharded import as_spread

__all__ = ["OwnProcesses", "count_processes"]

_log = logging.getLogger("parhelion")
_TRAINER: Final = "trainer"  # stands for the trainer in what travels: each process has its own


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


@attrs.define
class OwnProcesses:
    """Starts processes for each fit and each test, and tells the trainer here what they came to.

    They are fresh interpreters, so a script needs no ``if __name__ == "__main__"``. Model, data module and plugins
    travel there by pickle, as they are before ``setup``; home come the model's trained state and what the trainer
    knows. What plugins collect stays there, unless they put it in the queue.

    Args:
        num_processes: how many.
        make_parts: returns the backend's parts in one of them.
        own_names: the attributes that every trainer has; a trainer's further ones travel.
    """

    num_processes: int
    make_parts: Callable[[], BackendParts]
    own_names: frozenset[str] = frozenset()
    queue: Any = attrs.field(factory=lambda: importlib.import_module("multiprocessing").get_context("spawn").Queue())

    def run(self, trainer: Any, task: str, model: Any, datamodule: Any, arguments: Mapping[str, Any]) -> Outcome:
        """Call a method of the trainer in every process; see :class:`parhelion.training.Starter`."""
        kind = type(trainer)
        head = _dump((kind, trainer._options, self.make_parts))  # noqa: SLF001 - the trainer's other half
        extra = {name: value for name, value in vars(trainer).items() if name not in self.own_names}
        carried = trainer._carried  # noqa: SLF001 - see above
        body = _dump(
            {
                "model": model,
                "datamodule": datamodule,
                "arguments": dict(arguments),
                "plugins": list(trainer.plugins.values()),
                "exceptions": (trainer.train_exceptions, trainer.test_exceptions),
                "extra": extra,
                "trained": carried[1] if carried is not None and carried[0] is model else None,
            },
            trainer,
        )
        outcomes = spawn(_run_here, (head, body, task), self.num_processes, queue=self.queue)
        return _merge([cast("_Reply", pickle.loads(each)) for each in outcomes])  # noqa: S301 - from our own processes


@attrs.frozen
class _Reply:
    outcome: Outcome
    text: str  # the traceback


def _merge(replies: list[_Reply]) -> Outcome:
    """Return the first process's outcome, with the error of the one that failed first."""
    failed = [reply for reply in replies if reply.outcome.error is not None]
    # That another one is gone is what the others report.
    failed.sort(key=lambda reply: isinstance(reply.outcome.error, WorldError))
    first = replies[0].outcome
    if not failed:
        return first
    error, begun = failed[0].outcome.error, failed[0].outcome.has_begun
    if error is not None:
        error.add_note(f"in process {replies.index(failed[0])} of {len(replies)}:\n{failed[0].text}")
    return attrs.evolve(first, error=error, has_begun=begun, is_done=False, stop_reason="error", trained=None)


# -- in the processes -------------------------------------------------------------------------------------------------


def _run_here(head: bytes, body: bytes, task: str, queue: Any = None) -> bytes:
    """Build a trainer like the one that started this process, call its method, and return what it came to."""
    kind, options, make_parts = _load(head)
    if "OMP_NUM_THREADS" not in os.environ:  # all together have as many threads as one would have
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["WORLD_SIZE"])))
    trainer: CoreTrainer = object.__new__(kind)
    CoreTrainer.__init__(trainer, options, attrs.evolve(make_parts(), queue=queue))
    sent = _load(body, trainer)
    vars(trainer).update(sent["extra"])
    for plugin in sent["plugins"]:
        trainer.register_plugin(plugin)
    trainer.train_exceptions.extend(sent["exceptions"][0])
    trainer.test_exceptions.extend(sent["exceptions"][1])
    model = sent["model"]
    if sent["trained"] is not None:
        trainer._carried = model, sent["trained"]  # noqa: SLF001 - its other half has sent it
    error: Exception | None = None
    is_done = False
    try:
        is_done = getattr(trainer, task)(model, sent["datamodule"], **sent["arguments"])
    except Exception as caught:  # noqa: BLE001 - it leaves in the process that started this one
        error = caught
    return _reply(trainer, task, model, is_done, error or trainer.error)


def _reply(trainer: Any, task: str, model: Any, is_done: bool, error: Exception | None) -> bytes:
    tree = None
    if task == "fit" and error is None:
        tree = {
            "backend": "torch",
            "state": trainer.state,
            "model": _on_host(model.state_dict()),
            "attributes": _on_host(model.changed_attributes()),
        }
    outcome = Outcome(
        is_done=is_done,
        has_begun=trainer._begun,  # noqa: SLF001 - its other half asks
        error=error,
        stop_reason=trainer.stop_reason,
        state=trainer.state,
        history=trainer.history,
        test_results=trainer.test_results,
        best_checkpoint=trainer.best_checkpoint,
        trained=tree if trainer.rank == 0 else None,
    )
    text = "" if error is None else "".join(traceback.format_exception(error))
    return _dump(_Reply(outcome, text))


def _on_host(value: Any) -> Any:
    """Return a state with every tensor whole and on the CPU; all processes must come here together."""
    if isinstance(value, Tensor):
        spread = as_spread(value)
        return (value if spread is None else spread.full_tensor()).detach().cpu()
    if isinstance(value, dict):
        there = copy.copy(cast("dict[Any, Any]", value))  # with torch's notes on it
        for key, each in there.items():
            there[key] = _on_host(each)
        return there
    if type(value) in {list, tuple}:
        return type(value)(map(_on_host, value))
    return value


# -- what travels -----------------------------------------------------------------------------------------------------


def _dump(value: Any, trainer: Any = None) -> bytes:
    base: Any = importlib.import_module("cloudpickle").Pickler

    class Pickler(base):  # type: ignore[misc]  # cloudpickle has no types
        def persistent_id(self, obj: Any) -> str | None:
            return _TRAINER if trainer is not None and obj is trainer else None

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _load(data: bytes, trainer: Any = None) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return trainer

    return Unpickler(io.BytesIO(data)).load()
