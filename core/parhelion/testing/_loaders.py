"""The resume property of whole pipelines: a loader, its dataset and its transforms, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import attrs
import numpy as np

from parhelion.errors import InvalidValueError, ResumeError
from parhelion.sampling import Position, ResumableSampler

from ._hypothesis import strategies as st
from ._resume import batch_name, run_quietly, start_samplers
from ._strategies import stop_points

__all__ = ["MakeLoader", "check_loader_resumes"]

MakeLoader: TypeAlias = Callable[[], tuple[Iterable[Any], ResumableSampler]]
_Leaves: TypeAlias = dict[str, object]


def check_loader_resumes(make_loader: MakeLoader, *, num_epochs: int = 3, max_examples: int = 25) -> None:
    """Check that a loader started again anywhere gives the batches of the run that never stopped.

    One loader is iterated over all epochs without a stop. Then runs are stopped one to three times, started
    again each time with a new loader whose sampler is set to the position, and followed to their end. Batches
    are compared as trees of arrays (mappings, sequences, attrs classes, dataclasses), bit by bit.

    Args:
        make_loader: returns a new loader and the sampler that orders it, always the same ones. A loader with
            a ``close`` method is closed when the run stops.
        num_epochs: epochs per run.
        max_examples: how many runs are tried.

    Raises:
        ResumeError: a batch differs; the message says where the run had stopped, and which leaf differs.
        InvalidValueError: there are fewer than two batches to stop between.
    """
    whole = [leaves for _, leaves in _load(*make_loader(), Position(), num_epochs, "never stopped")]
    if len(whole) <= 1:
        raise InvalidValueError(
            f"number of batches in {num_epochs} epochs is {len(whole)}; expected at least 2, to stop in "
            "between. Pass more epochs, or make the batches smaller."
        )
    cases = st.tuples(stop_points(len(whole)), st.booleans())
    run_quietly(lambda case: _check_case(make_loader, whole, num_epochs, *case), cases, max_examples)


def _check_case(
    make_loader: MakeLoader, whole: list[_Leaves], num_epochs: int, stops: list[int], by_start_iter: bool
) -> None:
    position, done, story = Position(), 0, "started"
    for stop in [*stops, len(whole)]:
        loader, sampler = make_loader()
        way = start_samplers([sampler], position, by_start_iter=by_start_iter)
        last = ""
        batches = _load(loader, sampler, position, num_epochs, f"{story} {way}")
        for place, found in batches:
            last = batch_name(sampler.shard, sampler.size, place)
            _compare(whole[done], found, f"{story} {way}: {last}")
            position = sampler.shard.after(sampler.size, place)
            done += 1
            if done == stop < len(whole):
                break
        batches.close()
        story = f"stopped after {last}, started again"


def _load(
    loader: Iterable[Any], sampler: ResumableSampler, position: Position, num_epochs: int, story: str
) -> Generator[tuple[Position, _Leaves], None, None]:
    """Yield each batch with its position to the end of the last epoch; close what it comes from."""
    shard, size = sampler.shard, sampler.size
    try:
        for epoch in range(position.epoch, num_epochs):
            sampler.set_epoch(epoch)
            for batch in iter(loader):
                if position.epoch != epoch:
                    raise ResumeError(f"{story}: epoch {epoch} should be over and goes on with {batch!r:.80}")
                yield position, _leaves(batch)
                position = shard.after(size, position)
            if position.epoch == epoch and shard.num_batches(size, position.offset):
                raise ResumeError(f"{story}: {batch_name(shard, size, position)} is missing, the loader ended")
            position = Position(epoch + 1)
    finally:
        close = getattr(loader, "close", None)
        if callable(close):
            close()


def _compare(expected: _Leaves, found: _Leaves, story: str) -> None:
    for path in {**expected, **found}:
        if path not in found or path not in expected:
            raise ResumeError(f"{story}: {path} is {'missing' if path in expected else 'new'}")
        if expected[path] != found[path]:
            raise ResumeError(f"{story}: {path} should be {expected[path]} and is {found[path]}")


@attrs.frozen
class _Array:
    """An array's type, shape and bytes; it is compared by all and shown as a few numbers."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes
    text: str = attrs.field(eq=False)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)} {self.text}"


def _leaves(tree: Any, path: str = "batch") -> _Leaves:
    """Return every leaf of a tree under its path, in a form that is compared bit by bit."""
    if hasattr(tree, "__array__"):
        return {path: _freeze(tree)}
    parts = _parts(tree)
    if parts is None:
        return {path: tree.hex() if isinstance(tree, float) else tree}  # a NaN would differ from itself
    found: _Leaves = {path: f"a {type(tree).__name__} of {len(parts)}"}
    for name, part in parts.items():
        found |= _leaves(part, path + name)
    return found


def _parts(tree: Any) -> dict[str, Any] | None:
    """Return what a container holds by what follows its name to get it; None for a leaf."""
    fields = getattr(tree, "__attrs_attrs__", None) or getattr(tree, "__dataclass_fields__", {}).values()
    if fields:
        return {f".{field.name}": getattr(tree, field.name) for field in fields}
    if _is_mapping(tree):
        return {f"[{key!r}]": value for key, value in tree.items()}
    if _is_sequence(tree):
        return {f"[{i}]": value for i, value in enumerate(tree)}
    return None


def _is_mapping(tree: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(tree, Mapping)


def _is_sequence(tree: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(tree, Sequence) and not isinstance(tree, (str, bytes))


def _freeze(leaf: Any) -> _Array:
    try:
        array = np.asarray(leaf)
    except TypeError:
        array = np.asarray(leaf.tolist())  # NumPy has no such type, bfloat16 for one
    raw = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    text = np.array2string(array.ravel()[:8], separator=", ")
    return _Array(str(getattr(leaf, "dtype", array.dtype)), array.shape, raw, text)
