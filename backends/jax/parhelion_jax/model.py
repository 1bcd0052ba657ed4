"""Model for jax: the explicit way."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import jax

from parhelion.errors import CheckpointMismatchError, UnsavableValueError
from parhelion.seeds import derive
from parhelion.training import Attributes, OnDevice
from parhelion.training import Model as CoreModel

from .arrays import LazyArray
from .placement import Placement
from .stateful import check_tree, count_elements, has_arrays, is_plain, put_tree, take_kinds, take_tree, weak_names

__all__ = ["Model", "make_key"]


class Model(CoreModel):
    """The explicit way: you write ``train_step`` and own every line of it.

    Keep arrays in attributes: any pytree that :meth:`setup` assigns to ``self`` (parameters, an optimizer's state, a
    flax or equinox module) is saved and restored by itself, leaf by leaf, as it is when a checkpoint is due. So are
    attributes that training makes or reshapes: arrays, numbers, and lists, tuples and dicts with an array in them.

    There is no hidden random state. :meth:`key` gives the run's keys; fold the iteration into one for what a step
    draws: ``jax.random.fold_in(self.key("dropout"), state.global_iteration)``.
    """

    def __init__(self, save_name: str) -> None:
        super().__init__(save_name)
        self._tree_kinds: dict[str, dict[str, str]] = {}

    @property
    def placement(self) -> Placement:
        """Where batches and parameters go: devices, mesh and shardings."""
        return cast("Placement", self.trainer.placement)

    def key(self, *purpose: int | str) -> jax.Array:
        """Return the run's random key for a purpose, the same in every process and after every resume.

        Args:
            purpose: tells it from others, such as ``("params",)``.
        """
        return make_key(derive(self.trainer.random_seed, "key", *purpose))

    def finish_setup(self, fast_init: bool = False) -> None:
        """Note which attributes are pytrees of arrays, and what they are made of: these are saved."""
        others = ((name, value) for name, value in vars(self).items() if name not in self.own_names())
        self._tree_kinds = {name: take_kinds(value) for name, value in others if has_arrays(value)}

    def own_names(self) -> frozenset[str]:
        """Return the attributes that a class saves by itself, or that are no state."""
        return frozenset({"_trainer", "_window", "_attributes", "_tree_kinds"})

    # -- state --------------------------------------------------------------------------------------------------------

    def trees(self) -> dict[str, Any]:
        """Return the attributes that are pytrees of arrays by name, as long as only numbers in them have changed."""
        present = {name: vars(self).get(name) for name in sorted(self._tree_kinds)}
        return {name: tree for name, tree in present.items() if take_kinds(tree) == self._tree_kinds[name]}

    def stateful_parts(self) -> dict[str, Any]:
        """Return every other attribute that is a part with state, or a container with one in it, by name."""
        without = self.own_names() | self._tree_kinds.keys()
        return {name: value for name, value in super().stateful_parts().items() if name not in without}

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays of every pytree by name, and the state of every other part."""
        trees = self.trees()
        return {
            "trees": {name: take_tree(tree) for name, tree in trees.items()},
            "weak": {name: weak for name, tree in trees.items() if (weak := weak_names(tree))},
            # These are saved whole, as attributes that have changed.
            "reshaped": sorted(self._tree_kinds.keys() - trees.keys()),
            "parts": super().state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Continue from what :meth:`state_dict` returned.

        Raises:
            CheckpointMismatchError: it is of another model. Nothing was changed.
        """
        trees, saved = self.trees(), state_dict["trees"]
        for name in state_dict["reshaped"]:
            trees.pop(name, None)
        unknown, missing = sorted(set(saved) - set(trees)), sorted(set(trees) - set(saved))
        if missing or (unknown and not fast_init):
            raise CheckpointMismatchError(
                f"the saved model has the pytrees {sorted(saved)} and {type(self).__name__} has {sorted(trees)}; "
                "expected the same. Build the model as it was when it was saved."
            )
        for name, tree in trees.items():
            check_tree(f"self.{name}", tree, saved[name])
        super().load_state_dict(state_dict["parts"], fast_init)
        for name, tree in trees.items():
            setattr(self, name, put_tree(tree, saved[name], state_dict["weak"].get(name, ())))

    # -- attributes ---------------------------------------------------------------------------------------------------

    def watch_attributes(self) -> None:
        """From now on, know which attributes change; pytrees are saved anyway, and not kept alive for it."""
        self._attributes = Attributes(lambda: {"": SimpleNamespace(**self._watched())}, self.mark_value)

    def _watched(self) -> dict[str, Any]:
        without = self.own_names() | self.trees().keys()
        return {name: value for name, value in vars(self).items() if name not in without}

    def changed_attributes(self) -> dict[str, Any]:
        """Return the attributes that the run has changed, for the checkpoint.

        Raises:
            UnsavableValueError: one has arrays in a form that nothing here says how to make.
        """
        for name, value in self._watched().items():
            if has_arrays(value) and not is_plain(value):
                raise UnsavableValueError(
                    f"self.{name}, a {type(value).__name__} with arrays or keys in it, was made or took another form "
                    "during training; expected an array, or lists, tuples and dicts of arrays. Assign it in setup(), "
                    "in the form that it keeps, and it is saved leaf by leaf."
                )
        return {"own": super().changed_attributes(), "modules": None}

    def put_attributes(self, state: Mapping[str, Any], fast_init: bool = False) -> None:
        """Put back what :meth:`changed_attributes` returned."""
        super().put_attributes(state["own"], fast_init)

    def mark_value(self, value: Any) -> Hashable | None:
        """Return what tells one content of an array from another; None for what is no array."""
        # An array of jax never changes; a name may get another one.
        return ("jax", id(value)) if isinstance(value, jax.Array) else super().mark_value(value)

    def put_value(self, present: Any, saved: Any) -> Any:
        """Return what an attribute becomes, given what it is (None if it had been replaced) and what it was."""
        if isinstance(saved, OnDevice):
            return saved.array.whole() if isinstance(saved.array, LazyArray) else saved.array
        return saved.whole() if isinstance(saved, LazyArray) else super().put_value(present, saved)

    def describe(self) -> Mapping[str, str]:
        """Return how many numbers the model's arrays hold, those of an optimizer too."""
        return {"array elements": f"{sum(map(count_elements, self.trees().values())):,}"}


def make_key(seed: int) -> jax.Array:
    """Return a random key for a seed of 64 bits, of which ``jax.random.key`` alone would drop half."""
    high, low = divmod(seed, 2**32)
    return jax.random.fold_in(jax.random.key(low), high)
