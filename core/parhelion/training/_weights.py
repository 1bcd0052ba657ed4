"""Weights across backends: which array of a PyTorch network is which of a JAX one, and in which layout.

::

    WeightMap({
        "conv1": conv("features.0"),
        "bn": norm("features.1"),
        "head": dense("classifier", flattened=(32, 7, 7)),
        "tokens": embedding("tokens"),
    })

On the left is how names begin in the JAX tree ("conv1/kernel"), on the right how they begin in the torch module
("features.0.weight"). Parameters and variables (running statistics) of the JAX model share one space of names.

Arrays only change their layout, never a bit of an element, so what goes there and back is what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np

from parhelion.errors import InvalidTypeError

from ._layouts import Array, Change, Layer, Leaf, conv_leaf, dense_leaf
from ._passage import Passage

__all__ = ["Layer", "WeightMap", "conv", "custom", "dense", "embedding", "norm", "same"]

_LAYERS: Final = "a name in JAX for each layer of torch, such as {'fc1': dense('fc1')}"


def dense(
    prefix: str,
    flattened: Sequence[int] | None = None,
    *,
    kernel: str = "kernel",
    bias: str = "bias",
    torch_weight: str = "weight",
    torch_bias: str = "bias",
) -> Layer:
    """Return a dense layer: torch's weight (out, in) is JAX's kernel (in, out).

    Args:
        prefix: the layer's name in the torch module.
        flattened: the shape (channels, height, width) of what a flatten in front of the layer got in torch. JAX
            flattens (height, width, channels), so the inputs of the layer change places.
        kernel: JAX's name of the weight.
        bias: JAX's name of the bias, which may be absent.
        torch_weight: torch's name of the weight.
        torch_bias: torch's name of the bias.

    Raises:
        InvalidValueError: ``flattened`` is no shape of channels and at least one more axis.
        InvalidTypeError: a name is no string.
    """
    return Layer("dense", prefix, (dense_leaf(torch_weight, kernel, flattened), Leaf(torch_bias, bias)))


def conv(
    prefix: str,
    *,
    kernel: str = "kernel",
    bias: str = "bias",
    torch_weight: str = "weight",
    torch_bias: str = "bias",
) -> Layer:
    """Return a convolution over one to three axes, also grouped.

    Torch's weight (out, in, spatial) is JAX's kernel (spatial, in, out). A transposed convolution is another
    thing in each library; write :func:`custom` for it.

    Args:
        prefix: the layer's name in the torch module.
        kernel: JAX's name of the weight.
        bias: JAX's name of the bias, which may be absent.
        torch_weight: torch's name of the weight.
        torch_bias: torch's name of the bias.

    Raises:
        InvalidTypeError: a name is no string.
    """
    return Layer("conv", prefix, (conv_leaf(torch_weight, kernel), Leaf(torch_bias, bias)))


def norm(
    prefix: str,
    *,
    scale: str = "scale",
    bias: str = "bias",
    mean: str = "mean",
    var: str = "var",
    torch_weight: str = "weight",
    torch_bias: str = "bias",
    torch_mean: str = "running_mean",
    torch_var: str = "running_var",
) -> Layer:
    """Return a normalization (batch, layer, group, RMS); what it does not have may be absent.

    How many batches the running statistics have seen only torch keeps; on the way there it is the number of updates.
    The libraries' defaults differ: torch's ``momentum`` 0.1 is flax's 0.9, torch's ``eps`` 1e-5 is flax's
    ``epsilon`` 1e-5 for batches and 1e-6 for layers.

    Args:
        prefix: the layer's name in the torch module.
        scale: JAX's name of the weight.
        bias: JAX's name of the bias.
        mean: JAX's name of the running mean.
        var: JAX's name of the running variance.
        torch_weight: torch's name of the weight.
        torch_bias: torch's name of the bias.
        torch_mean: torch's name of the running mean.
        torch_var: torch's name of the running variance.

    Raises:
        InvalidTypeError: a name is no string.
    """
    names = ((torch_weight, scale), (torch_bias, bias), (torch_mean, mean), (torch_var, var))
    leaves = tuple(Leaf(in_torch, in_jax) for in_torch, in_jax in names)
    return Layer("norm", prefix, leaves, count="num_batches_tracked")


def embedding(prefix: str, *, embedding: str = "embedding", torch_weight: str = "weight") -> Layer:
    """Return a table of embeddings, (entries, features) in both.

    Args:
        prefix: the layer's name in the torch module.
        embedding: JAX's name of the table.
        torch_weight: torch's name of the table.

    Raises:
        InvalidTypeError: a name is no string.
    """
    return Layer("embedding", prefix, (Leaf(torch_weight, embedding),))


def same(prefix: str) -> Layer:
    """Return everything whose name begins so, with the same names behind it and the same layouts.

    That is how equinox names its modules, and what a raw parameter is. "" on both sides is the whole model. Axes of
    size one may differ: equinox gives a convolution's bias some.

    Args:
        prefix: the name of a module or of a parameter in torch.

    Raises:
        InvalidTypeError: the name is no string.
    """
    return Layer("same", prefix)


def custom(torch_name: str, *, to_jax: Change, to_torch: Change) -> Layer:
    """Return one array that no other function describes; on the left goes its whole name in JAX.

    Args:
        torch_name: its whole name in torch.
        to_jax: returns JAX's array for torch's. The optimizer's moments go through it too, so it should only move
            elements (transpose, reshape, flip, pad).
        to_torch: the way back.

    Raises:
        InvalidTypeError: the name is no string, or a function none.
    """
    for name, change in (("to_jax", to_jax), ("to_torch", to_torch)):
        if not callable(change):
            raise InvalidTypeError(f"{name} of custom is {change!r}; expected a function from an array to an array.")
    return Layer("custom", torch_name, (Leaf("", "", to_jax, to_torch),))


@attrs.frozen
class WeightMap:
    """Which array of a torch module is which of a JAX model; the way between checkpoints of the two.

    Args:
        layers: the torch layer (:func:`dense`, :func:`conv`, :func:`norm`, :func:`embedding`, :func:`same`,
            :func:`custom`) by how the names of its arrays begin in JAX.
        torch_only: names, or how they begin, of what only torch has; it stays there as ``setup`` made it.
        jax_only: the same for JAX.

    Raises:
        InvalidTypeError: a layer is none, or names are no list.
    """

    layers: Mapping[str, Layer] = attrs.field()
    torch_only: Sequence[str] = attrs.field(default=(), kw_only=True)
    jax_only: Sequence[str] = attrs.field(default=(), kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.layers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
            raise InvalidTypeError(f"weight_map is made of {self.layers!r}; expected {_LAYERS}.")
        for key, layer in self.layers.items():
            if not isinstance(key, str) or not isinstance(layer, Layer):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidTypeError(f"weight_map has {key!r}: {layer!r}; expected {_LAYERS}.")
        for side, names in (("torch_only", self.torch_only), ("jax_only", self.jax_only)):
            if isinstance(names, str):
                raise InvalidTypeError(f"{side} of weight_map is {names!r}; expected a list of names: [{names!r}].")

    def to_jax(
        self, named: Mapping[str, Any], *, like: Mapping[str, Any] | None = None, partial: bool = False
    ) -> dict[str, Array]:
        """Return torch's arrays under JAX's names, in JAX's layouts.

        Args:
            named: arrays by torch's names ("fc1.weight").
            like: JAX's own arrays, or anything with a shape, by name; what comes out has their names and shapes.
            partial: whether some may be absent, as among an optimizer's moments.

        Raises:
            CheckpointMismatchError: an array is mapped to nothing, from nothing, twice, or to another shape; lists all.
        """
        return self._passage("torch", "jax", named, like, partial=partial).carry()

    def to_torch(
        self,
        named: Mapping[str, Any],
        *,
        like: Mapping[str, Any] | None = None,
        num_updates: int = 0,
        partial: bool = False,
    ) -> dict[str, Array]:
        """Return JAX's arrays under torch's names, in torch's layouts.

        Args:
            named: arrays by JAX's names ("fc1/kernel").
            like: torch's own arrays, or anything with a shape, by name; what comes out has their names and shapes.
            num_updates: what batch normalizations have as ``num_batches_tracked``.
            partial: whether some may be absent, as among an optimizer's moments.

        Raises:
            CheckpointMismatchError: an array is mapped to nothing, from nothing, twice, or to another shape; lists all.
        """
        passage = self._passage("jax", "torch", named, like, partial=partial)
        return passage.carry({name: np.asarray(num_updates, np.int64) for name in passage.counts()})

    def _passage(
        self, source: str, target: str, named: Mapping[str, Any], like: Mapping[str, Any] | None, *, partial: bool
    ) -> Passage:
        alone = {"torch": self.torch_only, "jax": self.jax_only}
        return Passage(self.layers, source, target, alone, named, like, partial)
