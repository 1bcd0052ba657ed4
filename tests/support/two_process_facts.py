"""What holds in each of two connected processes with two devices each; run in them."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from parhelion.errors import InvalidValueError, WorldError
from parhelion_jax.mesh import choose_devices, choose_mesh
from parhelion_jax.placement import Placement
from parhelion_jax.world import connect, discover_world

WORLD = discover_world()
PLACEMENT = Placement(choose_mesh())
X = np.arange(24, dtype=np.float32).reshape(8, 3)
MINE = X[4 * WORLD.rank : 4 * WORLD.rank + 4]


def fact_a_world_knows_ranks_and_size() -> None:
    assert (WORLD.rank, WORLD.size) == (jax.process_index(), 2)
    assert WORLD.local_rank == WORLD.rank  # one machine


def fact_a_second_connection_is_refused() -> None:
    with pytest.raises(WorldError, match=r"this process is connected already; expected one call"):
        connect("127.0.0.1:1", 2, WORLD.rank)


def fact_values_of_all_processes_are_gathered_by_rank() -> None:
    mine = {"rank": WORLD.rank, "state": np.arange(WORLD.rank * 1000), "text": "x" * WORLD.rank}
    every = WORLD.gather(mine)
    assert [each["rank"] for each in every] == [0, 1]
    assert [each["state"].tolist() for each in every] == [[], list(range(1000))]
    assert [each["text"] for each in every] == ["", "x"]


def fact_a_barrier_waits_for_the_last() -> None:
    if WORLD.rank == 0:
        time.sleep(0.3)  # what is tested is that the other one waits this long
    arrived = time.time()
    WORLD.barrier()
    assert time.time() >= max(WORLD.gather(arrived))


def fact_devices_are_those_of_all_processes_and_ids_those_of_each() -> None:
    assert [device.process_index for device in choose_devices()] == [0, 0, 1, 1]
    assert [device.process_index for device in choose_devices(gpus=[1])] == [0, 1]
    with pytest.raises(InvalidValueError, match=r"gpus has \[2\]; expected ids from 0 to 1, .* 'cpu' of process 0"):
        choose_devices(gpus=[0, 2])


def fact_each_process_brings_its_rows() -> None:
    assert PLACEMENT.num_shards == 2
    placed = PLACEMENT.place({"x": MINE, "n": np.float32(2)})
    assert placed["x"].shape == (8, 3)
    assert placed["n"].sharding == PLACEMENT.replicated
    for shard in placed["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, X[shard.index])
    assert float(jnp.sum(placed["x"])) == X.sum()
    assert PLACEMENT.place(placed) == placed
    local = PLACEMENT.place([jnp.asarray(MINE)])[0]  # on a device of this process
    assert float(jnp.sum(local)) == X.sum()
    with pytest.raises(InvalidValueError, match=r"field 'x' of a batch has 3 rows; expected a multiple of 2"):
        PLACEMENT.place({"x": MINE[:3]})


def fact_shared_rows_are_counted_once() -> None:
    placed = PLACEMENT.place({"x": X[:4], "odd": X[:5]}, shared=True)
    assert all(each.sharding.is_fully_replicated for each in placed.values())
    assert float(jnp.sum(placed["x"])) == X[:4].sum()
    assert placed["odd"].shape == (5, 3)


def fact_stacked_batches_have_the_rows_of_all() -> None:
    wanted = np.stack([X, X + 1])
    hosts = [{"x": MINE}, {"x": MINE + 1}]
    for batches in (hosts, [PLACEMENT.place(batch) for batch in hosts]):
        stacked = PLACEMENT.stack(batches)["x"]
        assert stacked.shape == (2, 8, 3)
        for shard in stacked.addressable_shards:
            np.testing.assert_array_equal(shard.data, wanted[shard.index])


def fact_replicated_trees_are_global_and_fresh() -> None:
    given = {"w": jnp.ones(3), "n": np.arange(3), "key": jax.random.key(1), "placed": PLACEMENT.place([MINE])[0]}
    made = PLACEMENT.replicate(given)
    assert all(made[name].sharding.is_fully_replicated for name in ("w", "n", "key"))
    assert made["placed"].sharding == given["placed"].sharding
    assert made["w"].shape == (3,)
    jax.jit(lambda tree: jax.tree.map(lambda x: x, tree), donate_argnums=0)(made)
    assert made["placed"].is_deleted()
    assert float(jnp.sum(given["placed"])) == X.sum()


def fact_a_step_over_processes_is_compiled_once_and_its_loss_can_be_read() -> None:
    step = jax.jit(lambda w, batch: (w + 1, jnp.mean(batch["x"] * w)))
    w = PLACEMENT.replicate(np.float32(1))
    held = []
    for _ in range(3):
        w, loss = step(w, PLACEMENT.place({"x": MINE}))
        held.append(PLACEMENT.hold(loss))
    assert step._cache_size() == 1
    assert PLACEMENT.to_host(held) == pytest.approx([X.mean(), 2 * X.mean(), 3 * X.mean()])


def fact_a_mesh_of_one_process_alone_is_refused() -> None:
    devices = np.array(choose_devices())
    with pytest.raises(InvalidValueError, match=r"mesh has 2 places along 'data', of which processes hold \[2, 0\]"):
        choose_mesh(Mesh(devices[:2], ("data",)))
    with pytest.raises(
        InvalidValueError, match=r"processes hold \[2, 2\]; expected each to hold equally many of its own"
    ):
        choose_mesh(Mesh(devices.reshape(2, 2).T, ("data", "model")))
