"""A loader and its sampler as the loop sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parhelion as ph
from parhelion.data import Loader
from parhelion.sampling import ResumableRandomSampler, ResumableSequentialSampler, Shard, Tail
from parhelion.training import Source
from support.plain import Records


def source(size: int, batch: int, steps: int = 1, tail: Tail = Tail.PAD, limit: int | None = None) -> Source:
    sampler = ResumableRandomSampler(range(size), batch_size=batch)
    sampler.reshard(Shard(batch, tail=tail))
    return Source(Loader(Records(size), sampler), sampler, accumulation_steps=steps, limit_batches=limit)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.sampled_from([Tail.PAD, Tail.DROP]), st.data())
def test_spans_agree_with_the_batches_and_groups_end_with_the_epoch(size, batch, steps, tail, data) -> None:
    if tail is Tail.DROP and size < batch:
        return
    made = source(size, batch, steps, tail)
    batches = size // batch if tail is Tail.DROP else -(-size // batch)
    start = data.draw(st.integers(0, batches - 1))
    position = ph.Position(0, start * batch)
    spans = list(made.spans(position))
    assert [span.num_records for span in spans] == [len(each["index"]) for each in made.batches(position)]
    assert [span.is_last for span in spans] == [False] * (len(spans) - 1) + [True]
    groups, group = [], []
    for span in spans:
        group.append(span)
        if span.is_update:
            groups.append(group)
            group = []
    assert not group
    assert [len(each) for each in groups[:-1]] == [steps] * (len(groups) - 1)
    for each in groups:
        records = sum(span.num_records for span in each)
        assert [span.loss_weight for span in each] == pytest.approx([s.num_records / records for s in each])


def test_a_limit_ends_the_epoch_early() -> None:
    spans = list(source(20, 4, limit=2).spans(ph.Position()))
    assert [(span.num_records, span.is_last) for span in spans] == [(4, False), (4, True)]


def test_ready_batches_are_delivered_from_any_position() -> None:
    ready = Source(["a", "b", "c", "d"], None)
    assert list(ready.batches(ph.Position(0, 0))) == ["a", "b", "c", "d"]
    assert list(ready.batches(ph.Position(3, 2))) == ["c", "d"]
    assert len(list(ready.spans(ph.Position(3, 2)))) == 2


def test_ready_batches_can_be_shuffled() -> None:
    items = list("abcdefgh")
    ready = Source(items, ResumableRandomSampler(items, seed=3))
    first, second = (list(ready.batches(ph.Position(epoch, 0))) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == items
    assert first != second
    assert list(ready.batches(ph.Position(1, 5))) == second[5:]


def test_ready_batches_come_one_at_a_time() -> None:
    with pytest.raises(ValueError, match=r"list of ready batches has batch_size 2; expected 1"):
        Source(["a", "b"], ResumableSequentialSampler(["a", "b"], batch_size=2))


def test_a_sampler_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"the sampler of a loader is <.*>; expected a ResumableSampler"):
        Source(iter([1]), object())


def test_a_loader_that_cannot_be_iterated_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a loader is 3; expected an iterable of batches"):
        Source(3, ResumableSequentialSampler([1]))


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no batch is left: 3 records make no global batch of 4 with drop_last"):
        source(3, 4, tail=Tail.DROP)
