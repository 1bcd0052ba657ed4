"""Leaves of pytrees by name: flax's dictionaries and nnx states, equinox modules, plain dictionaries and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from parhelion.errors import CheckpointMismatchError

from .stateful import leaf_name

__all__ = ["VARIABLES", "array_like", "fill", "is_array", "named_leaves", "named_weights"]

VARIABLES: Final = "variables/"
"""What is in front of a variable's name that is a parameter's too."""

_SHOWN: Final = 5  # differences in a message
_COLLECTIONS: Final = ("params/", "batch_stats/")  # flax's, in front of the names of layers
# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_tree: Any = jax.tree_util  # it leaves some of its types unknown
_iinfo: Callable[[Any], Any] = jnp.iinfo


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by name ("conv1/kernel"), in the tree's order.

    The ``value`` of an nnx variable and flax's collections ("params", "batch_stats") are no part of a name. Leaves
    that are no arrays and typed random keys are left out.

    Raises:
        CheckpointMismatchError: two arrays have one name.
    """
    return _joined((name, leaf) for name, leaf in _names(tree) if is_array(leaf))


def named_weights(params: Any, variables: Any = None) -> dict[str, Any]:
    """Return the arrays of parameters and of variables, in one space of names.

    A variable that is called as a parameter is has "variables/" in front of it.

    Raises:
        CheckpointMismatchError: two arrays have one name.
    """
    mine, others = named_leaves(params), named_leaves(variables)
    return {**mine, **{VARIABLES + name if name in mine else name: each for name, each in others.items()}}


def fill(tree: Any, named: Mapping[str, Any]) -> Any:
    """Return the tree with other elements in its arrays; structure, dtypes and shardings stay, and nothing is shared.

    Args:
        tree: any tree; leaves that are no arrays stay as they are.
        named: the new arrays by the names of :func:`named_leaves`; may have more.

    Raises:
        CheckpointMismatchError: one is missing, of another shape, or has an integer that does not fit; lists them all.
    """
    pairs = list(_names(tree))
    problems = [_misfit(name, leaf, named) for name, leaf in pairs if is_array(leaf)]
    if differences := [each for each in problems if each is not None]:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckpointMismatchError(
            f"these weights do not fit the model: {'; '.join(differences[:_SHOWN])}{more}. "
            "Build the model as it was when it was saved."
        )
    leaves = [array_like(leaf, named[name]) if is_array(leaf) else leaf for name, leaf in pairs]
    return _tree.tree_unflatten(_tree.tree_structure(tree), leaves)


def _names(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its name, in the order of the tree."""
    for path, leaf in _tree.tree_leaves_with_path(tree):
        name = leaf_name(path)
        for collection in _COLLECTIONS:
            name = name.removeprefix(collection)
        yield name, leaf


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array of numbers: of jax or NumPy, and no random key."""
    return _is(leaf, (jax.Array, np.ndarray)) and _is(leaf.dtype, np.dtype)  # that of keys is jax's own


def _joined(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, leaf in pairs:
        if name in named:
            raise CheckpointMismatchError(
                f"two arrays of the model are called {name!r}; expected a name for each. Rename one, such as a "
                "key with a slash in it."
            )
        named[name] = leaf
    return named


def _misfit(name: str, leaf: Any, named: Mapping[str, Any]) -> str | None:
    if name not in named:
        return f"{name} is missing"
    here, there = np.shape(leaf), np.shape(named[name])
    return _excess(name, leaf.dtype, named[name]) if here == there else f"{name} is {here} here and {there} there"


def _excess(name: str, dtype: Any, value: Any) -> str | None:
    """Return what to say of an integer that a dtype of integers has no place for."""
    host = np.asarray(value)
    if not host.size or not all(jnp.issubdtype(each, jnp.integer) for each in (dtype, host.dtype)):
        return None
    limits = _iinfo(dtype)
    for found in (int(host.min()), int(host.max())):
        if not limits.min <= found <= limits.max:
            return f"{name} has {found} and {dtype} ends at {limits.max} (no int64 without jax_enable_x64)"
    return None


def array_like(leaf: Any, value: Any) -> Any:
    """Return a new array with the elements of ``value``, of the kind, dtype and sharding of ``leaf``."""
    host = np.array(value).astype(leaf.dtype, copy=False)
    if _is(leaf, np.ndarray):
        return host
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])
