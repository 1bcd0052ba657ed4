"""What holds of batches over two processes of two devices each; every fact runs in both at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parhelion_jax.prefetch import mesh_map, prefetching_map, sharding_map

WORLD = Mesh(np.array(jax.devices()), ("data",))
RANK = jax.process_index()
# Rank 0 brings rows 0 to 3, rank 1 rows 4 to 7.
ROWS = np.arange(16, dtype=np.float32).reshape(8, 2)
MINE = ROWS[4 * RANK : 4 * RANK + 4]


def check(array: Any) -> None:
    assert array.shape == (8, 2)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, ROWS[shard.index])
    assert float(jax.jit(jnp.sum)(array)) == ROWS.sum()


def fact_each_process_brings_its_rows_to_a_mesh() -> None:
    for batch in prefetching_map(mesh_map([{"x": MINE}] * 3, WORLD)):
        check(batch["x"])


def fact_each_process_brings_its_rows_to_a_sharding() -> None:
    for batch in prefetching_map([{"x": MINE, "text": "a"}] * 3, NamedSharding(WORLD, P("data"))):
        check(batch["x"])
        assert batch["text"] == "a"


def fact_local_devices_get_what_this_process_has() -> None:
    (batch,) = sharding_map([MINE], jax.local_devices())
    np.testing.assert_array_equal(batch, MINE.reshape(2, 2, 2))
