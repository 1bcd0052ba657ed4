"""Plugins that need jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.sharding import Sharding

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.plugins import PLUGIN_REGISTRY, BatchMover

from .mesh import choose_devices, make_mesh
from .placement import Placement, move

__all__ = ["DevicePlugin"]


@PLUGIN_REGISTRY.register
class DevicePlugin(BatchMover):
    """Moves batches to the devices before the model's steps.

    The trainer places nested batches by itself; this plugin is for batches of your own types: derive from it and
    override :meth:`_move_collection_to_device`. What is on the devices already is not copied again.

    Args:
        devices: ids of the devices to split batches over, as the trainer's ``gpus``; None for the trainer's own.
        sharding: where arrays go, instead of ids.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: both are given, or a device that is asked for is not there.
    """

    plugin_id = "device"

    def __init__(self, devices: Sequence[int] | None = None, *, sharding: Sharding | None = None) -> None:
        if sharding is not None:
            if not isinstance(sharding, Sharding):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
                raise InvalidTypeError(f"sharding is {sharding!r}; expected a jax.sharding.Sharding, or None.")
            if devices is not None:
                raise InvalidValueError(
                    f"devices is {devices!r} and a sharding is given; expected one of them. Leave out devices."
                )
        super().__init__(self.plugin_id)
        self._sharding = sharding
        self._placement: Placement | None = None
        if devices is not None:
            self._placement = Placement(make_mesh(choose_devices(gpus=devices)))

    def _move_collection_to_device(self, batch: Any) -> Any:
        """Return a batch on the devices, or change it in place and return None; override it for types of your own.

        Rows are split over the devices; in one process every device gets all of them if they cannot be.
        """
        if self._sharding is not None:
            return move(batch, self._sharding)
        placement: Placement = self._placement or self.trainer.placement
        return placement.place(batch, shared=not placement.spans_processes)
