"""What holds on a mesh of eight devices; run in a process that has them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion_jax.mesh import choose_devices, choose_mesh, count_shards, data_axis, make_mesh
from parhelion_jax.placement import Placement
from parhelion_jax.plugins import DevicePlugin

DEVICES = np.array(jax.devices())
PLACEMENT = Placement(choose_mesh())
X = np.arange(48, dtype=np.float32).reshape(16, 3)


def fact_all_devices_are_taken_unless_some_are_asked_for() -> None:
    assert choose_devices() == list(DEVICES)
    assert choose_devices(use_cpu=True) == list(DEVICES)
    assert choose_devices(gpus=[5, 2]) == [DEVICES[5], DEVICES[2]]
    assert choose_mesh(gpus=[5, 2]).devices.tolist() == [DEVICES[5], DEVICES[2]]


def fact_ids_that_are_not_there_are_named_with_those_that_are() -> None:
    message = r"gpus has \[8, -1\]; expected ids from 0 to 7, since more devices are asked for than exist: jax finds 8"
    with pytest.raises(InvalidValueError, match=message):
        choose_devices(gpus=[8, 0, -1])


def fact_shards_are_the_places_along_the_data_axis() -> None:
    assert (PLACEMENT.num_shards, PLACEMENT.axis) == (8, "data")
    both = Mesh(DEVICES.reshape(2, 4), ("model", "data"))
    assert (data_axis(both), count_shards(both)) == ("data", 4)
    assert data_axis(Mesh(DEVICES, ("batch",))) == "batch"
    with pytest.raises(InvalidValueError, match=r"mesh has the axes \['a', 'b'\]; expected one named 'data'"):
        choose_mesh(Mesh(DEVICES.reshape(2, 4), ("a", "b")))


def fact_rows_are_split_in_order() -> None:
    placed = PLACEMENT.place({"x": X, "deep": [X[:, 0], np.float32(3)]})
    shards = sorted(placed["x"].addressable_shards, key=lambda shard: shard.index[0].start)
    assert [shard.device for shard in shards] == list(DEVICES)
    for k, shard in enumerate(shards):
        np.testing.assert_array_equal(shard.data, X[2 * k : 2 * k + 2])
    assert placed["deep"][1].sharding == PLACEMENT.replicated
    assert PLACEMENT.place(placed)["x"] is placed["x"]


def fact_rows_that_do_not_divide_are_refused_by_field() -> None:
    message = r"field 'deep/x' of a batch has 9 rows; expected a multiple of 8, since they are split over 8 devices"
    with pytest.raises(InvalidValueError, match=message):
        PLACEMENT.place({"deep": {"x": X[:9]}})
    with pytest.raises(InvalidValueError, match=r"has 9 rows; expected a multiple of 8"):
        PLACEMENT.stack([{"x": X[:9]}, {"x": X[:9]}])


def fact_shared_rows_that_do_not_divide_go_to_every_device() -> None:
    placed = PLACEMENT.place({"x": X[:9]}, shared=True)
    assert placed["x"].sharding.is_fully_replicated
    np.testing.assert_array_equal(placed["x"], X[:9])
    assert PLACEMENT.place({"x": X}, shared=True)["x"].sharding == PLACEMENT.batch_sharding


def fact_what_the_host_writes_afterwards_changes_nothing() -> None:
    host = np.ones((4096, 64), np.float32)
    for _ in range(5):
        host[:] = 1
        placed = PLACEMENT.place({"x": host})["x"]
        host[:] = 7
        assert float(placed.sum()) == host.size


def fact_an_array_on_one_device_is_spread() -> None:
    placed = PLACEMENT.place({"x": jnp.asarray(X)})["x"]
    assert placed.sharding == PLACEMENT.batch_sharding
    np.testing.assert_array_equal(placed, X)


def fact_an_array_that_is_on_the_mesh_in_another_way_stays() -> None:
    placement = Placement(Mesh(DEVICES.reshape(4, 2), ("data", "model")))
    x = jax.device_put(np.ones((4, 2)), NamedSharding(placement.mesh, P("data", "model")))
    assert placement.place({"x": x})["x"] is x
    assert placement.replicate([x])[0].sharding == x.sharding


def fact_stacked_batches_are_split_along_their_rows() -> None:
    wanted = np.stack([X, X + 1, X + 2])
    hosts = [{"x": X + k, "n": np.float32(k)} for k in range(3)]
    for batches in (hosts, [PLACEMENT.place(batch) for batch in hosts]):
        stacked = PLACEMENT.stack(batches)
        np.testing.assert_array_equal(stacked["x"], wanted)
        assert stacked["x"].sharding.is_equivalent_to(NamedSharding(PLACEMENT.mesh, P(None, "data")), 3)
        assert stacked["n"].sharding.is_fully_replicated
        assert stacked["n"].tolist() == [0, 1, 2]


def fact_replicated_arrays_are_fresh_and_can_be_donated() -> None:
    given = {"a": jnp.ones(5), "b": np.ones(5, np.float32), "c": PLACEMENT.place([X])[0], "d": jax.random.key(0)}
    made = PLACEMENT.replicate(given)
    assert [made[key].sharding.is_fully_replicated for key in "abcd"] == [True, True, False, True]
    jax.jit(lambda tree: jax.tree.map(lambda x: x, tree), donate_argnums=0)(made)
    assert [made[key].is_deleted() for key in "abc"] == [True] * 3
    assert not any(given[key].is_deleted() for key in "acd")
    assert (float(given["a"].sum()), float(given["b"].sum()), float(given["c"].sum())) == (5, 5, float(X.sum()))


def fact_a_step_is_compiled_once_and_agrees_with_one_device() -> None:
    results = []
    for placement in (PLACEMENT, Placement(make_mesh([DEVICES[3]]))):
        # Compiled functions of one function share what is counted below.
        compiled = jax.jit(
            lambda w, batch: w - 0.1 * jax.grad(lambda w: jnp.mean((batch["x"] @ w) ** 2))(w), donate_argnums=0
        )
        w = placement.replicate(np.ones(3, np.float32))
        for k in range(4):
            w = compiled(w, placement.place({"x": X / 50 + k}))
        assert compiled._cache_size() == 1
        results.append(np.asarray(w))
    np.testing.assert_allclose(*results, rtol=1e-5)


def fact_a_held_value_is_waited_for_as_many_steps_under_way_would_wait_for_ever() -> None:
    heavy = jax.jit(lambda m: jax.lax.fori_loop(0, 60, lambda _, m: jnp.tanh(m @ m), m).sum())
    assert PLACEMENT.hold(heavy(PLACEMENT.replicate(jnp.ones((200, 200))))).is_ready()
    alone = Placement(choose_mesh(gpus=[3]))
    heavy(alone.replicate(jnp.ones((200, 200)))).block_until_ready()  # compiled
    assert not alone.hold(heavy(alone.replicate(jnp.ones((200, 200))))).is_ready()


def fact_one_device_of_several_has_plain_arrays() -> None:
    placement = Placement(choose_mesh(gpus=[3]))
    placed = placement.place({"x": X})["x"]
    assert type(placed.sharding) is jax.sharding.SingleDeviceSharding
    assert placed.devices() == {DEVICES[3]} == placement.replicate(jnp.ones(3)).devices()
    assert placement.place({"x": jnp.asarray(X)})["x"].devices() == {DEVICES[3]}
    assert placement.num_shards == 1


def fact_values_come_back_in_order_from_any_sharding() -> None:
    held = [PLACEMENT.hold(value) for value in (jnp.float32(1), PLACEMENT.place([np.arange(8.0)])[0], 3)]
    assert PLACEMENT.to_host(held) == [1.0, *map(float, range(8)), 3.0]


def fact_a_plugin_takes_ids_or_a_sharding() -> None:
    assert DevicePlugin([6]).process_validation_batch([X], 0)[0].devices() == {DEVICES[6]}
    plugin = DevicePlugin([0, 1])
    assert len(plugin.process_validation_batch([X], 0)[0].devices()) == 2
    assert plugin.process_validation_batch([X[:3]], 0)[0].sharding.is_fully_replicated
    spread = NamedSharding(Mesh(DEVICES.reshape(4, 2), ("a", "b")), P("a"))
    assert DevicePlugin(sharding=spread).process_testing_batch([X], 0)[0].sharding == spread
    with pytest.raises(InvalidValueError, match=r"gpus has \[9\]; expected ids from 0 to 7"):
        DevicePlugin([9])
    with pytest.raises(InvalidTypeError, match=r"sharding is 'data'; expected a jax.sharding.Sharding"):
        DevicePlugin(sharding="data")
