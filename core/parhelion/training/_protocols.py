"""What the core asks of a backend: a few methods each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, Self

import attrs

from parhelion.checkpoint import ArrayAdapter
from parhelion.processes import Meeting

from ._events import Event
from ._starter import Starter
from ._state import TrainingState

__all__ = ["BackendParts", "Placement", "Randomness", "Verdict", "Work", "World"]


class Placement(Protocol):
    """Where batches go and how values come back."""

    def place(self, batch: Any, *, shared: bool = False) -> Any:
        """Return the host batch with every array in it on this rank's device, or spread over its devices.

        Args:
            batch: what the loader made.
            shared: the batch is not to be spread: it is the incomplete last one of an evaluation, whose records need
                not divide, and every rank that computes as one with this has all of it.
        """
        ...

    def hold(self, value: Any) -> Any:
        """Return a scalar as it can be kept for a while: still on the device, without a graph behind it.

        What several steps returned in one call may be a vector.

        Raises:
            InvalidTypeError: it is no scalar.
        """
        ...

    def to_host(self, values: Sequence[Any]) -> list[float]:
        """Return scalars, and the elements of vectors, as Python floats; the device is waited for once for all."""
        ...


class Randomness(Protocol):
    """The framework's global generators, together with Python's and NumPy's."""

    def seed(self, seed: int) -> None:
        """Start every generator at the stream of ``seed``, a 64-bit integer."""
        ...

    def capture(self) -> Any:
        """Return the state of every generator as a tree that a checkpoint takes."""
        ...

    def restore(self, state: Any) -> None:
        """Continue every generator from a captured state."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Return a context after which every generator is where it was before."""
        ...


class World(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def local_rank(self) -> int:
        """This process among those of its machine, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many processes train together."""
        ...

    def barrier(self) -> None:
        """Return once every process has come here."""
        ...

    @property
    def meeting(self) -> Meeting:
        """Where wishes are brought that all processes are to hear at once."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gives here, by rank."""
        ...

    def gather_to_first(self, value: Any) -> list[Any]:
        """Return what :meth:`gather` does in the first process, and an empty list in the others."""
        ...

    def about(self, topic: str) -> Self:
        """Return this world with calls of its own, which other calls do not get in the way of."""
        ...

    def fail(self, text: str) -> None:
        """Tell the others that this process ends by an error, with its traceback; they end, too."""
        ...

    def leave_by(self, seconds: float, exit_code: int, reason: str = ...) -> None:
        """End this process after so many seconds, whatever it does."""
        ...

    def close(self, timeout: float = ...) -> None:
        """Part from the others."""
        ...

    @property
    def failure(self) -> str | None:
        """What ended another process, if something has."""
        ...


@attrs.frozen(kw_only=True)
class BackendParts:
    """What a backend hands to the core's trainer.

    Attributes:
        name: the backend's registered name.
        device: this rank's device, as the framework names it.
        gpu_ids: ids of the accelerators in use; empty on the CPU.
        map_loc: where loaded weights are mapped to.
        placement, randomness, world: see the protocols.
        arrays: this framework's arrays in checkpoints.
        create_dataloader: ``(dataset, split, params) -> (loader, sampler)``.
        switches: returns the context that a run lasts in, with the framework's global flags set as asked.
        steps_per_execution: the most iterations that a model trains in one call.
        computes_as_one: whether several processes make one computation, so that what one logs is everybody's; else each
            computes on its own batches, and what is logged is merged.
        describe: facts for the banner and the checkpoint, such as library versions.
        starter: what runs ``fit`` and ``test`` in processes of their own; None where they run in this one.
        queue: what this process, which a trainer has started, sends things home with; None in others.
    """

    name: str
    device: Any
    gpu_ids: list[int]
    map_loc: str | dict[str, str] = "cpu"
    placement: Placement
    randomness: Randomness
    world: World
    arrays: ArrayAdapter | None
    create_dataloader: Callable[..., tuple[Any, Any]]
    switches: Callable[[], AbstractContextManager[Any]] = nullcontext
    steps_per_execution: int = 1
    computes_as_one: bool = False
    describe: Callable[[], Mapping[str, str]]
    starter: Starter | None = None
    queue: Any = None


class Verdict(NamedTuple):
    """What a validation came to."""

    improved: bool  # counts for early stopping
    is_best: bool  # the best so far by the monitored value
    values: dict[str, float]


class Work(Protocol):
    """What the loop has done for it."""

    @property
    def stop_asked(self) -> Callable[[], bool] | None:
        """Whether the model or a plugin wants to stop; None when neither ever does."""
        ...

    def prepare(self, batch: Any, state: TrainingState, /) -> Any:
        """Place a batch and let plugins process it."""
        ...

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Train on one batch and keep what it returned."""
        ...

    def train_steps(self, chunk: Sequence[tuple[Any, TrainingState]]) -> None:
        """Train on several batches in one call, each with the state that counts it, and keep what that returned."""
        ...

    def collect(self) -> dict[str, float]:
        """Return the values since the last print."""
        ...

    def validate(self, state: TrainingState) -> Generator[Event]:
        """Run the validation."""
        ...

    def judge(self) -> Verdict:
        """Return what the validation came to."""
        ...

    def report(self, state: TrainingState, row: Mapping[str, float]) -> None:
        """Give one row of values to the trackers."""
        ...

    def check(self) -> None:
        """Raise what has failed behind, such as a save."""
        ...

    def save(self, state: TrainingState, *, is_best: bool, is_final: bool, is_pending: bool) -> None:
        """Write a checkpoint of a committed state."""
        ...
