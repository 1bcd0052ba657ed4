"""DevicePlugin; ids and shardings of several devices are in tests/support/eight_device_facts.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")

import jax

import parhelion as ph
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion_jax.mesh import choose_mesh
from parhelion_jax.placement import Placement
from parhelion_jax.plugins import DevicePlugin

DEVICE = jax.devices()[0]
X = np.ones((2, 3), np.float32)


class Trainer:
    """What the plugin asks of its trainer."""

    def __init__(self) -> None:
        self.placement = Placement(choose_mesh(gpus=[0]))
        self.plugins: dict[str, Any] = {}

    def register_plugin(self, plugin: Any) -> None:
        plugin.trainer = self
        self.plugins[plugin.plug_id] = plugin


def test_the_plugin_is_registered_by_name() -> None:
    plugin = ph.create_plugin("DevicePlugin")
    assert isinstance(plugin, DevicePlugin)
    assert (plugin.plug_id, DevicePlugin.plugin_id) == ("device", "device")
    flags = plugin.unique_overrides
    assert (flags.training_batch, flags.validation_batch, flags.testing_batch) == (True, True, True)
    assert not flags.should_training_stop


def test_it_registers_itself_and_places_as_the_trainer_does() -> None:
    trainer, plugin = Trainer(), DevicePlugin()
    plugin.configure_trainer(trainer)
    plugin.setup()
    assert trainer.plugins == {"device": plugin}
    placed = plugin.process_training_batch({"x": [X]}, ph.TrainingState())
    assert placed["x"][0].sharding == trainer.placement.batch_sharding
    assert plugin.process_testing_batch(placed, 0)["x"][0] is placed["x"][0]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_collection_of_one_s_own_may_be_returned_or_changed_in_place(in_place) -> None:
    class Box:
        def __init__(self, x: Any) -> None:
            self.x = x

    class Unboxing(DevicePlugin):
        def _move_collection_to_device(self, batch: Any) -> Any:
            moved = super()._move_collection_to_device(batch.x)
            if not in_place:
                return Box(moved)
            batch.x = moved
            return None

    plugin = Unboxing()
    Trainer().register_plugin(plugin)
    for process in (plugin.process_training_batch, plugin.process_validation_batch, plugin.process_testing_batch):
        batch = Box(X)
        moved = process(batch, 0)
        assert (moved is batch) is in_place
        assert moved.x.devices() == {DEVICE}


def test_without_a_trainer_it_needs_devices_of_its_own() -> None:
    with pytest.raises(ph.errors.PluginError, match=r"plugin 'device' has no trainer"):
        DevicePlugin().process_validation_batch(X, 0)
    assert DevicePlugin([0]).process_validation_batch(X, 0).devices() == {DEVICE}
    sharding = jax.sharding.SingleDeviceSharding(DEVICE)
    assert DevicePlugin(sharding=sharding).process_validation_batch({"x": X, "n": "a"}, 0)["x"].sharding == sharding


def test_devices_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"gpus has \[99\]; expected id"):
        DevicePlugin([99])
    sharding = jax.sharding.SingleDeviceSharding(DEVICE)
    with pytest.raises(InvalidValueError, match=r"devices is \[0\] and a sharding is given; expected one of them"):
        DevicePlugin([0], sharding=sharding)
    with pytest.raises(InvalidTypeError, match=r"sharding is 0; expected a jax.sharding.Sharding, or None"):
        DevicePlugin(sharding=0)
