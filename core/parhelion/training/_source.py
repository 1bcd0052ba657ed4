"""A loader and its sampler, as the loop sees them: spans by arithmetic, batches from a position."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from parhelion.errors import DataError, InvalidTypeError, InvalidValueError
from parhelion.sampling import Position, ResumableSampler, ResumableSequentialSampler

from ._protocols import Randomness
from ._state import BatchSpan, TrainingState

if TYPE_CHECKING:
    from ._stream_source import StreamSource

__all__ = ["AnySource", "Source", "open_source"]


class Source:
    """Batches of one split, from any position.

    A loader that is a sequence holds ready batches: the sampler then orders those, one at a time, and a position counts
    batches.

    Args:
        loader: an iterable of this rank's batches that begins where its sampler stands. Where the sampler leaves a rank
            without records in the last batch, it gives one batch less.
        sampler: the sampler that orders it; None for a sequence of ready batches in its own order.
        accumulation_steps: batches per update.
        limit_batches: batches after which an epoch ends early.
        aside: returns the context that iterations are opened in; one that puts random streams back, since a resumed run
            opens one more (torch's own loader draws a number each time).

    Attributes:
        is_own: whether ranks that do not share the split bring batches of their own, rather than the same records.

    Raises:
        InvalidTypeError: ``loader`` is not iterable, or ``sampler`` is no resumable sampler.
        InvalidValueError: not a single batch can be made.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        sampler: ResumableSampler | None,
        *,
        accumulation_steps: int = 1,
        limit_batches: int | None = None,
        aside: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._aside = aside
        self._ready: Sequence[Any] | None = loader if isinstance(loader, Sequence) else None
        if sampler is None and self._ready is not None:
            sampler = ResumableSequentialSampler(self._ready)
        if not isinstance(sampler, ResumableSampler):
            raise InvalidTypeError(
                f"the sampler of a loader is {sampler!r}; expected a ResumableSampler, which can begin anywhere. "
                "Return (loader, sampler) from the data module, or a list of ready batches, or "
                "stream_batches(loader) for one that says its state."
            )
        if not isinstance(loader, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidTypeError(f"a loader is {loader!r}; expected an iterable of batches.")
        self.loader = loader
        self.sampler = sampler
        self._accumulation_steps = accumulation_steps
        shard = sampler.shard
        if self._ready is not None and sampler.batch_size != 1:
            raise InvalidValueError(
                f"the sampler of a list of ready batches has batch_size {sampler.batch_size}; expected 1, since its "
                "records are whole batches."
            )
        self.shard = shard
        self.is_own = self._ready is not None
        self.size = sampler.size
        if limit_batches is not None:
            self.size = min(self.size, limit_batches * shard.global_batch)
        if shard.num_batches(self.size) == 0:
            raise InvalidValueError(
                f"no batch is left: {self.size} records make no global batch of {shard.global_batch} with "
                "drop_last=True. Lower the batch size or set drop_last=False."
            )

    def batches(self, position: Position) -> Iterator[Any]:
        """Return the epoch's batches of this rank from ``position`` on."""
        self.sampler.seek(position)
        if self._ready is not None:
            return map(self._ready.__getitem__, self.sampler)
        with self._aside():
            return iter(self.loader)

    def close(self) -> None:
        """End worker processes that wait for another iteration; one would start them again."""
        close = getattr(self.loader, "close", None)
        if callable(close):
            close()

    def check_exhausted(self, position: Position) -> None:
        """Do nothing if no batch begins at ``position``.

        Raises:
            DataError: one does, so the loader has ended too early.
        """
        if self.shard.num_batches(self.size, position.offset) > 0:
            raise DataError(
                f"the training loader ended at record {position.offset} of {self.size} of epoch {position.epoch + 1}; "
                "expected batches to the epoch's end. Its sampler and its batches must have the same batch size."
            )

    def check_complete(self, num_batches: int) -> None:
        """Do nothing if a whole pass has that many batches.

        Raises:
            DataError: it has more.
        """
        if num_batches < (expected := self.num_batches()):
            raise DataError(
                f"the evaluation loader ended after {num_batches} of {expected} batches; expected every record. Its "
                "sampler and its batches must have the same batch size."
            )

    def num_batches(self) -> int:
        """Return how many batches an epoch has."""
        return self.shard.num_batches(self.size)

    def count_own(self, offset: int, span: BatchSpan) -> int:
        """Return how many records this rank has, without padding, of the global batch at ``offset``."""
        return self.shard.block(self.size, offset).num_valid

    def count_records(self, state: TrainingState) -> int:
        """Return how many records the run has trained on."""
        return state.epoch * self.size + state.offset

    @property
    def facts(self) -> dict[str, Any]:
        """What a resumed run must agree with, beside what the sampler says."""
        return {}

    def begin(self, state: TrainingState, saved: Any, *, restart: bool) -> TrainingState:
        """Return the state that the run begins with: any, since what comes next is asked for by its position."""
        return state

    def follow(self, committed: Callable[[], Position]) -> None:
        """Do nothing: there is no state to keep until it is committed."""

    def announce(self) -> None:
        """Say nothing."""

    def gather(self, position: Position, gather: Callable[[Any], list[Any]]) -> Any:
        """Return None: the position says all."""

    def spans(self, position: Position) -> Iterator[BatchSpan]:
        """Return what each of those batches takes from the epoch; a group of batches never crosses its end."""
        steps, full = self._accumulation_steps, self.shard.global_batch
        batches = self.shard.num_batches(self.size, position.offset)
        before = max(0, batches - 1) // steps * steps  # batches in front of the epoch's last group
        # Full groups are all alike: the same few values again and again.
        group = [BatchSpan(full, k == steps - 1, is_last=False, loss_weight=1 / steps) for k in range(steps)]
        tail = self._last_group(position.offset + before * full, batches - before)
        return itertools.chain(itertools.islice(itertools.cycle(group), before), tail)

    def _last_group(self, offset: int, batches: int) -> Iterator[BatchSpan]:
        full = self.shard.global_batch
        sizes = [self.shard.span(self.size, offset + k * full) for k in range(batches)]
        for k, records in enumerate(sizes):
            last = k == batches - 1
            yield BatchSpan(records, is_update=last, is_last=last, loss_weight=records / sum(sizes))


AnySource: TypeAlias = "Source | StreamSource"
"""The batches of a split, out of a sampler's order or of a stream."""


def open_source(made: Any, split: str, randomness: Randomness | None = None, **options: Any) -> AnySource:
    """Return what a data module made for a split ("train", "valid", "test", "predict") as the loop sees it.

    Args:
        made: a loader and its sampler, a list of ready batches, or a source of them that can say its state.
        split: which one it is.
        randomness: the framework's generators; a source of ready batches finds them keyed.
        options: other arguments of :class:`Source` and :class:`StreamSource`.

    Raises:
        InvalidValueError: it made nothing.
    """
    if made is None:
        needs = {"train": "fit", "valid": "valid_frequency", "test": "test", "predict": "predict"}[split]
        attribute = {"predict": "test"}.get(split, split)
        raise InvalidValueError(
            f"the data module has no {attribute} set and {needs} needs one; expected setup() to assign "
            f"self._{attribute}_dataset."
        )
    loader, sampler = cast("tuple[Any, Any]", made) if isinstance(made, tuple) else (made, None)
    if isinstance(sampler, ResumableSampler) or isinstance(loader, Sequence):
        return Source(cast("Any", loader), sampler, **options)
    # Streams are many modules, and most runs have none.
    from parhelion.data import Stream, StreamCursor, get_state_methods, stream_batches  # noqa: PLC0415

    from ._stream_source import StreamSource  # noqa: PLC0415

    if sampler is None and (isinstance(loader, Stream) or get_state_methods(loader) is not None):
        loader, sampler = stream_batches(loader)
    if not isinstance(sampler, StreamCursor):
        return Source(loader, sampler, **options)
    loader = getattr(loader, "engine", loader)
    if loader.generators is None and loader.is_ready and randomness is not None:
        loader.generators = _KeyedRandomness(randomness)
    return StreamSource(loader, sampler, **options)


class _KeyedRandomness:
    """A framework's generators as a fetch wants them."""

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness

    def seed(self, seed: int) -> None:
        self._randomness.seed(seed)

    def capture(self) -> Any:
        return self._randomness.capture()

    def restore(self, state: Any) -> None:
        self._randomness.restore(state)

    def set_aside(self) -> Any:
        return self._randomness.capture()

    def put_back(self, aside: Any) -> None:
        self._randomness.restore(aside)
