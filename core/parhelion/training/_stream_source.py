"""A stream as the loop sees it: spans and batches out of one pass, and the state behind every batch until it counts."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import attrs

from parhelion.data import Delivery, StreamCursor, StreamLoader
from parhelion.errors import CheckpointMismatchError, DataError, ParhelionError
from parhelion.sampling import Position

from ._state import BatchSpan, TrainingState

__all__ = ["StreamSource"]

_log = logging.getLogger("parhelion")


class StreamSource:
    """Batches of one split that is a stream.

    A stream says that it is over by ending, so an update's batches and one more are made before the first is given
    away. The state of the stream behind a batch is kept under the position that it leads to, until that position or a
    later one has been committed: a checkpoint has the state behind the last batch trained on, however many were made.

    Args:
        loader: the stream's.
        cursor: the loader's.
        accumulation_steps: batches per update.
        limit_batches: batches after which an epoch ends early.
        aside: returns the context that the stream is read in; one that puts random streams back.
    """

    def __init__(
        self,
        loader: StreamLoader,
        cursor: StreamCursor,
        *,
        accumulation_steps: int = 1,
        limit_batches: int | None = None,
        aside: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.loader, self.sampler = loader, cursor
        self.shard = cursor.shard
        self._steps, self._limit, self._aside = accumulation_steps, limit_batches, aside
        self.is_own = True  # see Source
        self.size = cursor.size
        if self.size is not None and limit_batches is not None:
            self.size = min(self.size, limit_batches * self.shard.global_batch)
        self._committed: Callable[[], Position] | None = None
        self._entries: deque[tuple[Position, dict[str, Any] | None]] = deque()
        self._pass: _Pass | None = None

    # -- what the loop asks -------------------------------------------------------------------------------------------

    def spans(self, position: Position) -> Iterator[BatchSpan]:
        """Return what each batch of the epoch from ``position`` on takes from it.

        Together with one call of :meth:`batches` for the same position this is one pass over the stream.
        """
        return self._join(position, "spans")

    def batches(self, position: Position) -> Iterator[Any]:
        """Return the epoch's batches of this rank from ``position`` on; of the same pass as :meth:`spans`."""
        return self._join(position, "batches")

    def _join(self, position: Position, side: str) -> Iterator[Any]:
        if self._pass is None or self._pass.position != position or side in self._pass.taken:
            self._pass = _Pass(position, self._groups(position))
        return self._pass.take(side)

    def _groups(self, position: Position) -> Iterator[list[tuple[BatchSpan, Any]]]:
        """Yield the batches of one update after another, with their spans; their entries are noted before."""
        offset = position.offset
        begin = self._entry_at(position)
        self.sampler.seek(position, begin)
        left = None if self._limit is None else max(0, self._limit - offset // self.shard.global_batch)
        with self._aside():
            made = self.loader.open_pass(left)
        held: list[Delivery] = []
        for delivery in islice(made, left):
            held.append(delivery)
            if len(held) > self._steps:
                yield self._note(position.epoch, offset, held[: self._steps], None)
                offset += sum(each.num_records for each in held[: self._steps])
                del held[: self._steps]
        self.loader.leave(end := made.next_entry())
        if held:
            yield self._note(position.epoch, offset, held, (Position(position.epoch + 1), end))
        else:
            self._entries.append((Position(position.epoch + 1), end))

    def _note(
        self, epoch: int, offset: int, group: list[Delivery], end: tuple[Position, Any] | None
    ) -> list[tuple[BatchSpan, Any]]:
        """Return a group as the loop takes it; ``end`` is where the epoch's last one leads."""
        records = sum(delivery.num_records for delivery in group)
        noted: list[tuple[BatchSpan, Any]] = []
        for k, (batch, count, entry) in enumerate(group, 1):
            offset += count
            is_update, is_last = k == len(group), k == len(group) and end is not None
            self._entries.append(end if is_last and end is not None else (Position(epoch, offset), entry))
            noted.append((BatchSpan(count, is_update, is_last, count / records), batch))
        # Nobody commits to what an evaluation reads.
        committed = Position(epoch, offset) if self._committed is None else self._committed()
        while len(self._entries) > 1 and self._entries[1][0] <= committed:
            self._entries.popleft()
        return noted

    def check_exhausted(self, position: Position) -> None:
        """Do nothing if the epoch could have ended at ``position``.

        Raises:
            DataError: it has just begun there, so the stream gave nothing.
        """
        if position.offset == 0:
            raise DataError(
                f"the stream {self.sampler.stream.name} gave no batch in epoch {position.epoch + 1}; expected one at "
                "least. A source that can be iterated over once needs an __iter__ that begins anew, or a number of "
                "records per epoch; drop_last leaves out what does not fill a batch."
            )

    def check_complete(self, num_batches: int) -> None:
        """Do nothing if a pass could have had that many batches.

        Raises:
            DataError: there was none.
        """
        if num_batches == 0:
            self.check_exhausted(Position())

    def num_batches(self) -> int | None:
        """Return how many batches an epoch has; None where it ends with the data."""
        return self._limit if self.size is None else self.shard.num_batches(self.size)

    def count_own(self, offset: int, span: BatchSpan) -> int:
        """Return how many records this rank has of a batch: ranks that share a stream have full ones only."""
        return span.num_records // self.shard.world

    def count_records(self, state: TrainingState) -> int:
        """Return about how many records the run has trained on: as if every batch had been full."""
        return state.global_iteration * self.shard.global_batch

    def close(self) -> None:
        """End worker processes that wait for another iteration."""
        self._pass = None
        self.loader.close()

    # -- what a checkpoint keeps --------------------------------------------------------------------------------------

    @property
    def facts(self) -> dict[str, Any]:
        """What a resumed run must agree with, beside what a sampler says."""
        return {"stream": self.sampler.stream.name}

    def begin(self, state: TrainingState, saved: dict[str, Any] | None, *, restart: bool) -> TrainingState:
        """Return the state that the run begins with, and be where that is.

        Args:
            state: the committed one.
            saved: what :meth:`gather` returned for it; None for a fresh run.
            restart: whether the epoch may begin again where its middle cannot be found.

        Raises:
            CheckpointMismatchError: the checkpoint does not say where the stream was.
        """
        self._pass = None
        self._entries.clear()
        entry = None if saved is None else saved["entry"]
        position, stream = state.position, self.sampler.stream.name
        is_found = position.offset == 0 and (self.size is None or position.epoch == 0)
        if saved is not None and saved["of"] != stream:
            is_found, entry = position.offset == 0, None
        if entry is None and not is_found:
            if not restart:
                raise CheckpointMismatchError(
                    f"the run was stopped at record {position.offset} of epoch {position.epoch + 1}, and the "
                    f"checkpoint does not say where the stream {stream} was then: it can do so only for a source with "
                    "state_dict and load_state_dict, or get_state and set_state. Start anew with resume='never', or "
                    "begin the epoch again with allow_changes=('stream',), which trains on its first records twice."
                )
            _log.warning("the stream cannot be found where it was; epoch %d begins again", position.epoch + 1)
            state = attrs.evolve(state, offset=0)
        self._entries.append((state.position, entry))
        return state

    def follow(self, committed: Callable[[], Position]) -> None:
        """Keep the states behind batches until ``committed()`` is there or further."""
        self._committed = committed

    def announce(self) -> None:
        """Say what a run must know about the stream, and open it, so that it is read from where the run begins."""
        with self._aside():
            if not self.sampler.stream.is_stateful:
                _log.warning(
                    "the stream %s has neither state_dict and load_state_dict nor get_state and set_state, so a run "
                    "that is stopped in the middle of an epoch cannot go on from there",
                    self.sampler.stream.name,
                )
            position, entry = self._entries[0]
            self.sampler.seek(position, entry)
            if entry is None and (opened := self.loader.probe()) is not None:
                self._entries[0] = (position, opened)
                self.loader.leave(opened)

    def _entry_at(self, position: Position) -> dict[str, Any] | None:
        found = [entry for known, entry in self._entries if known == position]
        if found:
            return found[-1]
        if position.offset == 0:
            return None
        raise ParhelionError(
            f"the stream's state behind record {position.offset} of epoch {position.epoch + 1} is gone; expected the "
            "position that was committed last. Save, and go on, from trainer.state."
        )

    def gather(self, position: Position, gather: Callable[[Any], list[Any]]) -> dict[str, Any]:
        """Return the state of the stream behind the last batch trained on, with the lanes of all ranks."""
        mine = self._entry_at(position) if self.sampler.stream.is_stateful else None
        every = [entry for entry in gather(mine) if entry is not None]
        merged: dict[str, Any] | None = None
        if every:
            lanes = {lane: state for entry in every for lane, state in entry["lanes"].items()}
            merged = {**every[0], "lanes": dict(sorted(lanes.items(), key=lambda item: int(item[0])))}
        return {"of": self.sampler.stream.name, "entry": merged}


class _Pass:
    """One pass, of which spans and batches are taken apart, each in order."""

    def __init__(self, position: Position, groups: Iterator[list[tuple[BatchSpan, Any]]]) -> None:
        self.position = position
        self.taken: set[str] = set()
        self._groups = groups
        self._queues: dict[str, deque[Any]] = {"spans": deque(), "batches": deque()}

    def take(self, side: str) -> Iterator[Any]:
        """Return one of the two, to the end."""
        self.taken.add(side)
        return self._run(self._queues[side])

    def _run(self, queue: deque[Any]) -> Iterator[Any]:
        while queue or self._advance():
            yield queue.popleft()

    def _advance(self) -> bool:
        group = next(self._groups, None) or []
        for span, batch in group:
            self._queues["spans"].append(span)
            self._queues["batches"].append(batch)
        return bool(group)
