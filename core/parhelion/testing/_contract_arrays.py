"""What every backend's array adapter does, as a test class to derive from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from parhelion.checkpoint import ArrayAdapter, HostArray, load_checkpoint, save_checkpoint

from ._claims import claim
from ._compare import first_difference

__all__ = ["ArraysContract"]

_META = {"run_name": "contract", "global_epoch": 1, "global_iteration": 1}
_SHAPES = ((), (1,), (7,), (2, 3), (0, 3), (2, 1, 3))


class ArraysContract(ABC):
    """What an adapter does with the framework's arrays. Derive a ``TestArrays`` and give the ``make_`` methods.

    Attributes:
        dtypes: NumPy's names of the element types that ``make_array`` can make.
    """

    dtypes: ClassVar[tuple[str, ...]] = (
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64"),
    )

    @abstractmethod
    def make_arrays(self) -> ArrayAdapter:
        """Return the adapter to be tested."""

    @abstractmethod
    def make_array(self, values: Any) -> Any:
        """Return the framework's own array with the elements and the type of a NumPy array."""

    def read(self, array: Any) -> Any:
        """Return the NumPy array of one of the framework's."""
        return np.asarray(array)

    def special_arrays(self) -> dict[str, Any]:
        """Return arrays of types that NumPy has no name for, such as bfloat16, by any name."""
        return {}

    def test_every_array_comes_back_from_disk_bit_for_bit(self, tmp_path: Path) -> None:
        """Type, shape and every bit pattern, NaN payloads among them."""
        made = {name: self.make_array(values) for name, values in self._values().items()}
        back = self._there_and_back(tmp_path, made)
        for name, array in made.items():
            claim(
                type(back[name]) is type(array),
                f"{name} should come back as a {type(array).__qualname__} and is a {type(back[name]).__qualname__}",
            )
            difference = first_difference(self.read(array), self.read(back[name]), name)
            claim(difference is None, str(difference))

    def test_types_without_a_name_in_numpy_come_back_too(self, tmp_path: Path) -> None:
        """By the bytes that the adapter makes of them."""
        made, arrays = self.special_arrays(), self.make_arrays()
        back = self._there_and_back(tmp_path, made)
        for name, array in made.items():
            one, other = _encode(arrays, array, name), _encode(arrays, back[name], name)
            claim(
                (one.dtype, one.shape, one.data.tobytes()) == (other.dtype, other.shape, other.data.tobytes()),
                f"{name} of {one.dtype} should come back bit for bit, and has other bytes or is of {other.dtype}",
            )

    def test_the_bytes_are_what_numpy_would_write(self) -> None:
        """So that a checkpoint opens on any backend."""
        arrays = self.make_arrays()
        for name, values in self._values().items():
            host = _encode(arrays, self.make_array(values), name)
            claim(host.dtype == values.dtype.name, f"{name} should be encoded as {values.dtype} and is as {host.dtype}")
            claim(host.shape == values.shape, f"{name} should be encoded with {values.shape} and is with {host.shape}")
            claim(host.data.tobytes() == values.tobytes(), f"{name} should be encoded in C order, little-endian")

    def test_one_array_in_two_places_stays_one(self, tmp_path: Path) -> None:
        """Tied weights stay tied; arrays that only look alike stay two."""
        values = np.arange(6, dtype=np.float32)
        tied, twin = self.make_array(values), self.make_array(values.copy())
        back = self._there_and_back(tmp_path, {"a": tied, "b": {"c": tied}, "twin": twin})
        claim(back["a"] is back["b"]["c"], "one array in two places should come back as one, and came back as two")
        claim(back["a"] is not back["twin"], "two arrays with the same elements should come back as two, not as one")

    def test_what_is_no_array_of_the_framework_is_left_to_the_core(self) -> None:
        """``identity`` is None for it."""
        arrays = self.make_arrays()
        for value in (None, 1, 2.5, "text", True, np.arange(3), np.float32(1), [1, 2], {"a": 1}):
            claim(
                arrays.identity(value) is None, f"identity({value!r}) should be None; it is no array of the framework"
            )
        claim(
            arrays.identity(self.make_array(np.ones(2, np.float32))) is not None,
            "identity should be a key for the framework's arrays and is None",
        )

    def _values(self) -> dict[str, Any]:
        """Return NumPy arrays of every type and shape, with bits at random."""
        rng, found = np.random.Generator(np.random.PCG64(2)), dict[str, Any]()
        for dtype in map(np.dtype, self.dtypes):
            for shape in _SHAPES:
                raw = rng.integers(0, 2 if dtype.kind == "b" else 256, (*shape, dtype.itemsize), np.uint8)
                found[f"{dtype}{list(shape)}"] = np.ascontiguousarray(raw).reshape(-1).view(dtype).reshape(shape)
        return found

    def _there_and_back(self, folder: Path, tree: Any) -> Any:
        path = save_checkpoint(folder, "contract", tree, _META, self.make_arrays())
        return load_checkpoint(path, self.make_arrays()).tree


def _encode(arrays: ArrayAdapter, array: Any, name: str) -> HostArray:
    host = arrays.encode(array, name)
    claim(isinstance(host, HostArray), f"{name} is all in this process, and encode should return a HostArray")
    return cast("HostArray", host)
