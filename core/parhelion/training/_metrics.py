"""Metrics that can be merged: the same result on one rank and on many, padding never counted.

Each keeps only sums, or counts by score (:class:`AUC`). Integer counts are exact; float sums are exact as well
(see :class:`~._tally.ExactSum`), so a result is the same bit for bit however the records were split over updates
and ranks, and in whatever order the parts are merged. ``update`` takes NumPy arrays, numbers, and arrays of any
library that NumPy can read; what is on a device is read only when a result is asked for, or every so many updates
(:class:`~._tally.Tally` says when).

``mask`` is True for a real record and False for padding: padded records are not looked at, whatever they
hold. It has the shape of the values, or of their leading axes: ``mask[batch]`` masks whole rows of
``values[batch, time]``.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from parhelion.registry import Registry

from ._classification import Accuracy, ConfusionMatrix
from ._metric_arrays import check_leading, check_weights, spread, spread_mask
from ._quotients import F1, Precision, Recall
from ._scores import AUC
from ._tally import ExactSum, Tally, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "AUC",
    "F1",
    "METRIC_REGISTRY",
    "Accuracy",
    "ConfusionMatrix",
    "Mean",
    "Metric",
    "Precision",
    "Recall",
    "Sum",
    "create_metric",
    "merge_states",
]


@runtime_checkable
class Metric(Protocol):
    """Something that is counted over many batches, on many ranks, and asked for at the end."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Count one batch."""
        ...

    def compute(self) -> Any:
        """Return the result for everything counted since the last reset."""
        ...

    def merge(self, other: Self) -> None:
        """Add what ``other`` has counted."""
        ...

    def reset(self) -> None:
        """Forget everything counted."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, as plain values and NumPy arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was counted by a saved state."""
        ...


AnyMetric = TypeVar("AnyMetric", bound=Metric)
METRIC_REGISTRY: Registry[Callable[..., Any]] = Registry("metric")


def create_metric(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a new metric of the kind registered as ``type_name``, built with the other arguments.

    Raises:
        UnknownNameError: no metric has that name; near matches are named.
    """
    return METRIC_REGISTRY.get(type_name)(*args, **kwargs)


def merge_states(metric: AnyMetric, states: Iterable[Mapping[str, Any]]) -> AnyMetric:
    """Return a new metric, made like ``metric``, that has counted what all ``states`` have, in their order.

    With the ``state_dict()`` of every rank, in rank order, it is the metric of the whole world. ``metric``
    itself stays as it is.
    """
    whole, part = copy.deepcopy(metric), copy.deepcopy(metric)
    whole.reset()
    for state in states:
        part.load_state_dict(state)
        whole.merge(part)
    return whole


class Mean(Tally):
    """The weighted mean of values; nan when nothing was counted.

    The mean of a batch's losses stands for its whole batch when the weight says so:
    ``update(loss, weight=batch_size)``.
    """

    def update(self, values: Any, weight: Any = None, mask: Any = None) -> None:
        """Count every element of ``values``.

        Args:
            values: numbers of any shape.
            weight: finite numbers >= 0 of that shape or of its leading axes, or one for all; 1 by default. A
                value of weight 0 is not looked at.
            mask: True for what is real, of that shape or of its leading axes.

        Raises:
            InvalidValueError: the shapes do not fit, or a weight is negative or not finite.
            InvalidTypeError: the mask is not of booleans.
        """
        shape = shape_of(values)
        check_leading("weight", weight, "values", shape)
        check_leading("mask", mask, "values", shape)
        self._take(values, weight, mask)

    def compute(self) -> float:
        """Return the sum of weight times value over the sum of weights."""
        self._fold()
        weight = float(self._sums["weight"])
        return float(self._sums["total"]) / weight if weight else math.nan

    def _zeros(self) -> dict[str, Any]:
        return {"total": ExactSum(), "weight": ExactSum()}

    def _count(self, *arrays: Any) -> None:
        values, weight, mask = arrays
        weights = None if weight is None else spread(weight, values.shape)
        if mask is not None:
            real = spread_mask(mask, values.shape)
            values, weights = values[real], None if weights is None else weights[real]
        values = np.asarray(values, np.float64)
        if weights is None:
            weights = np.array(values.size, np.float64)
        else:
            weights = np.asarray(weights, np.float64)
            check_weights(weights)
            values, weights = values[weights > 0] * weights[weights > 0], weights[weights > 0]
        self._sums["total"] = self._sums["total"].plus(values)
        self._sums["weight"] = self._sums["weight"].plus(weights)


class Sum(Tally):
    """The sum of values; 0.0 when nothing was counted."""

    def update(self, values: Any, mask: Any = None) -> None:
        """Count every element of ``values``.

        Args:
            values: numbers of any shape.
            mask: True for what is real, of that shape or of its leading axes.

        Raises:
            InvalidValueError: the shapes do not fit.
            InvalidTypeError: the mask is not of booleans.
        """
        check_leading("mask", mask, "values", shape_of(values))
        self._take(values, mask)

    def compute(self) -> float:
        """Return the sum, rounded once."""
        self._fold()
        return float(self._sums["total"])

    def _zeros(self) -> dict[str, Any]:
        return {"total": ExactSum()}

    def _count(self, *arrays: Any) -> None:
        values, mask = arrays
        counted = values if mask is None else values[spread_mask(mask, values.shape)]
        self._sums["total"] = self._sums["total"].plus(np.asarray(counted, np.float64))


METRIC_REGISTRY.register(Mean)
METRIC_REGISTRY.register(Sum)
METRIC_REGISTRY.register(Accuracy)
METRIC_REGISTRY.register(ConfusionMatrix)
METRIC_REGISTRY.register(Precision)
METRIC_REGISTRY.register(Recall)
METRIC_REGISTRY.register(F1)
METRIC_REGISTRY.register(AUC)
