"""What holds of batches on eight devices; run in a process that has them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parhelion.errors import InvalidValueError
from parhelion_jax.minibatches import InMemoryDataLoader
from parhelion_jax.prefetch import mesh_map, prefetching_map, sharding_map

DEVICES = jax.devices()
X = np.arange(48, dtype=np.float32).reshape(16, 3)


def get_parts(array: jax.Array) -> dict[Any, Any]:
    return {shard.device: np.asarray(shard.data) for shard in array.addressable_shards}


def fact_slice_i_lies_on_device_i() -> None:
    for devices in (DEVICES, DEVICES[::-1], DEVICES[2:4], DEVICES[:1]):
        count = len(devices)
        (batch,) = sharding_map([{"x": X, "y": (jnp.arange(16),)}], devices)
        assert batch["x"].shape == (count, 16 // count, 3)
        np.testing.assert_array_equal(batch["x"].reshape(X.shape), X)
        parts = get_parts(batch["x"])
        for place, device in enumerate(devices):
            np.testing.assert_array_equal(parts[device], X.reshape(count, -1, 3)[[place]])
        assert batch["y"][0].devices() == set(devices)
        assert batch["x"].committed


def fact_rows_that_do_not_divide_are_an_error_with_both_numbers() -> None:
    message = r"field 'y/0' of a batch has 12 rows; expected a multiple of 8, since they are split over 8 devices"
    with pytest.raises(InvalidValueError, match=message):
        list(sharding_map([{"x": X, "y": [np.zeros(12)]}], DEVICES))
    with pytest.raises(InvalidValueError, match=r"field 'x' of a batch has 12 rows; expected a multiple of 8"):
        list(mesh_map([{"x": np.zeros(12)}]))


def fact_pmap_takes_what_is_sharded() -> None:
    minibatches = InMemoryDataLoader({"x": X}, 8).minibatches(0)
    mapped = prefetching_map(sharding_map(minibatches, DEVICES), buffer_size=2)
    assert len(mapped) == 2
    sums = [jax.pmap(lambda batch: batch["x"].sum())(batch) for batch in mapped]
    np.testing.assert_allclose(np.ravel(sums), np.concatenate([each["x"] for each in minibatches]).sum(axis=1))


def fact_a_mesh_splits_the_rows_and_keeps_the_shape() -> None:
    both = Mesh(np.array(DEVICES).reshape(4, 2), ("data", "model"))
    for mesh, rows in [(None, 2), (Mesh(np.array(DEVICES[:4]), ("batch",)), 4), (both, 4)]:
        batches = [{"x": X, "scalar": np.float32(3), "text": ["a"]}]
        (batch,) = prefetching_map(mesh_map(batches, mesh))
        np.testing.assert_array_equal(batch["x"], X)
        assert {part.shape for part in get_parts(batch["x"]).values()} == {(rows, 3)}
        assert batch["scalar"].sharding.is_fully_replicated
        assert batch["text"] == ["a"]
        assert float(jax.jit(jnp.sum)(batch["x"])) == X.sum()


def fact_prefetching_puts_arrays_as_a_sharding_has_them() -> None:
    sharding = NamedSharding(Mesh(np.array(DEVICES).reshape(4, 2), ("a", "b")), P("a"))
    for buffer_size in (0, 2):
        (batch,) = prefetching_map([{"x": X}], sharding, buffer_size)
        assert batch["x"].sharding == sharding
        np.testing.assert_array_equal(batch["x"], X)
    (batch,) = prefetching_map([X], DEVICES[5])
    assert batch.devices() == {DEVICES[5]}
