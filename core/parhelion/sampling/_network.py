"""A keyed permutation of any range by a Feistel network on a grid: constant memory, either direction.

It is the generalized Feistel cipher of Black and Rogaway ("Ciphers with arbitrary finite domains", CT-RSA
2002) on the grid of rows and columns that just covers the size: row and column take turns in being added to,
modulo their number, a keyed hash of the other. The few results that fall outside the size are sent through
again ("cycle walking").
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GOLDEN", "Grid", "Indices", "hash_words", "mix"]

Indices: TypeAlias = npt.NDArray[np.int64]
_Words: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

_CHUNK_BYTES: Final = 1 << 18  # the five arrays of one chunk then stay in a core's own cache
_FEW: Final = 8  # up to here plain integers beat the fixed cost of some ninety array operations

_MASK_64: Final = 2**64 - 1
GOLDEN: Final = 0x9E3779B97F4A7C15
_SPLITMIX: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_FACTOR: Final = {32: 0x85EBCA6B, 64: 0xD6E8FEB86659FD93}


def mix(word: int) -> int:
    """Return the SplitMix64 finalizer of ``word`` (Steele, Lea and Flood, OOPSLA 2014)."""
    word = ((word ^ (word >> 30)) * _SPLITMIX[0]) & _MASK_64
    word = ((word ^ (word >> 27)) * _SPLITMIX[1]) & _MASK_64
    return word ^ (word >> 31)


def hash_words(state: int, numbers: Indices) -> npt.NDArray[np.uint64]:
    """Return numbers ``1 + n`` of the SplitMix64 stream that starts at ``state``, for each ``n`` of ``numbers``.

    Args:
        state: an integer in [0, 2**64).
        numbers: int64 of any shape, each >= 0.

    Returns:
        uint64 of the same shape.
    """
    words = numbers.astype(np.uint64)
    words += np.uint64(1)
    words *= np.uint64(GOLDEN)
    words += np.uint64(state)
    for shift, factor in zip((30, 27), _SPLITMIX, strict=True):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words


class _Scratch(NamedTuple):
    """Arrays for one chunk, kept for the next one because the page faults of fresh ones cost time."""

    columns: _Words
    rows: _Words
    noise: _Words
    spare: _Words
    ramp: _Words


def _cut(scratch: _Scratch, count: int) -> _Scratch:
    return scratch if count == len(scratch.ramp) else _Scratch(*(array[:count] for array in scratch))


class Grid:
    """The network, for one plain integer or for many at once; both give the same bits."""

    __slots__ = ("_bits", "_columns", "_keys", "_rows", "_scratch", "_size")

    def __init__(self, size: int, state: int, rounds: int) -> None:
        self._size = size
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        # A row or column then has at most half a word's bits, so that no sum or product of two overflows.
        self._bits = 32 if size <= 2**32 else 64
        words = [mix((state + i * GOLDEN) & _MASK_64) for i in range(1, 2 * rounds + 1)]
        shift = 64 - self._bits
        self._keys = [(words[i] >> shift | 1, words[i + 1] >> shift) for i in range(0, 2 * rounds, 2)]
        self._scratch: list[_Scratch] = []

    def one(self, place: int, *, inverse: bool) -> int:
        half, factor, mask = self._bits // 2, _FACTOR[self._bits], (1 << self._bits) - 1
        keys = self._keys[::-1] if inverse else self._keys
        while True:
            moved, fixed = divmod(place, self._columns)
            modulus, other = self._rows, self._columns
            if inverse:
                moved, fixed, modulus, other = fixed, moved, other, modulus
            for odd, addend in keys:
                noise = (fixed * odd + addend) & mask
                noise = (((noise ^ (noise >> half)) * factor) & mask) >> 1
                turned = (moved - noise if inverse else moved + noise) % modulus
                moved, fixed, modulus, other = fixed, turned, other, modulus
            row, column = (fixed, moved) if inverse else (moved, fixed)
            place = row * self._columns + column
            if place < self._size:
                return place

    def span(self, start: int, out: Indices) -> None:
        if len(out) <= _FEW:
            out[:] = [self.one(start + i, inverse=False) for i in range(len(out))]
            return
        for low, part, work in self._chunks(out):
            np.add(work.ramp, work.ramp.dtype.type(start + low), out=work.columns)
            self._permute(work, part, inverse=False)

    def many(self, places: Indices, out: Indices, *, inverse: bool) -> None:
        if len(out) <= _FEW:
            out[:] = [self.one(place, inverse=inverse) for place in places.tolist()]
            return
        for low, part, work in self._chunks(out):
            work.columns[:] = places[low : low + len(part)]
            self._permute(work, part, inverse=inverse)

    def _chunks(self, out: Indices) -> Iterator[tuple[int, Indices, _Scratch]]:
        """Yield each chunk of ``out``: its start, itself, and arrays of its length to work in."""
        scratch = self._take(len(out))
        length = len(scratch.ramp)
        for low in range(0, len(out), length):
            part = out[low : low + length]
            yield low, part, _cut(scratch, len(part))
        self._scratch.append(scratch)

    def _take(self, count: int) -> _Scratch:
        """Return arrays for this call alone, of a chunk's length or less."""
        length = min(count, _CHUNK_BYTES * 8 // self._bits)
        try:
            scratch = self._scratch.pop()  # atomic, so two threads never get the same arrays
        except IndexError:
            scratch = None
        if scratch is not None and len(scratch.ramp) >= length:
            return scratch
        dtype = np.dtype(f"u{self._bits // 8}")
        columns, rows, noise, spare = (np.empty(length, dtype) for _ in range(4))
        return _Scratch(columns, rows, noise, spare, ramp=np.arange(length, dtype=dtype))

    def _permute(self, work: _Scratch, out: Indices, *, inverse: bool) -> None:
        """Write to ``out`` where the places in ``work.columns`` go."""
        self._turn(work, inverse=inverse)
        out[:] = work.columns
        if self._rows * self._columns == self._size:
            return
        outside = np.flatnonzero(out >= self._size)
        while len(outside) > _FEW:
            count = len(outside)
            again = _cut(work, count)
            again.columns[:] = out[outside]
            self._turn(again, inverse=inverse)
            out[outside] = again.columns
            outside = outside[again.columns >= self._size]
        for i in outside.tolist():
            out[i] = self.one(int(out[i]), inverse=inverse)

    def _turn(self, work: _Scratch, *, inverse: bool) -> None:
        """Send the places in ``work.columns`` through the network once, in place."""
        columns, rows, noise, spare, _ = work
        word = columns.dtype.type
        width = word(self._columns)
        np.floor_divide(columns, width, out=rows)
        np.multiply(rows, width, out=spare)
        np.subtract(columns, spare, out=columns)
        turns = [(rows, columns, self._rows), (columns, rows, self._columns)] * (len(self._keys) // 2)
        steps = list(zip(turns, self._keys, strict=True))
        for (moved, fixed, count), key in reversed(steps) if inverse else steps:
            self._hash(fixed, key, noise, spare)
            if inverse:
                # A multiple of the modulus above every noise keeps the difference from going below zero.
                np.add(moved, word(count * -(-(1 << (self._bits - 1)) // count)), out=moved)
                np.subtract(moved, noise, out=noise)
            else:
                np.add(noise, moved, out=noise)
            modulus = word(count)
            # Ten times faster than the remainder, which NumPy does not vectorize.
            np.floor_divide(noise, modulus, out=spare)
            np.multiply(spare, modulus, out=spare)
            np.subtract(noise, spare, out=moved)
        np.multiply(rows, width, out=rows)
        np.add(columns, rows, out=columns)

    def _hash(self, fixed: _Words, key: tuple[int, int], noise: _Words, spare: _Words) -> None:
        """Write to ``noise`` a keyed hash of ``fixed``, of one bit less than a word."""
        word = fixed.dtype.type
        odd, addend = key
        np.multiply(fixed, word(odd), out=noise)
        np.add(noise, word(addend), out=noise)
        np.right_shift(noise, word(self._bits // 2), out=spare)
        np.bitwise_xor(noise, spare, out=noise)
        np.multiply(noise, word(_FACTOR[self._bits]), out=noise)
        np.right_shift(noise, word(1), out=noise)
