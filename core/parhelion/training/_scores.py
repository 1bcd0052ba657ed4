"""The area under the ROC curve, exact: of all scores, not of a grid of thresholds."""

from __future__ import annotations

import math
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidValueError

from ._metric_arrays import check_leading, check_range, checked_scores, classes, spread_mask
from ._tally import Tally, shape_of

__all__ = ["AUC", "ScoreTable"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_INT64_END: Final = 2**63


@attrs.frozen(eq=False)
class ScoreTable:
    """How many records of class 0 and of class 1 have each score.

    Attributes:
        levels: tables, each float64 ``[rows, 3]``: a score, and how many records of class 0 and of class 1 have it; by
            rising score. They are kept apart, each shorter than the one before, so that adding n records one by one
            costs n log n.
    """

    levels: tuple[Floats, ...] = ()

    def plus(self, scores: Floats, labels: Integers) -> ScoreTable:
        """Return the table with records of these scores and labels (0 and 1) added."""
        ones = labels == 1
        return self._with(_compact(np.column_stack([scores, ~ones, ones])))

    def __add__(self, other: ScoreTable) -> ScoreTable:
        return self._with(other.encoded())

    def _with(self, rows: Floats) -> ScoreTable:
        levels = [*self.levels]
        while levels and len(levels[-1]) <= len(rows):
            rows = _compact(np.concatenate([levels.pop(), rows]))
        return ScoreTable((*levels, rows)) if len(rows) else self

    def encoded(self) -> Floats:
        """Return one table, float64 ``[scores, 3]``: the same one however the records came."""
        return _compact(np.concatenate([np.zeros((0, 3)), *self.levels]))

    def decoded(self, saved: Any) -> ScoreTable:
        """Return what :meth:`encoded` came from."""
        rows = np.array(saved, np.float64).reshape(-1, 3)
        return ScoreTable((rows,)) if len(rows) else ScoreTable()


def _compact(rows: Floats) -> Floats:
    """Return the rows by rising score, those of one score added up."""
    scores, where = np.unique(rows[:, 0], return_inverse=True)
    table = np.zeros((len(scores), 3))
    table[:, 0] = scores
    for column in (1, 2):
        table[:, column] = np.bincount(where, rows[:, column], len(scores))
    return table


class AUC(Tally):
    """The area under the ROC curve of two classes.

    That is how likely a record of class 1 has a higher score than one of class 0.

    Equal scores count half (the rank statistic of Mann and Whitney, "On a test of whether one of two random variables
    is stochastically larger than the other", Annals of Mathematical Statistics 1947). It is exact: all distinct scores
    are kept, 24 bytes each. It is nan as long as one of the classes has no record.
    """

    def update(self, scores: Any, labels: Any, mask: Any = None) -> None:
        """Count every record.

        Args:
            scores: the higher, the likelier class 1, in any unit: probabilities or logits of class 1, of any shape;
                compared as float64.
            labels: 0 or 1 (or booleans), of the scores' shape.
            mask: True for real records, of the labels' shape or of its leading axes.

        Raises:
            InvalidValueError: the shapes do not fit, a label is neither 0 nor 1, or a score is nan.
            InvalidTypeError: labels are not integers, or the mask is not of booleans.
        """
        shape, labels_shape = shape_of(scores), shape_of(labels)
        if shape != labels_shape:
            raise InvalidValueError(
                f"scores have shape {shape} and labels {labels_shape}; expected the same. Of scores for both classes "
                "pass those of class 1, probabilities[..., 1]."
            )
        check_leading("mask", mask, "labels", labels_shape)
        self._take(scores, labels, mask)

    def compute(self) -> float:
        """Return the area, from 0.0 to 1.0."""
        _, negatives, positives = self._table().T
        num_negatives, num_positives = int(negatives.sum()), int(positives.sum())
        if not num_negatives or not num_positives:
            return math.nan
        # Twice the pairs that are in order, so that a tie is 1 and all stay integers.
        twice = _dot(positives, 2 * np.cumsum(negatives) - negatives, 2 * num_negatives * num_positives)
        return twice / (2 * num_negatives * num_positives)

    def _table(self) -> Floats:
        self._fold()
        table: Floats = self._sums["table"].encoded()
        return table

    def _zeros(self) -> dict[str, Any]:
        return {"table": ScoreTable()}

    def _count(self, *arrays: Any) -> None:
        scores, labels, mask = arrays
        labels = classes("labels", labels)
        if mask is not None:
            real = spread_mask(mask, labels.shape)
            scores, labels = scores[real], labels[real]
        check_range("labels", labels, 2)
        # Adding 0.0 makes -0.0 the same score to the bit.
        scores = np.asarray(checked_scores(scores), np.float64).ravel() + 0.0
        self._sums["table"] = self._sums["table"].plus(scores, labels.ravel())


def _dot(counts: Floats, others: Floats, bound: int) -> int:
    """Return the exact sum of products, none of whose partial sums exceeds ``bound``."""
    if bound < _INT64_END:
        return int(np.dot(counts.astype(np.int64), others.astype(np.int64)))
    return sum(int(a) * int(b) for a, b in zip(counts, others, strict=True))
