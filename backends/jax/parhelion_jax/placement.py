"""Host batches to the devices of a mesh, values back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding

from parhelion.errors import InvalidTypeError, InvalidValueError

from .mesh import Device, count_shards, data_axis
from .narrowing import SMALL, is_real, stack_arrays, to_array
from .records import field_name, flatten

__all__ = ["Placement", "move"]

# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_SCALAR = "expected a number, a jax scalar, or a vector with one for each step. Reduce it, as with .mean()."
_EMPTY = (0,)
_PLAIN = frozenset((dict, tuple, list))
_jax: Any = jax  # it leaves some of it untyped
_Tracer: Any = _jax.core.Tracer
_Spec: Any = jax.sharding.PartitionSpec


class Placement:
    """Places batches on the devices of a mesh.

    Rows, the leading axis of each array, are split over the mesh's data axis; an array without axes goes to every
    device. On one device there is nothing to split, and arrays are placed plainly.

    On the CPU, jax reads an array for as long as it likes, or shares its memory: there arrays are copied first, and
    what becomes of a batch's arrays afterwards changes nothing. On an accelerator do not write to them before the step
    that uses the batch has ended.

    Args:
        mesh: the devices; its axis named "data" (or its only one) is the one that batches are split over.

    Attributes:
        mesh, axis: the mesh, and the name of its data axis.
        num_shards: parts that this process splits its batch into.
        spans_processes: whether there are devices of several processes.
        batch_sharding: where the rows of a batch are.
        replicated: where an array is that every device has.

    Raises:
        InvalidValueError: batches cannot be split over the mesh.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.axis = data_axis(mesh)
        self.num_shards = count_shards(mesh)
        devices: list[Device] = mesh.devices.flatten().tolist()
        self._on_one = len(devices) == 1
        self._on_cpu = devices[0].platform == "cpu"
        # Devices that share a pool of threads wait in it for each other. With many steps under way none is left over
        # for the one that all are waiting for.
        self._must_wait = self._on_cpu and not self._on_one
        self.spans_processes = any(device.process_index != _jax.process_index() for device in devices)
        self.replicated = self._sharding()
        self.batch_sharding = self.replicated if self._on_one else self._sharding(self.axis)
        self._stacked = self._sharding(None, self.axis)
        # Cheaper than device_put by far: it takes NumPy arrays without a detour through Python.
        self._copy = _jax.jit(_copy_all, out_shardings=self.replicated)
        self._stack = _jax.jit(_stack_all, static_argnums=1)

    def place(self, batch: Any, *, shared: bool = False) -> Any:
        """Return the batch with every array in it as a jax array on the devices.

        NumPy arrays and what has ``__array__`` are taken. An array that is on this mesh already stays as it is;
        numbers, text, None and objects stay, too.

        Args:
            batch: any nesting of containers and records with the rows of this process.
            shared: every process that computes as one with this has all these rows, and they need not divide: every
                device gets them all then, and with several processes always.

        Raises:
            InvalidValueError: the rows of a field do not divide by the shards, or an integer does not fit 32 bits while
                jax has no 64-bit types.
        """
        kind: Any = batch.__class__
        if kind in _PLAIN:
            # The common case costs a look: a dictionary or tuple of arrays that are where they should be.
            sharding = self.batch_sharding
            for value in batch.values() if kind is dict else batch:
                there = getattr(value, "sharding", None)
                # Comparing by content takes longer than everything else here.
                if (there is not sharding and there != sharding) or not value.committed:
                    break
            else:
                return batch
        leaves, structure = flatten(batch)
        places: list[int] = []
        arrays: list[Any] = []
        shardings: list[Sharding] = []
        for place, leaf in enumerate(leaves):
            name = partial(field_name, batch, place)
            array = None if self._is_here(leaf) else self._to_send(leaf, name)
            if array is not None:
                places.append(place)
                arrays.append(array)
                shardings.append(self._split(array, 0, name, shared=shared))
        for place, array in zip(places, self._send(arrays, shardings), strict=True):
            leaves[place] = array
        return structure.unflatten(leaves)

    def stack(self, batches: Sequence[Any]) -> Any:
        """Return one batch whose arrays have a leading axis over the given ones; the rows are split as ever.

        Host batches are stacked on the host and sent once, those with jax arrays are placed and stacked there. Numbers
        become arrays.

        Raises:
            InvalidValueError: the batches differ in their fields or shapes, or what :meth:`place` refuses.
            InvalidTypeError: a field is neither array nor number.
        """
        flat = [flatten(batch) for batch in batches]
        kinds = {leaf.__class__ for leaves, _ in flat for leaf in leaves}
        is_placed = any(issubclass(kind, jax.Array) for kind in kinds)
        if is_placed:
            flat = [flatten(self.place(batch)) for batch in batches]
        structure = flat[0][1]
        if any(other != structure for _, other in flat):
            raise InvalidValueError(
                f"batches of one call have the fields {sorted({str(each) for _, each in flat})}; expected the same in "
                "all. Let the collate function give every batch the same fields."
            )
        columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
        names = [partial(field_name, batches[0], place) for place in range(len(columns))]
        for column, name in zip(columns, names, strict=True):
            _check_column(column, name)
        if is_placed:
            shardings = () if self._on_one else tuple(self._beside(column[0]) for column in columns)
            return structure.unflatten(self._stack(columns, shardings))
        arrays = [stack_arrays(column, name) for column, name in zip(columns, names, strict=True)]
        stacked = [self._split(array, 1, name) for array, name in zip(arrays, names, strict=True)]
        return structure.unflatten(self._send(arrays, stacked))

    def replicate(self, tree: Any) -> Any:
        """Return the tree with every array and number in it as a fresh array that every device has.

        Nothing shares memory with the given arrays, so the new ones can be donated. An array that is sharded over this
        mesh keeps its sharding. With several processes each gives the same values.
        """
        leaves, structure = flatten(tree)
        places: list[int] = []
        arrays: list[Any] = []
        for place, leaf in enumerate(leaves):
            value = np.asarray(leaf) if _is(leaf, (bool, int, float, complex)) else leaf
            array = leaf if self._is_here(leaf) else self._to_send(value, partial(field_name, tree, place))
            if array is not None:
                places.append(place)
                arrays.append(array)
        shardings = [array.sharding if self._is_here(array) else self.replicated for array in arrays]
        # Copied once more where they are: buffers that came from the host's memory cannot be donated.
        fresh = _jax.jit(_copy_all, out_shardings=shardings)(self._send(arrays, shardings))
        for place, array in zip(places, fresh, strict=True):
            leaves[place] = array
        return structure.unflatten(leaves)

    def hold(self, value: Any) -> Any:
        """Return a scalar as it can be kept for a while: still on the device, without waiting for it.

        A vector is taken for the scalars of several steps. What is no jax array becomes a float. Where several devices
        of the CPU compute together it is waited for: jax ends a process that has many such steps under way.

        Raises:
            InvalidTypeError: it is neither.
        """
        if isinstance(value, jax.Array):
            shape = value.shape
            if isinstance(value, _Tracer):
                raise InvalidTypeError(
                    "it is inside a compiled step, where there are no values yet; expected one that a step returned. "
                    "Return it among the loss's outputs, or log it in a hook."
                )
            if len(shape) > 1 or shape == _EMPTY or not is_real(value.dtype):
                raise InvalidTypeError(f"it is an array of {value.dtype} and shape {shape}; {_SCALAR}")
            return value.block_until_ready() if self._must_wait else value
        if isinstance(value, (int, float)):
            return float(value)
        array: Any = np.asarray(value) if hasattr(value, "__array__") else None
        if array is None or array.size != 1 or array.dtype.kind not in "biuf":
            raise InvalidTypeError(f"it is {value!r}; {_SCALAR}")
        return float(array.item())

    def to_host(self, values: Sequence[Any]) -> list[float]:
        """Return scalars, and those in vectors, in order as Python floats, waiting once for all of them.

        Raises:
            InvalidTypeError: an array was donated after it was logged.
        """
        arrays = [value for value in values if isinstance(value, jax.Array)]
        for array in arrays:
            if array.is_deleted():
                raise InvalidTypeError(
                    f"a logged array of {array.dtype} and shape {array.shape} was donated to a compiled function; "
                    "expected one that is still there. Log a copy of it: jnp.copy(value)."
                )
            if not self._on_cpu:
                array.copy_to_host_async()
        host: list[float] = []
        for value in values:
            found: Any = np.asarray(value) if isinstance(value, jax.Array) else value
            if getattr(found, "ndim", 0):
                host.extend(found.astype(np.float64).tolist())
            else:
                host.append(float(found))
        return host

    def _sharding(self, *axes: str | None) -> Sharding:
        if self._on_one:
            return SingleDeviceSharding(self.mesh.devices.flat[0])
        return NamedSharding(self.mesh, _Spec(*axes))

    def _is_here(self, leaf: Any) -> bool:
        if not isinstance(leaf, jax.Array) or not leaf.committed:
            return False
        sharding = leaf.sharding
        if sharding in (self.batch_sharding, self.replicated):
            return True
        return not self._on_one and isinstance(sharding, NamedSharding) and sharding.mesh == self.mesh

    def _to_send(self, leaf: Any, name: Callable[[], str]) -> Any:
        """Return an array that jax may keep reading; None for what is no array."""
        if isinstance(leaf, jax.Array):
            return leaf
        return to_array(leaf, name, copy=self._on_cpu)

    def _split(self, array: Any, axis: int, name: Callable[[], str], *, shared: bool = False) -> Sharding:
        """Return where an array goes whose rows are along ``axis``."""
        if self._on_one or array.ndim <= axis or (shared and self.spans_processes):
            return self.replicated
        rows = array.shape[axis]
        if rows % self.num_shards == 0:
            return self._stacked if axis else self.batch_sharding
        if shared:
            return self.replicated
        raise InvalidValueError(
            f"field {name()!r} of a batch has {rows} rows; expected a multiple of {self.num_shards}, since they are "
            f"split over {self.num_shards} devices. Choose such a batch_size, or drop_last=True."
        )

    def _send(self, arrays: list[Any], shardings: list[Any]) -> list[Any]:
        if self.spans_processes:
            return [self._send_part(array, sharding) for array, sharding in zip(arrays, shardings, strict=True)]
        if self._on_one and self._on_cpu and all(map(_is_small, arrays)):
            sent: list[Any] = self._copy(arrays)
        else:
            sent = _jax.device_put(arrays, shardings)
        return sent

    def _send_part(self, array: Any, sharding: Sharding) -> Any:
        """Return an array over all processes, of which this one has brought its rows, or which all have brought."""
        if _is(array, jax.Array):
            if not array.is_fully_addressable:
                return _jax.device_put(array, sharding)
            if _jax.dtypes.issubdtype(array.dtype, _jax.dtypes.prng_key):
                data = self._send_part(_jax.random.key_data(array), sharding)
                return _jax.random.wrap_key_data(data, impl=_jax.random.key_impl(array))
            array = np.asarray(array)
        return _jax.make_array_from_process_local_data(sharding, array)

    def _beside(self, leaf: Any) -> Sharding:
        """Return where arrays like a placed one go when they are stacked."""
        spec = leaf.sharding.spec if _is(leaf, jax.Array) else ()
        return NamedSharding(self.mesh, _Spec(None, *spec))


def move(value: Any, where: Device | Sharding) -> Any:
    """Return ``value`` with every array in it as a jax array on a device, or as a sharding has it.

    What is there already is not copied; numbers, text, None and objects stay as they are.
    """
    leaves, structure = flatten(value)
    for place, leaf in enumerate(leaves):
        array = leaf if _is(leaf, jax.Array) else to_array(leaf, partial(field_name, value, place), copy=True)
        if array is not None:
            leaves[place] = _jax.device_put(array, where)
    return structure.unflatten(leaves)


def _is_small(array: Any) -> bool:
    return _is(array, np.ndarray) and array.nbytes <= SMALL


def _check_column(column: Sequence[Any], name: Callable[[], str]) -> None:
    """Raise unless values of one field can be stacked."""
    for leaf in column:
        if not (hasattr(leaf, "__array__") or _is(leaf, (bool, int, float, complex))):
            raise InvalidTypeError(
                f"field {name()!r} of a batch is {leaf!r}; expected arrays and numbers only, since a compiled step "
                "takes nothing else. Leave it out in the collate function."
            )
    shapes = {leaf.shape if hasattr(leaf, "shape") else np.shape(leaf) for leaf in column}
    if len(shapes) > 1:
        raise InvalidValueError(
            f"field {name()!r} has the shapes {sorted(shapes)} in batches of one call; expected one shape. "
            "Pad them to one, or train with one step per call."
        )


def _copy_all(arrays: list[Any]) -> list[Any]:
    return [_copied(array) for array in arrays]


def _copied(array: Any) -> Any:
    copied = jnp.copy(array)
    # A weak type would not outlive the first step, and the second would be compiled again.
    return _jax.lax.convert_element_type(copied, array.dtype) if copied.weak_type else copied


def _stack_all(columns: list[tuple[Any, ...]], shardings: tuple[Sharding, ...]) -> list[Any]:
    stacked = [jnp.stack(column) for column in columns]
    if not shardings:
        return stacked
    return [_jax.lax.with_sharding_constraint(*each) for each in zip(stacked, shardings, strict=True)]
