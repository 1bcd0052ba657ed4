"""Metrics of predicted classes: accuracy, and the confusion matrix with what follows from it."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidValueError

from ._fields import check_count
from ._metric_arrays import check_predictions, check_range, checked_scores, classes, rank_of, selected
from ._tally import Tally, shape_of

__all__ = [
    "Accuracy",
    "ClassCounts",
    "ConfusionMatrix",
    "averaged",
    "parts_of_f1",
    "parts_of_precision",
    "parts_of_recall",
]

Average = Literal["macro", "micro", "weighted"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Accuracy(Tally):
    """The share of records whose label is among the ``top_k`` best scores; nan when nothing was counted.

    Of equal scores the lower class ranks first, so ``top_k=1`` is what ``argmax`` says.
    """

    def __init__(self, top_k: int = 1) -> None:
        check_count("top_k of Accuracy", top_k, 1)
        super().__init__(top_k=int(top_k))

    def update(self, predictions: Any, labels: Any, mask: Any = None) -> None:
        """Count every record.

        Args:
            predictions: scores, one per class along the last axis (``labels.shape + (num_classes,)``), in any
                unit that orders the classes; or, for ``top_k=1``, the predicted classes (``labels.shape``).
            labels: the true classes, integers from 0.
            mask: True for real records, of the labels' shape or of its leading axes.

        Raises:
            InvalidValueError: the shapes do not fit, ``top_k`` exceeds the number of classes, a label is no
                class, or a score is nan.
            InvalidTypeError: classes are not integers, or the mask is not of booleans.
        """
        num_classes = check_predictions(predictions, labels, mask)
        top_k = self._settings["top_k"]
        if num_classes is None and top_k > 1:
            raise InvalidValueError(
                f"predictions have the labels' shape {shape_of(labels)}, so they are classes; expected "
                f"scores, with one more axis, for top_k {top_k}. Pass what the classes were taken from."
            )
        if num_classes is not None and top_k > num_classes:
            raise InvalidValueError(
                f"top_k of Accuracy is {top_k}; expected at most {num_classes}, the classes that have scores."
            )
        self._take(predictions, labels, mask)

    def compute(self) -> float:
        """Return the share, from 0.0 to 1.0."""
        self._fold()
        num_records = self._sums["num_records"]
        return float(self._sums["num_correct"] / num_records) if num_records else math.nan

    def _zeros(self) -> dict[str, Any]:
        return {"num_correct": 0, "num_records": 0}

    def _count(self, *arrays: Any) -> None:
        predictions, labels = selected(*arrays)
        if predictions.ndim == 1:
            correct = classes("predictions", predictions) == labels
        else:
            check_range("labels", labels, predictions.shape[1])
            correct = rank_of(labels, checked_scores(predictions)) < self._settings["top_k"]
        self._sums["num_correct"] += int(np.count_nonzero(correct))
        self._sums["num_records"] += len(labels)


class ClassCounts(Tally):
    """How often each class was taken for each.

    Args:
        num_classes: how many there are.
        settings: what else two metrics must agree in to be merged.
    """

    def __init__(self, num_classes: int, **settings: Any) -> None:
        check_count(f"num_classes of {type(self).__name__}", num_classes, 2)
        super().__init__(num_classes=int(num_classes), **settings)

    def update(self, predictions: Any, labels: Any, mask: Any = None) -> None:
        """Count every record.

        Args:
            predictions: the predicted classes (``labels.shape``), or scores along one more, last axis, of
                which the best is the prediction; of equal ones the lower class.
            labels: the true classes, integers from 0 to ``num_classes - 1``.
            mask: True for real records, of the labels' shape or of its leading axes.

        Raises:
            InvalidValueError: the shapes do not fit, a class is out of range, or a score is nan.
            InvalidTypeError: classes are not integers, or the mask is not of booleans.
        """
        num_scores = check_predictions(predictions, labels, mask)
        if num_scores not in (None, self._settings["num_classes"]):
            raise InvalidValueError(
                f"predictions hold scores for {num_scores} classes; expected num_classes, "
                f"{self._settings['num_classes']}."
            )
        self._take(predictions, labels, mask)

    def matrix(self) -> Integers:
        """Return the counts, int64 ``[num_classes, num_classes]``: true class by row, predicted by column."""
        self._fold()
        counts: Integers = self._sums["counts"]
        return counts.copy()

    def _zeros(self) -> dict[str, Any]:
        num_classes = self._settings["num_classes"]
        return {"counts": np.zeros((num_classes, num_classes), np.int64)}

    def _count(self, *arrays: Any) -> None:
        predictions, labels = selected(*arrays)
        num_classes = self._settings["num_classes"]
        check_range("labels", labels, num_classes)
        if predictions.ndim == 1:
            predicted = classes("predictions", predictions)
            check_range("predictions", predicted, num_classes)
        else:
            predicted = checked_scores(predictions).argmax(axis=1)
        cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
        self._sums["counts"] = self._sums["counts"] + cells.reshape(num_classes, num_classes)


class ConfusionMatrix(ClassCounts):
    """How often each class was taken for each; precision, recall and F1 from it.

    A quotient without a denominator (a class never predicted has no precision) is 0, as with scikit-learn's
    ``zero_division=0``. With nothing counted every quotient is nan.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)

    def compute(self) -> dict[str, float]:
        """Return "accuracy", and "precision", "recall" and "f1" averaged over the classes that occur."""
        return {
            "accuracy": self.recall("micro"),
            "precision": self.precision(),
            "recall": self.recall(),
            "f1": self.f1(),
        }

    @overload
    def precision(self, average: Average = "macro") -> float: ...
    @overload
    def precision(self, average: None) -> Floats: ...
    def precision(self, average: Average | None = "macro") -> float | Floats:
        """Return how many of the records predicted as a class are of it.

        Args:
            average: "macro": the mean over the classes that occur, as labels or as predictions; "weighted":
                the mean over the labels' classes, by their number of records; "micro": of all records
                together; None: float64 ``[num_classes]``, one per class.

        Raises:
            InvalidValueError: ``average`` is none of these.
        """
        counts = self.matrix()
        return _averaged_or_each(counts, parts_of_precision(counts), average)

    @overload
    def recall(self, average: Average = "macro") -> float: ...
    @overload
    def recall(self, average: None) -> Floats: ...
    def recall(self, average: Average | None = "macro") -> float | Floats:
        """Return how many of a class's records are predicted as it; ``average`` as for :meth:`precision`."""
        counts = self.matrix()
        return _averaged_or_each(counts, parts_of_recall(counts), average)

    @overload
    def f1(self, average: Average = "macro") -> float: ...
    @overload
    def f1(self, average: None) -> Floats: ...
    def f1(self, average: Average | None = "macro") -> float | Floats:
        """Return the harmonic mean of precision and recall; ``average`` as for :meth:`precision`."""
        counts = self.matrix()
        return _averaged_or_each(counts, parts_of_f1(counts), average)


def parts_of_precision(counts: Integers) -> tuple[Integers, Integers]:
    """Return numerator and denominator of each class's precision."""
    return np.diag(counts), counts.sum(axis=0)


def parts_of_recall(counts: Integers) -> tuple[Integers, Integers]:
    """Return numerator and denominator of each class's recall."""
    return np.diag(counts), counts.sum(axis=1)


def parts_of_f1(counts: Integers) -> tuple[Integers, Integers]:
    """Return numerator and denominator of each class's F1, the harmonic mean of precision and recall."""
    return 2 * np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1)


def quotients_of(counts: Integers, numerators: Integers, denominators: Integers) -> Floats:
    """Return each class's quotient, float64 ``[num_classes]``: 0 without a denominator, nan with nothing counted."""
    quotients = np.zeros(len(counts)) if counts.any() else np.full(len(counts), math.nan)
    np.divide(numerators, denominators, out=quotients, where=denominators > 0)
    return quotients


def averaged(counts: Integers, numerators: Integers, denominators: Integers, average: Average) -> float:
    """Return the quotients of the classes as one; nan with nothing counted."""
    num_records = int(counts.sum())
    if num_records == 0:
        return math.nan
    if average == "micro":
        return int(numerators.sum()) / int(denominators.sum())
    quotients = quotients_of(counts, numerators, denominators)
    labeled, predicted = counts.sum(axis=1), counts.sum(axis=0)
    if average == "weighted":
        return float(np.dot(quotients, labeled)) / num_records
    return float(quotients[labeled + predicted > 0].mean())


def _averaged_or_each(counts: Integers, parts: tuple[Integers, Integers], average: Average | None) -> float | Floats:
    if average not in ("macro", "micro", "weighted", None):
        raise InvalidValueError(
            f"average is {average!r}; expected 'macro', 'micro', 'weighted' or None for one value per class."
        )
    return quotients_of(counts, *parts) if average is None else averaged(counts, *parts, average)
