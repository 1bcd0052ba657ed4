import os
import subprocess
import sys

import numpy as np
import pytest

from parhelion import sampling
from parhelion.errors import UnknownNameError
from parhelion.sampling import Position, Shard

jax = pytest.importorskip("jax")
parhelion_jax = pytest.importorskip("parhelion_jax")

from parhelion_jax import samplers  # noqa: E402 - skipped before it could fail
from parhelion_jax.samplers import SAMPLER_REGISTRY, create_sampler, get_group  # noqa: E402

NAMES = ["ResumableSequentialSampler", "ResumableRandomSampler", "ResumableDistributedSampler"]
OTHERS = {
    "ResumableWeightedSampler": (range(10), [1, 0] * 5),
    "ResumableMixtureSampler": ([4, 6], [3, 1]),
    "ResumableSubsetSampler": (range(10), [1, 3, 5]),
    "ResumableConcatSampler": ([4, 6],),
    "ResumableBucketSampler": (range(10), range(10)),
    "ResumableCurriculumSampler": ([4, 6], [("first", 0, 8), ("second", 1, None)]),
    "ResumableFunctionSampler": (range(10), lambda epoch, places: 9 - places),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_is_the_neutral_one_with_its_order(name):
    for position in (Position(0), Position(2, 4)):
        ours, neutral = create_sampler(name, range(11)), sampling.create_sampler(name, range(11))
        assert type(ours) is getattr(samplers, name)
        assert isinstance(ours, getattr(sampling, name))
        assert ours.name == neutral.name
        for sampler in (ours, neutral):
            sampler.seek(position)
        assert list(ours) == list(neutral)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_sampler_is_the_neutral_one(name):
    sampler = create_sampler(name, *OTHERS[name], batch_size=3)
    assert type(sampler) is getattr(parhelion_jax, name) is getattr(sampling, name)
    data = range(10)
    loader, _ = parhelion_jax.create_dataloader(data, batch_size=3, sampler=sampler)
    assert np.concatenate(list(loader)).tolist() == list(sampler)


def test_a_registered_function_is_made_a_sampler_by_name(monkeypatch):
    monkeypatch.setattr(sampling.SAMPLER_REGISTRY, "_entries", dict(sampling.SAMPLER_REGISTRY._entries))

    @sampling.SAMPLER_REGISTRY.register
    def backwards(epoch, places):
        return 9 - places

    assert list(create_sampler("backwards", range(10))) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert list(parhelion_jax.create_dataloader(range(10), sampler="backwards")[1]) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_the_registry_shadows_the_neutral_one_and_falls_back_to_it(monkeypatch):
    # The registry is the whole process's: what is registered here goes when the test does.
    monkeypatch.setattr(sampling.SAMPLER_REGISTRY, "_entries", dict(sampling.SAMPLER_REGISTRY._entries))

    @sampling.SAMPLER_REGISTRY.register(name="only neutral")
    class Neutral(sampling.ResumableSequentialSampler):
        pass

    assert set(SAMPLER_REGISTRY.names()) >= {*NAMES, "only neutral"}
    assert type(create_sampler("only neutral", range(3))) is Neutral
    assert SAMPLER_REGISTRY.get(NAMES[0]) is sampling.ResumableSequentialSampler
    assert sampling.SAMPLER_REGISTRY.get(NAMES[2]) is sampling.ResumableDistributedSampler
    with pytest.raises(UnknownNameError, match="Did you mean 'ResumableRandomSampler'"):
        create_sampler("ResumableRandmSampler", range(3))


def test_the_distributed_sampler_takes_the_arguments_of_the_neutral_one():
    sampler = samplers.ResumableDistributedSampler(range(10), 4, 3, seed=5, drop_last=True, batch_size=2)
    assert sampler.shard == Shard(2, 3, 4, sampling.Tail.TRIM)
    assert (sampler.num_replicas, sampler.rank, sampler.num_samples, sampler.seed) == (4, 3, 2, 5)


def test_num_replicas_and_rank_are_jaxs_processes(monkeypatch):
    assert get_group() == (1, 0)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    sampler = samplers.ResumableDistributedSampler(range(10))
    assert (sampler.num_replicas, sampler.rank) == (3, 2)
    sampler = samplers.ResumableDistributedSampler(range(10), num_replicas=1, rank=0)
    assert (sampler.num_replicas, sampler.rank) == (1, 0)


CODE = """
import parhelion_jax.arrays, parhelion_jax.randomness, parhelion_jax.registries, parhelion_jax.data
from parhelion_jax.samplers import ResumableDistributedSampler
list(ResumableDistributedSampler(range(10)))
list(parhelion_jax.data.create_dataloader(range(10), is_distributed=None)[0])
from jax._src import xla_bridge
import sys
assert not xla_bridge.backends_are_initialized()
assert not {"torch", "flax", "equinox"} & set(sys.modules)
"""


def test_samplers_and_loaders_look_for_no_device_and_load_no_torch():
    process = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.returncode == 0, process.stderr
