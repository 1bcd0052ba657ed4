"""Where every random number comes from: a seed, mixed with what it is for.

Seeds are never added to: ``seed + epoch`` makes run 0's second epoch run 1's first. :func:`derive` hashes the
seed together with its purpose instead, so neighbors have nothing in common.

What a dataset draws for one record is keyed by (split, seed, epoch, place in the epoch's global order) and by
nothing else. :func:`sample_rng` hands out a generator with that key; a fetch opens the scope that it reads.
NumPy's ``Philox`` supplies the streams: a counter-based generator (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011), so setting a key costs a microsecond and two keys never share a stream.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from collections.abc import Generator as Yields
from contextlib import contextmanager
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from .errors import InvalidTypeError, InvalidValueError, SampleScopeError

__all__ = [
    "SampleScope",
    "check_seed",
    "derive",
    "each_sample",
    "get_default_seed",
    "sample_rng",
    "sample_scope",
    "some_samples",
]

MAX_SEED = 2**64 - 1


def get_default_seed() -> int:
    """Return the seed that is used where none is given: 6691."""
    return 6691


def check_seed(seed: object, what: str = "random_seed") -> int:
    """Return ``seed`` as a plain int in [0, 2**64).

    Raises:
        InvalidTypeError: it is no integer.
        InvalidValueError: it is negative or too large.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise InvalidTypeError(f"{what} is {seed!r}; expected an integer from 0 to 2**64 - 1.")
    if not 0 <= seed <= MAX_SEED:
        raise InvalidValueError(
            f"{what} is {seed}; expected an integer from 0 to 2**64 - 1. "
            "Reduce it with seed % 2**64, or hash it with parhelion.seeds.derive."
        )
    return int(cast("int", seed))


def derive(seed: int, *purpose: int | str) -> int:
    """Return a 64-bit seed for one purpose, unrelated to that for any other purpose or seed.

    Each word of ``purpose`` is written with its kind and length before hashing, so ``("ab", "c")``, ``("a",
    "bc")`` and ``("abc",)`` differ, and so do ``1`` and ``"1"``. The hash is BLAKE2b keyed with the seed (RFC
    7693): the values are the same on every platform and in every release.

    Args:
        seed: an integer in [0, 2**64).
        purpose: integers of any size and strings, such as ``("order", epoch)``.

    Returns:
        An integer in [0, 2**64).

    Raises:
        InvalidTypeError: a word is neither an integer nor a string.
        InvalidValueError: the seed is out of range.
    """
    digest = hashlib.blake2b(digest_size=8, key=check_seed(seed, "seed").to_bytes(8, "little"))
    for word in purpose:
        if isinstance(word, str):
            raw, kind = word.encode(), b"s"
        elif isinstance(word, (int, np.integer)):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            number = int(word)
            raw, kind = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True), b"i"
        else:
            raise InvalidTypeError(f"a word of a seed's purpose is {word!r}; expected an integer or a string.")
        digest.update(kind + len(raw).to_bytes(4, "little") + raw)
    return int.from_bytes(digest.digest(), "little")


class _Stream:
    """One Philox generator whose key is set again and again; a new one would cost a hundred times more."""

    __slots__ = ("_bits", "_key", "_state", "generator")

    def __init__(self) -> None:
        self._bits: Any = np.random.Philox(key=0)
        self.generator = np.random.Generator(self._bits)
        # A copy of the first state: counter at zero, nothing buffered. Only the key changes.
        self._state: dict[str, Any] = dict(self._bits.state)
        self._key: npt.NDArray[np.uint64] = np.zeros(2, np.uint64)
        self._state["state"] = {"counter": np.zeros(4, np.uint64), "key": self._key}

    def rekey(self, base: int, place: int) -> np.random.Generator:
        self._key[0] = base
        self._key[1] = place
        self._bits.state = self._state
        return self.generator


class SampleScope:
    """The samples being fetched in this thread: what :func:`sample_rng` reads.

    A fetch sets ``place`` before each record, which is all that a record without random numbers costs.

    Attributes:
        base: 64-bit key shared by every sample of one (split, seed, epoch).
        first: place of the first sample of this fetch in the epoch's global order.
        place: place of the sample being fetched.
        batched: whether one call handles all of them, so that the sample must be named.
    """

    __slots__ = ("_served", "_streams", "base", "batched", "first", "place")

    def __init__(self, base: int, first: int, *, batched: bool = False) -> None:
        self.base = base
        self.first = first
        self.place = first
        self.batched = batched
        self._streams: dict[int, _Stream] = {}
        self._served = -1

    def rng(self, place: int) -> np.random.Generator:
        """Return the generator of the sample at ``place``; asked again, it goes on where it was."""
        stream = self._streams.get(place)
        if stream is not None:
            return stream.generator
        return self._start(place, _thread.idle.pop() if _thread.idle else _Stream())

    def nth_rng(self, k: int) -> np.random.Generator:
        """Return the generator of the sample that stands ``k`` places behind the first."""
        return self.rng(self.first + k)

    def current_rng(self) -> np.random.Generator:
        """Return the generator of the sample at :attr:`place`: that of the one before, with a new key."""
        place = self.place
        stream = self._streams.get(place)
        if stream is not None:
            return stream.generator
        before = self._streams.pop(self._served, None)
        self._served = place
        return self._start(place, before) if before is not None else self.rng(place)

    def _start(self, place: int, stream: _Stream) -> np.random.Generator:
        self._streams[place] = stream
        return stream.rekey(self.base, place)

    def __enter__(self) -> Self:
        _thread.scopes.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _thread.scopes.remove(self)
        if self._streams:
            _thread.idle.extend(self._streams.values())
            self._streams.clear()


class _Part:
    """Some samples of a fetch, or one after the other: its streams are those of the scope that it is part of."""

    __slots__ = ("_scope", "_steps", "batched", "k")

    def __init__(self, scope: SampleScope | _Part, steps: Sequence[int] | None, *, batched: bool) -> None:
        self._scope, self._steps = scope, steps
        self.batched = batched
        self.k = 0

    def nth_rng(self, k: int) -> np.random.Generator:
        if self._steps is None:
            return self._scope.nth_rng(k)
        if k >= len(self._steps):
            raise InvalidValueError(
                f"k is {k}; expected the place of a record in the list of {len(self._steps)} indices, from 0."
            )
        return self._scope.nth_rng(self._steps[k])

    def current_rng(self) -> np.random.Generator:
        return self.nth_rng(self.k)

    def turn_to(self, k: int) -> None:
        self.k = k


class _Thread(threading.local):
    def __init__(self) -> None:
        self.scopes: list[SampleScope | _Part] = []
        self.idle: list[_Stream] = []


_thread = _Thread()


def sample_base(seed: int, split: int, epoch: int) -> int:
    """Return the key that all samples of one split and epoch share."""
    return derive(seed, "sample", split, epoch)


def sample_rng(k: int | None = None) -> np.random.Generator:
    """Return the random generator of the record that is being fetched.

    Its stream depends on (split, seed, epoch, place in the epoch's order) only: not on the worker, the rank,
    or what was drawn for other records. It is exact for one version of NumPy, which may change how a
    ``Generator`` turns bits into numbers. The generator is reused for later records; draw from it now, do not
    keep it.

    Args:
        k: inside ``__getitems__`` or a collate function, which of the batch's records is meant (its place in
            the list).

    Raises:
        SampleScopeError: no record is being fetched, or several are and ``k`` is not given.
        InvalidValueError: ``k`` is negative.
    """
    if not _thread.scopes:
        raise SampleScopeError(
            "sample_rng() was called outside a fetch; it is for __getitem__, __getitems__ and transforms "
            "while a loader asks for records. To call them by hand, open one: with "
            "parhelion.sample_scope(seed=0, place=3): ..."
        )
    scope = _thread.scopes[-1]
    if k is None:
        if scope.batched:
            raise SampleScopeError(
                "sample_rng() was called without k inside __getitems__ or a collate function, which handle "
                "several records at once; call sample_rng(k) with the record's place in the list, 0 for the "
                "whole batch."
            )
        return scope.current_rng()
    if k < 0:
        raise InvalidValueError(f"k is {k}; expected the place of a record in the list of indices, from 0.")
    return scope.nth_rng(k)


@contextmanager
def each_sample() -> Yields[Callable[[int], None], None, None]:
    """Let records that were fetched together be handled one after the other, each with its own stream.

    Call what this yields with a record's place in the list of indices; from then on :func:`sample_rng` returns its
    generator, which goes on where the dataset left it. What is drawn for a record is so the same as if it were fetched
    alone. Outside a fetch nothing is changed.
    """
    if not _thread.scopes:
        yield _turn_to_nothing
        return
    part = _Part(_thread.scopes[-1], None, batched=False)
    with _opened(part):
        yield part.turn_to


@contextmanager
def some_samples(places: Sequence[int]) -> Yields[None, None, None]:
    """Let ``sample_rng(k)`` mean the record at ``places[k]`` of the list of indices.

    It is for a dataset that hands parts of the list to other datasets; outside a fetch nothing is changed.

    Args:
        places: where the indices of the shorter list stand in the longer one.
    """
    if not _thread.scopes:
        yield
        return
    scope = _thread.scopes[-1]
    with _opened(_Part(scope, places, batched=scope.batched)):
        yield


@contextmanager
def _opened(part: _Part) -> Yields[None, None, None]:
    _thread.scopes.append(part)
    try:
        yield
    finally:
        _thread.scopes.remove(part)


def _turn_to_nothing(k: int) -> None:
    """Stand in for a scope where there is none."""


@contextmanager
def sample_scope(
    seed: int | None = None, *, epoch: int = 0, place: int = 0, split: int = 0
) -> Yields[SampleScope, None, None]:
    """Make :func:`sample_rng` work outside a fetch, as if one record were being fetched.

    Args:
        seed: the data seed; the default seed if None.
        epoch: 0-based.
        place: the record's place in the epoch's global order.
        split: a ``DatasetSplit`` value: 0 training, 1 validation, 2 test.

    Raises:
        InvalidValueError: ``seed`` is out of range.
    """
    seed = get_default_seed() if seed is None else check_seed(seed, "seed")
    with SampleScope(sample_base(seed, split, epoch), place) as scope:
        yield scope
