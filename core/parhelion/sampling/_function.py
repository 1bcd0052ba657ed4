"""A sampler made of one function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._arrays import check_range, fingerprint
from ._permutation import Indices
from ._placed import PlacedSampler, check_size
from ._registry import SAMPLER_REGISTRY
from ._shuffle import count_records

__all__ = ["ResumableFunctionSampler"]

_get_type: Callable[[Any], Any] = type


@SAMPLER_REGISTRY.register
class ResumableFunctionSampler(PlacedSampler):
    """The order that a function says.

    The function gets an epoch and places in it, and returns the record at each place. It must be pure: the same for the
    same arguments, whatever was asked for before. ``parhelion.testing.check_sampler_resumes`` looks whether it is.

    Registered in ``SAMPLER_REGISTRY``, a function whose first two parameters are called ``epoch`` and ``places`` can be
    asked for by name, like a class of samplers.

    Args:
        data_source: anything with a length.
        function: ``function(epoch, places) -> indices``, from int64 of shape ``(k,)`` to integers of the same shape,
            each in [0, len(data_source)). If it has parameters ``seed`` and ``num_records``, it gets these two as well.
        num_samples: samples of an epoch; as many as there are records if None.
        seed: an integer in [0, 2**64).
        batch_size: records per batch.
        arguments: further arguments for the function, by name.

    Raises:
        InvalidTypeError: ``data_source`` has no length, or the function cannot be called like that.
        InvalidValueError: the dataset is empty, or a number is out of range.
    """

    def __init__(
        self,
        data_source: Sized,
        function: Callable[..., npt.ArrayLike],
        num_samples: int | None = None,
        seed: int = 0,
        batch_size: int = 1,
        **arguments: Any,
    ) -> None:
        count = count_records(data_source, "data_source")
        super().__init__(count if num_samples is None else check_size(num_samples, "num_samples"), seed, batch_size)
        self.data_source = data_source
        self._num_records = count
        self._function = function
        self._name = str(getattr(function, "__qualname__", type(function).__qualname__))
        self._arguments = arguments
        self._given = {**self._get_known(), **arguments}

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the order beside seed and length."""
        return {"function": self._name, **{name: _describe(value) for name, value in self._arguments.items()}}

    def _get_known(self) -> dict[str, Any]:
        """Return those of seed and size that the function has a parameter for; refuse what cannot be called."""
        if not callable(self._function):
            raise InvalidTypeError(
                f"function is {self._function!r}; expected one that takes (epoch, places) and returns indices."
            )
        known = {"seed": self._seed, "num_records": self._num_records}
        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):
            return {}  # some functions that are written in C do not say
        known = {name: value for name, value in known.items() if name in signature.parameters}
        try:
            signature.bind(0, np.empty(0, np.int64), **{**known, **self._arguments})
        except TypeError as error:
            raise InvalidTypeError(
                f"function {self._name}{signature} cannot be called with (epoch, places"
                f"{''.join(f', {name}=...' for name in [*known, *self._arguments])}): {error}; expected one that "
                "can. Pass its other arguments by name."
            ) from error
        return known

    def _records_at(self, epoch: int, places: Indices) -> Indices:
        found = np.asarray(self._function(epoch, places, **self._given))
        if found.shape != places.shape:
            raise InvalidValueError(
                f"function {self._name} returned an array of shape {found.shape} for {len(places)} places; expected "
                f"one index for each, shape {places.shape}. Compute with the places that it is given."
            )
        if found.dtype.kind not in "iu":
            raise InvalidTypeError(
                f"function {self._name} returned an array of dtype {found.dtype}; expected integers. Divide with // "
                "and not with /, or write .astype(np.int64)."
            )
        return check_range(found, self._num_records, f"what function {self._name} returned")


def _describe(value: Any) -> Any:
    """Return what a checkpoint can hold of an argument."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind: type[Any] = _get_type(value)
    if issubclass(kind, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iuf":
        return fingerprint(value)
    return kind.__qualname__
