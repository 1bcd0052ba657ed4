"""How a run's checkpoints get to disk: copied aside in one go, written behind by every process that has a part."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self

import attrs

from parhelion.checkpoint import (
    Hold,
    HostArray,
    Place,
    Retention,
    Saver,
    ShardedArray,
    begin_shared,
    commit_shared,
    flatten,
    retain,
    write_checkpoint,
    write_shard,
)
from parhelion.errors import CheckpointError, WorldError

from ._protocols import World
from ._together import act_in_turn, let_first_act

__all__ = ["Request", "Saving"]

_log = logging.getLogger("parhelion")


@attrs.frozen(kw_only=True)
class Request:
    """One checkpoint that is to be written.

    Attributes:
        root: the folder that it goes into.
        name: its own.
        meta: what its manifest says of the run.
        tree: everything that a resumed run needs.
        retention: which older ones stay; None for all.
        protect: names of older ones that stay whatever that says.
    """

    root: Place
    name: str
    meta: Mapping[str, Any]
    tree: Any
    retention: Retention | None = None
    protect: Collection[str] = ()


class Saving:
    """Writes the checkpoints of one run, at most one at a time; every process has one.

    Arrays that every process has whole are written by the first. Of those that are spread, each writes its parts, into
    the same folder, where they meet: nothing is sent.

    Args:
        world: the processes that train together.
        arrays: this framework's arrays in checkpoints.
        in_background: whether training goes on meanwhile.
        on_failure: called once a save has failed behind, so that somebody looks.

    Attributes:
        guard: raises if this run must not write any more; asked in front of a save.
    """

    def __init__(
        self, world: World, arrays: Any, *, in_background: bool, on_failure: Callable[[], object] = lambda: None
    ) -> None:
        self._world, self._arrays = world, arrays
        self._saver, self._hold = Saver(in_background=in_background, on_failure=on_failure), Hold()
        self.guard: Callable[[], None] | None = None

    def prepare(self, tree: Any) -> None:
        """Make sure that a tree can be saved, and have the memory ready that its copy needs.

        Raises:
            UnsavableValueError: a value has no place in a checkpoint; names where it is.
        """
        _, arrays = flatten(tree, self._arrays)
        if self._saver.in_background and self._writes(arrays):
            size = sum(map(_size, arrays.values()))
            self._saver.start(lambda: self._hold.prepare(size))  # new pages take longer to come by than to fill

    def start(self, request: Request) -> None:
        """Copy the state of a request aside, and have it written.

        Raises:
            CheckpointError: the save before has failed, or this one has, where nothing goes on in the background.
        """
        if self.guard is not None:
            self.guard()
        self._saver.make_way()  # what it has copied is free then
        skeleton, arrays = flatten(request.tree, self._arrays)
        world, root, name = self._world, request.root, request.name
        spread = any(isinstance(array, ShardedArray) for array in arrays.values())
        if world.size == 1 or not any(world.gather(spread)):
            if world.rank == 0:
                held = self._held(arrays)
                self._write(request, lambda: write_checkpoint(root, name, skeleton, held, request.meta))
            return
        scratch = world.gather(next(iter(let_first_act(world, lambda: begin_shared(root, name), "saving")), None))[0]
        held = self._held(arrays)
        if world.rank == 0:
            self._write(
                request,
                lambda: commit_shared(scratch, name, skeleton, held, request.meta, world.size, self._check_others),
            )
        else:
            self._saver.start(lambda: write_shard(scratch, world.rank, held))

    def check(self) -> None:
        """Raise CheckpointError if a save has failed behind."""
        self._saver.check()

    def finish(self) -> None:
        """Return once the last save is durable, in every process.

        Raises:
            CheckpointError: it has failed.
            WorldError: it has failed in another process.
        """
        act_in_turn(self._world, self._saver.wait, "saving a checkpoint")

    @property
    def is_busy(self) -> bool:
        """Whether a save is going on behind."""
        return self._saver.is_busy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._saver.__exit__(kind, error, at)
        self._hold.close()

    def _writes(self, arrays: Mapping[str, HostArray | ShardedArray]) -> bool:
        return self._world.rank == 0 or any(isinstance(array, ShardedArray) for array in arrays.values())

    def _held(self, arrays: Mapping[str, HostArray | ShardedArray]) -> Mapping[str, HostArray | ShardedArray]:
        """Return the arrays as they stay, whatever training does to them meanwhile."""
        return self._hold.copy(arrays) if self._saver.in_background else arrays

    def _write(self, request: Request, write: Callable[[], object]) -> None:
        def write_and_retain() -> None:
            write()
            if request.retention is not None:
                _retain(request, request.retention)

        self._saver.start(write_and_retain)

    def _check_others(self) -> None:
        if self._world.failure is not None:
            raise WorldError(f"another process has failed meanwhile: {self._world.failure}")


def _retain(request: Request, retention: Retention) -> None:
    """Delete older ones. That this fails is no reason to end a run whose new checkpoint is there."""
    try:
        retain(request.root, retention, [request.root / name for name in request.protect])
    except CheckpointError as error:
        _log.warning("checkpoint %s is written, but an older one stays: %s", request.name, error)


def _size(array: HostArray | ShardedArray) -> int:
    parts = [array] if isinstance(array, HostArray) else [part.array for part in array.parts]
    return sum(part.data.size for part in parts)
