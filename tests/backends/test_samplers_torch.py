import pytest
import torch
import torch.utils.data

import parhelion_torch
from parhelion import sampling
from parhelion.errors import UnknownNameError
from parhelion.sampling import Position
from parhelion_torch.samplers import SAMPLER_REGISTRY, create_sampler, get_group

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
def test_a_sampler_is_both_the_neutral_one_and_torchs(name):
    sampler = create_sampler(name, range(10))
    assert type(sampler) is getattr(parhelion_torch, name)
    assert isinstance(sampler, getattr(sampling, name))
    assert isinstance(sampler, torch.utils.data.Sampler)
    assert isinstance(sampler, torch.utils.data.DistributedSampler) == (name == "ResumableDistributedSampler")
    assert len(sampler) == 10


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_sampler_is_torchs_too_and_has_the_neutral_order(name):
    sampler, neutral = create_sampler(name, *OTHERS[name]), sampling.create_sampler(name, *OTHERS[name])
    assert type(sampler) is getattr(parhelion_torch, name)
    assert isinstance(sampler, torch.utils.data.Sampler)
    assert (sampler.name, sampler.settings) == (neutral.name, neutral.settings)
    for position in (Position(0), Position(2, 2)):
        sampler.seek(position)
        neutral.seek(position)
        assert list(sampler) == list(neutral)
    plain = torch.utils.data.DataLoader(range(10), batch_size=4, sampler=sampler)
    assert torch.cat(list(plain)).tolist() == list(sampler)


@pytest.mark.parametrize("name", OTHERS)
def test_a_loader_gives_the_records_of_every_other_sampler(name):
    data = range(10)
    if not isinstance(OTHERS[name][0], range):
        data = torch.utils.data.ConcatDataset([range(4), range(4, 10)])
    sampler = create_sampler(name, data, *OTHERS[name][1:], batch_size=3)
    loader, _ = parhelion_torch.create_dataloader(data, batch_size=3, sampler=sampler)
    assert torch.cat(list(loader)).tolist() == list(sampler)


def test_a_registered_function_is_made_torchs_sampler_by_name(monkeypatch):
    monkeypatch.setattr(sampling.SAMPLER_REGISTRY, "_entries", dict(sampling.SAMPLER_REGISTRY._entries))

    @sampling.SAMPLER_REGISTRY.register
    def backwards(epoch, places):
        return 9 - places

    for make in (lambda: create_sampler("backwards", range(10)), lambda: named("backwards")):
        assert type(make()) is parhelion_torch.ResumableFunctionSampler
        assert list(make()) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def named(name):
    return parhelion_torch.create_dataloader(range(10), sampler=name)[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_the_neutral_one(name):
    for position in (Position(0), Position(2, 4)):
        samplers = [create_sampler(name, range(11)), sampling.create_sampler(name, range(11))]
        for sampler in samplers:
            sampler.seek(position)
        assert list(samplers[0]) == list(samplers[1])
        assert samplers[0].name == samplers[1].name


def test_the_registry_shadows_the_neutral_one_and_falls_back_to_it(monkeypatch):
    # The registry is the whole process's: what is registered here goes when the test does.
    monkeypatch.setattr(sampling.SAMPLER_REGISTRY, "_entries", dict(sampling.SAMPLER_REGISTRY._entries))

    @sampling.SAMPLER_REGISTRY.register(name="only neutral")
    class Neutral(sampling.ResumableSequentialSampler):
        pass

    assert set(SAMPLER_REGISTRY.names()) >= {*NAMES, "only neutral"}
    assert type(create_sampler("only neutral", range(3))) is Neutral
    assert sampling.SAMPLER_REGISTRY.get(NAMES[0]) is sampling.ResumableSequentialSampler
    with pytest.raises(UnknownNameError, match="Did you mean 'ResumableRandomSampler'"):
        create_sampler("ResumableRandmSampler", range(3))


def test_a_users_own_sampler_can_derive_from_the_base_class():
    class Backwards(parhelion_torch.ResumableSampler):
        size = 6

        def indices(self, epoch, start, stop):
            return torch.arange(5 - start, 5 - stop, -1).numpy()

    sampler = Backwards(2)
    assert isinstance(sampler, torch.utils.data.Sampler)
    sampler.start_iter = 1
    assert list(sampler) == [3, 2, 1, 0]


def test_the_distributed_sampler_has_the_attributes_of_torchs():
    sampler = parhelion_torch.ResumableDistributedSampler(range(10), 4, 3, seed=5, drop_last=True, batch_size=2)
    theirs = torch.utils.data.DistributedSampler(range(10), 4, 3, seed=5, drop_last=True)
    for name in (
        "num_replicas",
        "rank",
        "epoch",
        "drop_last",
        "num_samples",
        "total_size",
        "shuffle",
        "seed",
    ):
        assert getattr(sampler, name) == getattr(theirs, name), name
    sampler.set_epoch(2)
    assert sampler.epoch == 2


def test_without_a_process_group_there_is_one_rank():
    assert get_group() == (1, 0)
    sampler = parhelion_torch.ResumableDistributedSampler(range(10))
    assert (sampler.num_replicas, sampler.rank) == (1, 0)


def test_num_replicas_and_rank_are_those_of_the_process_group(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    sampler = parhelion_torch.ResumableDistributedSampler(range(10))
    assert (sampler.num_replicas, sampler.rank) == (3, 2)
    loader, chosen = parhelion_torch.create_dataloader(range(12), batch_size=2, is_distributed=None)
    assert (chosen.num_replicas, chosen.rank, len(loader)) == (3, 2, 2)
    loader, chosen = parhelion_torch.create_dataloader(range(12), batch_size=2)
    assert (chosen.shard.world, len(loader)) == (1, 6)
