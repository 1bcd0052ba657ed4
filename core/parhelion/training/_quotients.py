"""Precision, recall and F1 as metrics of their own: one number, or one for each class."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, TypeAlias

from parhelion.errors import InvalidValueError

from ._classification import (
    ClassCounts,
    Integers,
    averaged,
    parts_of_f1,
    parts_of_precision,
    parts_of_recall,
    quotients_of,
)

__all__ = ["F1", "Precision", "Recall"]

Average: TypeAlias = Literal["binary", "macro", "micro", "weighted", "each"]


class _Quotient(ClassCounts):
    """A quotient of counts for each class, and how those of several classes are one."""

    def __init__(self, num_classes: int, average: Average = "macro") -> None:
        super().__init__(num_classes, average=average)
        name = type(self).__name__
        if average not in ("binary", "macro", "micro", "weighted", "each"):
            raise InvalidValueError(
                f"average of {name} is {average!r}; expected 'binary', 'macro', 'micro', 'weighted' or 'each'."
            )
        if average == "binary" and num_classes != 2:  # noqa: PLR2004 - that is what binary means
            raise InvalidValueError(
                f"average of {name} is 'binary' and num_classes {num_classes}; expected 2 classes, of which 1 is the "
                "positive one. Use 'macro' or 'each'."
            )

    def compute(self) -> float | dict[str, float]:
        """Return the quotient; for "each", those of all classes by their number: ``{"0": 0.5, "1": 0.75}``."""
        counts, average = self.matrix(), self._settings["average"]
        if average not in ("binary", "each"):
            return averaged(counts, *self._parts(counts), average)
        quotients = quotients_of(counts, *self._parts(counts))
        if average == "binary":
            return float(quotients[1])
        return {str(number): float(each) for number, each in enumerate(quotients)}

    @abstractmethod
    def _parts(self, counts: Integers) -> tuple[Integers, Integers]:
        """Return the numerator and the denominator of each class, from the confusion matrix."""


class Precision(_Quotient):
    """How many of the records predicted as a class are of it; arguments and averages as for :class:`F1`."""

    def _parts(self, counts: Integers) -> tuple[Integers, Integers]:
        return parts_of_precision(counts)


class Recall(_Quotient):
    """How many of a class's records are predicted as it; arguments and averages as for :class:`F1`."""

    def _parts(self, counts: Integers) -> tuple[Integers, Integers]:
        return parts_of_recall(counts)


class F1(_Quotient):
    """The harmonic mean of precision and recall.

    Without a denominator (a class that is neither predicted nor a label has none) it is 0, as with scikit-learn's
    ``zero_division=0``; with nothing counted it is nan.

    Args:
        num_classes: how many classes there are.
        average: "macro": the mean over the classes that occur, as labels or as predictions; "weighted": the mean over
            the labels' classes, by their number of records; "micro": of all records together; "binary": that of class 1
            of two; "each": one for each class.

    Raises:
        InvalidTypeError: ``num_classes`` is no integer.
        InvalidValueError: ``num_classes`` is below 2, ``average`` is none of these, or "binary" for more than two.
    """

    def _parts(self, counts: Integers) -> tuple[Integers, Integers]:
        return parts_of_f1(counts)
