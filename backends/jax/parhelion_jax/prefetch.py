"""Maps over iterables of batches: made ahead by a thread, put on devices, split over them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import Any, Generic, TypeVar, overload

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from parhelion.data import SizedIterable, take_ahead
from parhelion.errors import InvalidTypeError, InvalidValueError

from .mesh import Device, choose_mesh
from .narrowing import to_array
from .placement import Placement, move
from .records import field_name, flatten

__all__ = ["mesh_map", "prefetching_map", "sharding_map"]

PyTreeType = TypeVar("PyTreeType")

_log = logging.getLogger("parhelion")
_jax: Any = jax  # it leaves some of it untyped
_Spec: Any = jax.sharding.PartitionSpec
_Device: Any = _jax.Device
_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: users pass anything


@overload
def prefetching_map(
    inputs: SizedIterable[PyTreeType], device: Device | Sharding | None = None, buffer_size: int = 2
) -> SizedIterable[PyTreeType]: ...
@overload
def prefetching_map(
    inputs: Iterable[PyTreeType], device: Device | Sharding | None = None, buffer_size: int = 2
) -> Iterable[PyTreeType]: ...
def prefetching_map(
    inputs: Iterable[PyTreeType], device: Device | Sharding | None = None, buffer_size: int = 2
) -> Iterable[PyTreeType]:
    """Return an iterable over the same batches in the same order, which are made while the ones before are used.

    A thread makes them, and puts them on the device; it ends with the iteration, also with one that is left early,
    which closes the iterator of ``inputs``. An error of ``inputs`` is raised where its batch would have come. The
    result has a length if ``inputs`` has one, and can be iterated over again if that can.

    What ``inputs`` runs must not draw from ``random`` or ``np.random``: these belong to the process, so the thread and
    the training loop would take each other's numbers, which no lock around one of them prevents. The loaders of this
    package, which key these generators for the dataset's sake, are therefore read in the caller's thread, without a
    buffer, as long as they load in this process; with ``num_workers`` from 1 on, or ``global_rng="off"``, they are
    read ahead. An iterable of your own says so by an attribute ``is_thread_bound = True``.

    Args:
        inputs: gives batches, each with memory of its own.
        device: where the arrays of a batch are put and committed to: a device, or a sharding, which must suit each of
            them. With a sharding over several processes each brings its own part. None leaves them where they are.
        buffer_size: batches that may exist at once: 2 are the one in use and the next one. Up to 1 each is made
            when it is asked for, without a thread.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: ``buffer_size`` is negative.
    """
    if isinstance(buffer_size, bool) or not _is(buffer_size, (int, np.integer)):
        raise InvalidTypeError(f"buffer_size is {buffer_size!r}; expected an integer >= 0. 0 makes nothing ahead.")
    if buffer_size < 0:
        raise InvalidValueError(f"buffer_size is {buffer_size}; expected an integer >= 0. 0 makes nothing ahead.")
    return _map(inputs, partial(_prefetch, put=_choose_put(device), size=int(buffer_size)))


@overload
def sharding_map(inputs: SizedIterable[PyTreeType], devices: Sequence[Device]) -> SizedIterable[PyTreeType]: ...
@overload
def sharding_map(inputs: Iterable[PyTreeType], devices: Sequence[Device]) -> Iterable[PyTreeType]: ...
def sharding_map(inputs: Iterable[PyTreeType], devices: Sequence[Device]) -> Iterable[PyTreeType]:
    """Return an iterable over the same batches, cut in as many equal parts as there are devices.

    Leaves of shape ``(N, ...)`` become jax arrays of shape ``(len(devices), N // len(devices), ...)``; slice i lies on
    ``devices[i]``. That is what ``jax.pmap`` takes; for ``jax.jit`` see :func:`mesh_map`. The result has a length if
    ``inputs`` has one, and can be iterated over again if that can.

    Args:
        inputs: gives batches whose leaves are arrays with a first axis.
        devices: each once.

    Raises:
        InvalidTypeError: an argument has a type that cannot work; while iterating, a leaf is no array with an axis.
        InvalidValueError: there is no device, or one is there twice; while iterating, N does not divide.
    """
    for device in devices:
        if not _is(device, _Device):
            raise InvalidTypeError(f"devices has {device!r}; expected jax devices, such as jax.local_devices().")
    if not devices or len(set(devices)) < len(devices):
        raise InvalidValueError(f"devices is {devices!r}; expected at least one, and each once, as in jax.devices().")
    mesh = Mesh(np.array([*devices], dtype=object), ("devices",))
    return _map(inputs, partial(map, partial(_split, NamedSharding(mesh, _Spec("devices")))))


@overload
def mesh_map(inputs: SizedIterable[PyTreeType], mesh: Mesh | None = None) -> SizedIterable[PyTreeType]: ...
@overload
def mesh_map(inputs: Iterable[PyTreeType], mesh: Mesh | None = None) -> Iterable[PyTreeType]: ...
def mesh_map(inputs: Iterable[PyTreeType], mesh: Mesh | None = None) -> Iterable[PyTreeType]:
    """Return an iterable over the same batches as global arrays, their rows split over a mesh: what ``jax.jit`` takes.

    Leaves keep their shapes; those without axes go to every device. With several processes each brings its own rows,
    and the arrays have those of all. Text, numbers and None stay as they are. The result has a length if ``inputs``
    has one, and can be iterated over again if that can.

    Args:
        inputs: gives batches.
        mesh: rows are split over its axis named "data", or its only one; None is all devices in one axis.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: batches cannot be split over the mesh; while iterating, the rows of a leaf do not divide.
    """
    return _map(inputs, partial(map, Placement(choose_mesh(mesh)).place))


class _Mapped(Generic[PyTreeType]):
    """What iterating does to some inputs.

    Attributes:
        is_thread_bound: whether the inputs must be read in the thread that uses them.
    """

    def __init__(self, inputs: Iterable[Any], begin: Callable[[Iterable[Any]], Iterator[Any]]) -> None:
        self._inputs, self._begin = inputs, begin
        self.is_thread_bound = _is_thread_bound(inputs)

    def __iter__(self) -> Iterator[PyTreeType]:
        return self._begin(self._inputs)


class _SizedMapped(_Mapped[PyTreeType]):
    _inputs: Any

    def __len__(self) -> int:
        return len(self._inputs)


def _map(inputs: Any, begin: Callable[[Iterable[Any]], Iterator[Any]]) -> _Mapped[Any]:
    if not hasattr(inputs, "__iter__") and not hasattr(inputs, "__getitem__"):
        raise InvalidTypeError(
            f"inputs is {inputs!r}; expected an iterable over batches, such as dataloader.minibatches(0)."
        )
    kind = _SizedMapped[Any] if _is(inputs, Sized) else _Mapped[Any]
    return kind(inputs, begin)


def _is_thread_bound(inputs: Any) -> bool:
    return bool(getattr(inputs, "is_thread_bound", False))


def _prefetch(inputs: Iterable[Any], put: Callable[[Any], Any] | None, size: int) -> Iterator[Any]:
    if size > 1 and _is_thread_bound(inputs):
        _tell_bound()
    elif size > 1:
        # The thread has the dtypes of its user.
        return take_ahead(iter(inputs), put, size, partial(_enable_x64, _jax.config.jax_enable_x64))
    return iter(inputs) if put is None else map(put, inputs)


@functools.cache
def _tell_bound() -> None:
    # Cached, so that it is said once.
    _log.info(
        "prefetching_map reads this loader in the loop's own thread, since its dataset may draw from random and "
        "np.random; with num_workers from 1 on, or global_rng='off', it is read ahead"
    )


def _enable_x64(enabled: bool) -> contextlib.AbstractContextManager[Any]:
    # Where it was before jax 0.8.
    home: Any = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    return home.enable_x64(enabled)  # type: ignore[no-any-return]


def _choose_put(device: Any) -> Callable[[Any], Any] | None:
    if device is None:
        return None
    if isinstance(device, Sharding) and not device.is_fully_addressable:
        return partial(_bring, device)
    if _is(device, (_Device, Sharding)):
        return partial(move, where=device)
    raise InvalidTypeError(
        f"device is {device!r}; expected a jax device, a jax.sharding.Sharding, or None. Pass jax.devices()[0]; for a "
        "mesh use mesh_map."
    )


def _bring(sharding: Sharding, batch: Any) -> Any:
    """Return arrays over several processes, of which this one brings the parts for its own devices."""
    leaves, structure = flatten(batch)
    for place, leaf in enumerate(leaves):
        array = to_array(leaf, partial(field_name, batch, place), copy=True)
        if array is not None:
            leaves[place] = _jax.make_array_from_process_local_data(sharding, array)
    return structure.unflatten(leaves)


def _split(sharding: NamedSharding, batch: Any) -> Any:
    leaves, structure = flatten(batch)
    parts = [_cut(leaf, sharding.mesh.size, partial(field_name, batch, place)) for place, leaf in enumerate(leaves)]
    return structure.unflatten(_jax.device_put(parts, sharding))


def _cut(leaf: Any, count: int, name: Callable[[], str]) -> Any:
    array = leaf if isinstance(leaf, jax.Array) else to_array(leaf, name, copy=True)
    if array is None or not array.shape:
        raise InvalidTypeError(
            f"field {name()!r} of a batch is {leaf!r:.80}; expected an array with a first axis, which is split over "
            f"{count} devices. Leave it out of the batch, or repeat it for each sample."
        )
    rows, *rest = array.shape
    if rows % count:
        raise InvalidValueError(
            f"field {name()!r} of a batch has {rows} rows; expected a multiple of {count}, since they are split over "
            f"{count} devices. Choose such a minibatch_size, and drop_last=True."
        )
    return array.reshape(count, rows // count, *rest)
