"""What must hold for data and checkpoints in each of two connected jax processes of two devices."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parhelion.checkpoint import ShardedArray, flatten, unflatten
from parhelion.data import DataLoaderParams, DatasetSplit
from parhelion_jax.arrays import Arrays
from parhelion_jax.data import loader_for
from parhelion_jax.samplers import ResumableDistributedSampler, get_group


def spread(spec):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole = np.arange(8.0, dtype=np.float32)
    return jax.make_array_from_callback(whole.shape, NamedSharding(mesh, spec), lambda place: whole[place])


def fact_the_ranks_are_the_processes():
    assert get_group() == (2, jax.process_index())
    sampler = ResumableDistributedSampler(range(10))
    assert (sampler.num_replicas, sampler.rank) == (2, jax.process_index())


def fact_processes_share_the_training_data_and_all_get_the_last_batch_of_an_evaluation():
    rank = jax.process_index()
    batches = {}
    for split in (DatasetSplit.TRAIN, DatasetSplit.VALID):
        loader, _ = loader_for(range(21), split, DataLoaderParams(batch_size=8), num_shards=2)
        batches[split] = [batch.tolist() for batch in loader]
    first = list(range(8 * rank, 8 * rank + 8))
    assert batches[DatasetSplit.TRAIN] == [first, [[16, 17, 18, 19], [20, 0, 1, 2]][rank]]
    assert batches[DatasetSplit.VALID] == [first, [16, 17, 18, 19, 20]]


def fact_an_array_that_every_process_has_whole_is_saved_by_each():
    array = spread(PartitionSpec())
    assert not array.is_fully_addressable
    back = unflatten(*flatten({"w": array}, Arrays()), Arrays())["w"]
    assert back.tolist() == list(range(8))
    assert back.is_fully_addressable


def fact_each_process_has_its_parts_of_an_array():
    _, arrays = flatten({"w": spread(PartitionSpec("data"))}, Arrays())
    array = arrays["w"]
    assert isinstance(array, ShardedArray)
    starts = [part.start for part in array.parts]
    assert array.shape == (8,)
    assert len(starts) == len(set(starts)) > 0
    assert sum(part.array.shape[0] for part in array.parts) == 4
