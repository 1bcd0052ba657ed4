"""Mixing the records of a batch: transforms of whole batches that change images and labels together."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from parhelion.errors import InvalidTypeError, InvalidValueError

from ._misfit import describe

__all__ = ["CutMix", "MixUp"]

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: what is inside of something that is Any is Any

_Array = npt.NDArray[Any]


@attrs.frozen
class _Mix(ABC):
    """What both have: which fields of a batch they change, and the numbers of labels.

    Attributes:
        alpha: both parameters of the Beta distribution that the share of the first record is drawn from.
        num_classes: what whole-number labels become shares of.
        inputs: the field that is mixed: a key, an attribute, or a place in a tuple.
        labels: the field of the labels.
    """

    is_for_batches = True
    global_rng = "off"

    alpha: float = attrs.field(default=1.0)
    num_classes: int | None = attrs.field(default=None, kw_only=True)
    inputs: str | int = attrs.field(default="image", kw_only=True)
    labels: str | int = attrs.field(default="label", kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not 0 < self.alpha < np.inf:
            raise InvalidValueError(f"alpha is {self.alpha}; expected a number above 0. 0.2 mixes little, 1 evenly.")
        if self.num_classes is not None and self.num_classes < 1:
            raise InvalidValueError(
                f"num_classes is {self.num_classes}; expected an integer >= 1, or None where labels are shares already."
            )

    def __call__(self, batch: Any, rng: np.random.Generator) -> Any:
        """Return a batch with mixed inputs and labels; what is not mixed is the same, and ``batch`` is as before.

        Args:
            batch: a dict, a tuple, an attrs or dataclass record. Inputs are numbers of shape (batch, ...); labels are
                integers of shape (batch,) in [0, num_classes), or shares of shape (batch, classes).
            rng: draws the share and who is mixed with whom.

        Returns:
            The batch with labels as float32 shares of shape (batch, num_classes).

        Raises:
            InvalidTypeError: the batch has no such fields, or they are no arrays of the right kind.
            InvalidValueError: a label is out of range, or whole-number labels come without ``num_classes``.
        """
        inputs = _get(batch, self.inputs, type(self).__name__)
        shares = _to_shares(_get(batch, self.labels, type(self).__name__), self.num_classes)
        if len(inputs) != len(shares):
            raise InvalidTypeError(
                f"field {self.labels!r} of the batch has {len(shares)} rows and {self.inputs!r} {len(inputs)}; "
                "expected the same number, one for each record."
            )
        share = float(rng.beta(self.alpha, self.alpha))
        partners = rng.permutation(len(inputs))
        mixed, share = self._mix(inputs, inputs[partners], share, rng)
        labels = _blend(shares, shares[partners], share)
        return _replace(batch, {self.inputs: mixed, self.labels: labels})

    @abstractmethod
    def _mix(self, inputs: _Array, others: _Array, share: float, rng: np.random.Generator) -> tuple[_Array, float]:
        """Return the inputs mixed with the others, and the share that is the inputs' then."""


@attrs.frozen
class MixUp(_Mix):
    """Each record of a batch mixed with another one: ``share * record + (1 - share) * other``, and the labels likewise.

    One share is drawn for the batch, from Beta(alpha, alpha); the others are a permutation of its records. Inputs must
    be floating-point and keep their dtype; labels become float32 shares.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond empirical risk minimization", ICLR 2018.

    Attributes:
        alpha: both parameters of the Beta distribution.
        num_classes: how many classes whole-number labels have; None where labels are shares already.
        inputs: the field that is mixed: a key, an attribute, or a place in a tuple.
        labels: the field of the labels.

    Raises:
        InvalidValueError: a number is out of range.
    """

    alpha: float = attrs.field(default=0.2)

    def _mix(self, inputs: _Array, others: _Array, share: float, rng: np.random.Generator) -> tuple[_Array, float]:
        if inputs.dtype.kind not in "fc":
            raise InvalidTypeError(
                f"field {self.inputs!r} of the batch has dtype {inputs.dtype}; expected floating-point numbers, which "
                "can be mixed. Convert it in a transform, or use CutMix, which takes any."
            )
        return _blend(inputs, others, share), share


@attrs.frozen
class CutMix(_Mix):
    """Each image of a batch with a rectangle of another one in it, and labels by the areas.

    One rectangle is drawn for the batch: its center anywhere, its area ``1 - share`` of the image with a share from
    Beta(alpha, alpha), cut off at the border; labels are mixed by the area that it really has.

    Source: Yun, Han, Oh, Chun, Choe, Yoo, "CutMix: Regularization strategy to train strong classifiers with localizable
    features", ICCV 2019.

    Attributes:
        alpha: both parameters of the Beta distribution.
        num_classes: how many classes whole-number labels have; None where labels are shares already.
        inputs: the field of the images: a key, an attribute, or a place in a tuple.
        labels: the field of the labels.
        axes: the axes of height and width in a batch: (2, 3) for (batch, channels, height, width), the default, and
            (1, 2) where channels come last.

    Raises:
        InvalidValueError: a number is out of range.
    """

    axes: tuple[int, int] = attrs.field(default=(2, 3), kw_only=True)

    def _mix(self, inputs: _Array, others: _Array, share: float, rng: np.random.Generator) -> tuple[_Array, float]:
        if not all(0 < axis < inputs.ndim for axis in self.axes):
            raise InvalidTypeError(
                f"field {self.inputs!r} of the batch has shape {inputs.shape}, which has no axes {self.axes}; expected "
                "images. Say with axes=(1, 2) which are height and width."
            )
        window: list[slice] = [slice(None)] * inputs.ndim
        area = 1.0
        for axis in self.axes:
            size = int(inputs.shape[axis])
            half = int(size * math.sqrt(1 - share)) // 2
            center = int(rng.integers(size))
            start, stop = max(center - half, 0), min(center + half, size)
            window[axis] = slice(start, stop)
            area *= (stop - start) / size
        mixed = inputs.copy()
        mixed[tuple(window)] = others[tuple(window)]
        return mixed, 1.0 - area


def _blend(one: _Array, other: _Array, share: float) -> _Array:
    """Return the sum of the shares, in the memory of ``other``."""
    # In the dtype of the arrays: one rounding for each product, on every machine the same.
    first = one.dtype.type(share)
    mixed: _Array = other
    mixed *= one.dtype.type(1) - first
    mixed += one * first
    return mixed


def _to_shares(labels: _Array, num_classes: int | None) -> npt.NDArray[np.float32]:
    if labels.dtype.kind == "f" and labels.ndim == 2:  # noqa: PLR2004 - records and classes
        return labels.astype(np.float32)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InvalidTypeError(
            f"labels of the batch have dtype {labels.dtype} and shape {labels.shape}; expected integers of shape "
            "(batch,), or shares of shape (batch, classes)."
        )
    if num_classes is None:
        raise InvalidValueError(
            "num_classes is None and the labels are whole numbers; expected how many classes there are. Pass "
            "num_classes=10."
        )
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise InvalidValueError(
            f"a label is {wrong[0]}; expected one from 0 to num_classes - 1, which is {num_classes - 1}."
        )
    shares = np.zeros((len(labels), num_classes), np.float32)
    shares[np.arange(len(labels)), labels] = 1
    return shares


def _get(batch: Any, field: str | int, name: str) -> _Array:
    try:
        by_key = _is(batch, Mapping) or (_is(batch, tuple) and _is(field, int))
        found = batch[field] if by_key else getattr(batch, str(field))
    except (KeyError, IndexError, AttributeError):
        known = ", ".join(map(repr, batch)) if _is(batch, Mapping) else f"those of {describe(batch)}"
        raise InvalidTypeError(
            f"the batch has no field {field!r}, only {known}; expected the fields that {name} mixes. Pass their names, "
            "or places in a tuple: inputs=0, labels=1."
        ) from None
    if not _is(found, np.ndarray) or not found.ndim:
        raise InvalidTypeError(
            f"field {field!r} of the batch is a {type(found).__name__}; expected an array of NumPy, with one row for "
            "each record. Let tensors be made at the end: Collate(then=[...]) stacks to NumPy arrays."
        )
    checked: _Array = found
    return checked


def _replace(batch: Any, fields: dict[Any, Any]) -> Any:
    if _is(batch, Mapping):
        if not _is(batch, MutableMapping):
            return {**batch, **fields}
        # Another kind of mapping may hold more than its items.
        changed: Any = copy.copy(batch)
        changed.update(fields)
        return changed
    if _is(batch, tuple):
        names: Any = getattr(batch, "_fields", None)
        parts = enumerate(batch)
        if names is None:
            return tuple(fields.get(place, part) for place, part in parts)
        return type(batch)(*(fields.get(names[k], fields.get(k, part)) for k, part in parts))
    changed = copy.copy(batch)
    for name, value in fields.items():
        object.__setattr__(changed, name, value)  # it may be frozen
    return changed
