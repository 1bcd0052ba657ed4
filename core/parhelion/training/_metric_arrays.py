"""The arrays that a metric is updated with: what must fit, what is picked, what a value may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._tally import shape_of

__all__ = [
    "check_leading",
    "check_predictions",
    "check_range",
    "check_weights",
    "checked_scores",
    "classes",
    "rank_of",
    "selected",
    "spread",
    "spread_mask",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def check_leading(what: str, array: Any, whole: str, whole_shape: tuple[int, ...]) -> None:
    """Raise unless ``array`` is None or has the beginning of ``whole_shape``."""
    shape = () if array is None else shape_of(array)
    if shape != whole_shape[: len(shape)]:
        raise InvalidValueError(
            f"{what} has shape {shape} and {whole} {whole_shape}; expected the same, or its leading axes."
        )


def check_predictions(predictions: Any, labels: Any, mask: Any) -> int | None:
    """Return how many classes the predictions hold scores for; None if they are classes themselves."""
    shape, labels_shape = shape_of(predictions), shape_of(labels)
    check_leading("mask", mask, "labels", labels_shape)
    if shape == labels_shape:
        return None
    if shape[:-1] != labels_shape:
        raise InvalidValueError(
            f"predictions have shape {shape} and labels {labels_shape}; expected the labels' shape, or "
            "one more axis behind it with a score per class. Move the axis of the classes to the end."
        )
    if shape[-1] < 2:  # noqa: PLR2004 - one class is no choice
        raise InvalidValueError(
            f"predictions have shape {shape}, scores for {shape[-1]} classes; expected at least 2. "
            "For a single probability p pass the classes p > 0.5."
        )
    return shape[-1]


def selected(predictions: Any, labels: Any, mask: Any) -> tuple[Any, Integers]:
    """Return the predictions and labels of the real records, one per row."""
    labels = classes("labels", labels)
    if mask is None:
        return predictions.reshape(labels.size, *predictions.shape[labels.ndim :]), labels.ravel()
    real = spread_mask(mask, labels.shape)
    return predictions[real], labels[real]


def spread_mask(mask: Any, shape: tuple[int, ...]) -> Mask:
    """Return the mask for every element of ``shape``."""
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        raise InvalidTypeError(f"mask is of {mask.dtype}; expected bool, True for a real record. Pass mask != 0.")
    return spread(mask, shape)


def spread(leading: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return an array of the leading axes repeated along the others."""
    array = np.asarray(leading)
    return np.broadcast_to(array.reshape(array.shape + (1,) * (len(shape) - array.ndim)), shape)


def check_weights(weights: Floats) -> None:
    """Raise unless every weight is finite and >= 0."""
    wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
    if wrong.size:
        raise InvalidValueError(f"weight holds {wrong.flat[0]}; expected finite numbers >= 0.")


def classes(what: str, array: Any) -> Integers:
    """Return the classes as int64."""
    if array.dtype.kind not in "biu":
        raise InvalidTypeError(f"{what} are of {array.dtype}; expected integers, one class per record.")
    return np.asarray(array, np.int64)


def check_range(what: str, found: Integers, num_classes: int) -> None:
    """Raise unless every class is one of ``num_classes``."""
    wrong = found[(found < 0) | (found >= num_classes)]
    if wrong.size:
        raise InvalidValueError(
            f"{what} hold {wrong[0]}; expected 0 to {num_classes - 1}. Leave records without a class out with mask=."
        )


def checked_scores(predictions: Any) -> Any:
    """Return the scores, none of which is nan."""
    if np.isnan(predictions).any():
        raise InvalidValueError(
            "predictions hold nan; expected scores that can be ordered. Leave such records out with mask=."
        )
    return predictions


def rank_of(labels: Integers, scores: npt.NDArray[Any]) -> Integers:
    """Return how many classes rank before each label; of equal scores the lower class is first."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    columns: Integers = np.arange(scores.shape[1], dtype=np.int64)
    ahead: Mask = (scores > own) | ((scores == own) & (columns < labels[:, None]))
    rank: Integers = np.add.reduce(ahead, axis=1, dtype=np.int64)
    return rank
