"""The devices that train together, and the mesh that they form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from parhelion.errors import InvalidTypeError, InvalidValueError

__all__ = ["DATA_AXIS", "choose_devices", "choose_mesh", "count_shards", "data_axis", "make_mesh"]

DATA_AXIS = "data"

_is: Callable[[Any, Any], bool] = isinstance  # without narrowing: users pass anything
_jax: Any = jax  # it leaves devices untyped
Device: TypeAlias = Any


def choose_mesh(mesh: Mesh | None = None, *, use_cpu: bool | None = None, gpus: Sequence[int] | None = None) -> Mesh:
    """Return the user's own mesh, or one with the axis "data" over the devices that are asked for.

    Raises:
        InvalidTypeError: ``mesh`` is no ``jax.sharding.Mesh``, or an argument has a type that cannot work.
        InvalidValueError: a mesh is given together with ``use_cpu`` or ``gpus``; the batch cannot be split over it;
            or a device that is asked for is not there.
    """
    if mesh is None:
        return make_mesh(choose_devices(use_cpu, gpus))
    if not _is(mesh, Mesh):
        raise InvalidTypeError(f"mesh is {mesh!r}; expected a jax.sharding.Mesh, or None for one over all devices.")
    for name, value in {"use_cpu": use_cpu, "gpus": gpus}.items():
        if value is not None:
            raise InvalidValueError(
                f"{name} is {value!r} and a mesh is given; expected one of them, since a mesh has devices of its own. "
                f"Leave out {name}."
            )
    count_shards(mesh)
    return mesh


def choose_devices(use_cpu: bool | None = None, gpus: Sequence[int] | None = None) -> list[Device]:
    """Return the devices to train on, process by process, those of each in the order asked for.

    Args:
        use_cpu: take the devices of the CPU although there are others.
        gpus: ids of devices of each process, the same in every process: a process numbers its own of jax's default
            platform from 0, whatever that platform is. None takes all.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: both are given, no device is left, or one that is asked for is not there.
    """
    if use_cpu not in (None, True, False):
        raise InvalidTypeError(f"use_cpu is {use_cpu!r}; expected True, False or None.")
    if gpus is not None:
        _check_ids(use_cpu, gpus)
    by_process: dict[int, list[Device]] = {}
    for device in sorted(_jax.devices("cpu" if use_cpu else None), key=_get_place):
        by_process.setdefault(device.process_index, []).append(device)
    if gpus is None:
        return [device for devices in by_process.values() for device in devices]
    for process, devices in by_process.items():
        _check_there(gpus, devices, f" of process {process}" if len(by_process) > 1 else "")
    return [devices[gpu] for devices in by_process.values() for gpu in gpus]


def _get_place(device: Device) -> tuple[int, int]:
    return device.process_index, device.id


def _check_ids(use_cpu: bool | None, gpus: Any) -> None:
    if not _is(gpus, (list, tuple)):
        raise InvalidTypeError(f"gpus is {gpus!r}; expected a list of ids, such as [0], or None.")
    if use_cpu:
        raise InvalidValueError(f"use_cpu is True and gpus is {gpus}; expected one of them. Leave out use_cpu.")
    if not gpus:
        raise InvalidValueError("gpus is []; expected ids of devices. Leave it out to train on all of them.")
    if any(isinstance(each, bool) or not isinstance(each, int) for each in gpus):
        raise InvalidTypeError(f"gpus is {gpus}; expected integers, such as [0, 1].")
    if len(set(gpus)) < len(gpus):
        raise InvalidValueError(f"gpus is {gpus}; expected each id once, since a device has one place in a mesh.")


def _check_there(gpus: Sequence[int], devices: Sequence[Device], where: str) -> None:
    missing = [gpu for gpu in gpus if not 0 <= gpu < len(devices)]
    if missing:
        there = f"ids from 0 to {len(devices) - 1}" if len(devices) > 1 else "id 0"
        raise InvalidValueError(
            f"gpus has {missing}; expected {there}, since more devices are asked for than exist: jax finds "
            f"{len(devices)} of platform {devices[0].platform!r}{where}. Leave gpus out to use all of them."
        )


def make_mesh(devices: Sequence[Device]) -> Mesh:
    """Return a mesh with the one axis "data" over the devices, in their order."""
    return Mesh(np.array(devices, dtype=object), (DATA_AXIS,))


def data_axis(mesh: Mesh) -> str:
    """Return the axis over which batches are split: the one named "data", else the only one.

    Raises:
        InvalidValueError: there are several and none of that name.
    """
    axes = tuple(str(axis) for axis in mesh.axis_names)
    if DATA_AXIS in axes:
        return DATA_AXIS
    if len(axes) == 1:
        return axes[0]
    raise InvalidValueError(
        f"mesh has the axes {list(axes)}; expected one named {DATA_AXIS!r}, over which batches are split. "
        "Name it so, with size 1 if every device is to see whole batches."
    )


def count_shards(mesh: Mesh) -> int:
    """Return how many parts a process splits its batch into: its places along the data axis.

    Raises:
        InvalidValueError: there is no data axis, or processes do not have equally many places of their own along it.
    """
    axis = data_axis(mesh)
    devices: Any = mesh.devices
    lines = np.moveaxis(devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)
    owners = [{device.process_index for device in line} for line in lines]
    own = [sum(process in each for each in owners) for process in range(_jax.process_count())]
    if len(set(own)) > 1 or sum(own) != len(owners):
        raise InvalidValueError(
            f"mesh has {len(owners)} places along {axis!r}, of which processes hold {own}; expected each to hold "
            "equally many of its own, since each brings its own part of a batch. Put devices of a process side by side."
        )
    return own[0]
