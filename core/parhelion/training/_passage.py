"""One way of one set of arrays through a weight map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np

from parhelion.errors import CheckpointMismatchError

from ._layouts import Array, Change, Layer, keep

__all__ = ["Passage"]

_SHOWN: Final = 10  # differences in a message
_SIDES: Final = {"torch": ".", "jax": "/"}


@attrs.define
class Passage:
    """What one side's arrays are on the other.

    Attributes:
        layers: the torch layer by how the names of its arrays begin in JAX.
        source: "torch" or "jax".
        target: the other one.
        alone: names, or how they begin, of what only one side has, by side.
        named: the arrays of the source.
        like: arrays of the target, or anything with their shapes; None where only the names are wanted.
        is_partial: whether some may be absent.
    """

    layers: Mapping[str, Layer]
    source: str
    target: str
    alone: Mapping[str, Sequence[str]]
    named: Mapping[str, Any]
    like: Mapping[str, Any] | None
    is_partial: bool
    _origins: dict[str, str] = attrs.field(factory=dict[str, str], init=False)  # the source of every target
    _used: dict[str, str] = attrs.field(factory=dict[str, str], init=False)  # the layer that took every source
    _problems: list[str] = attrs.field(factory=list[str], init=False)

    def carry(self, extra: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return the arrays of the other side, and ``extra``, or raise what is wrong."""
        result = dict(extra or {})
        for key, layer in self.layers.items():
            moves = list(self._moves(key, layer))
            if not moves and not self.is_partial:
                self._problems.append(f"{key!r} finds no {' or '.join(self._names(key, layer)) or 'array'}")
            for name, goal, change in moves:
                if self._claim(key, name, goal):
                    value = self._changed(name, goal, layer.kind, change)
                    result |= {} if value is None else {goal: value}
        self._check_rest(result)
        if self._problems:
            raise self._mismatch()
        return {name: result[name] for name in self.like or result if name in result}

    def counts(self) -> Iterator[str]:
        """Yield torch's names of counts of batches that the other side has."""
        for key, layer in self.layers.items():
            name = None if layer.count is None else _join("torch", layer.prefix, layer.count)
            if name is None or self.is_partial:
                continue
            mean = _join("jax", key, layer.leaves[2].jax)
            if mean in self.named if self.like is None else name in self.like:
                yield name

    def _names(self, key: str, layer: Layer) -> list[str]:
        """Return what the layer's arrays are called at the source; for ``same``, how they begin."""
        prefix = layer.prefix if self.source == "torch" else key
        leaves = [getattr(leaf, self.source) for leaf in layer.leaves]
        return [_join(self.source, prefix, leaf) for leaf in leaves] or [prefix]

    def _moves(self, key: str, layer: Layer) -> Iterator[tuple[str, str, Change]]:
        """Yield every array of the layer that is there: its name, the other side's, and what changes its layout."""
        target = key if self.target == "jax" else layer.prefix
        if layer.kind == "same":
            for name in self.named:
                rest = _behind(self.source, self._names(key, layer)[0], name)
                if rest is not None:
                    rest = rest.replace(_SIDES[self.source], _SIDES[self.target])
                    yield name, _join(self.target, target, rest), keep
        for leaf, name in zip(layer.leaves, self._names(key, layer), strict=bool(layer.leaves)):
            if name in self.named:
                change = leaf.to_jax if self.target == "jax" else leaf.to_torch
                yield name, _join(self.target, target, getattr(leaf, self.target)), change

    def _claim(self, key: str, name: str, goal: str) -> bool:
        """Return whether no layer took the array before, or gave the other side's."""
        if name in self._used:
            self._problems.append(f"{name} is mapped twice, by {self._used[name]!r} and by {key!r}")
            return False
        self._used[name] = key
        if goal in self._origins:
            self._problems.append(f"{goal} is given twice, by {self._origins[goal]} and by {name}")
            return False
        self._origins[goal] = name
        return True

    def _changed(self, name: str, goal: str, kind: str, change: Change) -> Array | None:
        """Return the array in the other side's layout, None where it has none."""
        array = np.asarray(self.named[name])
        try:
            value = np.asarray(change(array))
        except (ValueError, TypeError, IndexError) as error:
            self._problems.append(f"{name} {array.shape} is not what {kind} takes ({error})")
            return None
        if self.like is None:
            return value
        if goal not in self.like:
            self._problems.append(f"{name} {array.shape} becomes {goal} {value.shape}, which is not there")
            return None
        shape = _shape(self.like[goal])
        if kind == "same" and _without_ones(shape) == _without_ones(value.shape):
            value = value.reshape(shape)
        if value.shape != shape:
            self._problems.append(f"{name} {array.shape} becomes {goal} {value.shape}; expected {shape}")
        return value

    def _check_rest(self, result: Mapping[str, Array]) -> None:
        """Note what the map leaves out on either side."""
        counts = {
            _join("torch", layer.prefix, layer.count) for layer in self.layers.values() if layer.count is not None
        }
        for name, value in self.named.items():
            if name not in self._used and name not in counts and not self._is_alone(self.source, name):
                self._problems.append(f"{name} {_shape(value)} is mapped to nothing")
        if self.like is None or self.is_partial:
            return
        for name, value in self.like.items():
            if name not in result and name not in self._origins and not self._is_alone(self.target, name):
                self._problems.append(f"{name} {_shape(value)} is given nothing")

    def _is_alone(self, side: str, name: str) -> bool:
        return any(_behind(side, prefix, name) is not None for prefix in self.alone[side])

    def _mismatch(self) -> CheckpointMismatchError:
        first, rest = self._problems[0], self._problems[1:]
        also = f"; also: {'; '.join(rest[:_SHOWN])}" if rest else ""
        more = f"; and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
        return CheckpointMismatchError(
            f"weight_map does not take these {self.source} weights to {self.target}: {first}{also}{more}. "
            "Expected each array of both sides once. Mend its layers, or name what one side alone has in "
            "torch_only or jax_only."
        )


def _join(side: str, prefix: str, leaf: str) -> str:
    return _SIDES[side].join(filter(None, (prefix, leaf)))


def _behind(side: str, prefix: str, name: str) -> str | None:
    """Return what follows the prefix in a name; None if the name does not begin with it."""
    if name == prefix:
        return ""
    start = prefix + _SIDES[side] if prefix else ""
    return name[len(start) :] if name.startswith(start) else None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
