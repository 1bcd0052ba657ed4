"""The checks for users' samplers and loaders: sound ones pass, broken ones fail with a readable story."""

import dataclasses
import os
import subprocess
import sys
from itertools import islice

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError, ParhelionError, ResumeError
from parhelion.sampling import (
    Position,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    Shard,
    Tail,
)
from parhelion.seeds import SampleScope, derive, sample_base, sample_rng
from parhelion.testing import (
    ResumeCase,
    Segment,
    batch_sizes,
    check_loader_resumes,
    check_sampler_resumes,
    resume_cases,
    seeds,
    sizes,
    stop_points,
    worlds,
)


def made_by(kind, tail=Tail.PAD):
    """Return ``make_sampler`` for a kind of sampler."""

    def make_sampler(size, seed, batch_size, rank, world):
        sampler = kind(range(size), seed, batch_size)
        sampler.reshard(Shard(batch_size, rank, world, tail))
        return sampler

    return make_sampler


def sequential(data_source, seed, batch_size):
    return ResumableSequentialSampler(data_source, batch_size)


@pytest.mark.parametrize("tail", Tail)
@pytest.mark.parametrize("kind", [ResumableRandomSampler, sequential])
def test_our_samplers_pass_with_every_tail(kind, tail):
    check_sampler_resumes(made_by(kind, tail))


@pytest.mark.parametrize("drop_last", [True, False])
def test_our_distributed_sampler_passes(drop_last):
    check_sampler_resumes(
        lambda size, seed, batch_size, rank, world: ResumableDistributedSampler(
            range(size), world, rank, seed=seed, drop_last=drop_last, batch_size=batch_size
        )
    )


def test_a_sampler_that_repeats_records_passes():
    class Weighted(ResumableSampler):
        def __init__(self, data_source, seed, batch_size):
            super().__init__(batch_size)
            self.data_source = data_source
            self.key = seed

        @property
        def size(self):
            return len(self.data_source) + 3

        def indices(self, epoch, start, stop):
            return np.array([derive(self.key, epoch, k) % len(self.data_source) for k in range(start, stop)], np.int64)

    check_sampler_resumes(made_by(Weighted), max_examples=30)


class LeakyStart(ResumableRandomSampler):
    """Every later epoch begins late too."""

    def set_epoch(self, epoch):
        self._has_begun = False
        super().set_epoch(epoch)


class NextEpoch(ResumableRandomSampler):
    """Started in mid-epoch, it goes on in the order of the next epoch."""

    def indices(self, epoch, start, stop):
        return super().indices(epoch + (self._start.offset > 0), start, stop)

    def indices_at(self, epoch, places):
        return super().indices_at(epoch + (self._start.offset > 0), places)


class SkipsSamples(ResumableRandomSampler):
    """It leaves out one sample, not one batch, for each batch consumed."""

    @property
    def start_iter(self):
        return self._start.offset

    @start_iter.setter
    def start_iter(self, count):
        self._begin_at(Position(self.epoch, min(count, self.size - 1)))


class Drawing(ResumableRandomSampler):
    """Its order depends on how often it has been asked."""

    asked = 0

    def requests(self):
        self.asked += 1
        return super().requests()

    def __iter__(self):
        self.asked += 1
        return super().__iter__()

    def indices(self, epoch, start, stop):
        return super().indices(self.asked, start, stop)

    def indices_at(self, epoch, places):
        return super().indices_at(self.asked, places)


class AddsRank(ResumableRandomSampler):
    """Each rank shuffles with its own seed."""

    def indices_at(self, epoch, places):
        return super().indices_at(epoch + self.shard.rank, places)


class Forgets(ResumableRandomSampler):
    """It cannot be started anywhere but at the beginning."""

    def seek(self, position):
        super().seek(Position(position.epoch))


class OwnIteration(ResumableRandomSampler):
    """Its iteration does not know the start."""

    def __iter__(self):
        return iter(self.indices(self.epoch, 0, self.size).tolist())


class Shorter(ResumableRandomSampler):
    """Its iteration ends before the epoch does."""

    def __iter__(self):
        return islice(super().__iter__(), max(1, self.size - 2))


class Longer(ResumableRandomSampler):
    """Its iteration goes on after the last record."""

    def requests(self):
        requests = list(super().requests())
        return iter([*requests, *requests[:1]])


@pytest.mark.parametrize(
    ("broken", "story"),
    [
        (
            LeakyStart,
            r"stopped after batch \d+ of epoch 0 .* epoch 1 \(from offset 0 of \d+\) should hold \[",
        ),
        (
            NextEpoch,
            r"stopped after batch 1 of epoch 0 .*: batch 2 of epoch 0 \(from offset \d+ of \d+\) should",
        ),
        (
            SkipsSamples,
            r"started again by start_iter = 1, batch_size \d+ on .* should hold \[.*\] and holds \[",
        ),
        (Drawing, r"stopped after batch \d+ of epoch \d .* should hold \[.*\] and holds \["),
        (
            AddsRank,
            r"batch_size 1 on 2 ranks: batch 1 of epoch \d .* on rank 1 should hold \[1\] and holds \[0\]",
        ),
        (
            Forgets,
            r"stopped after batch 1 of epoch 0 \(from offset 0 of 2\), started again by seek\(Position\(e",
        ),
        (OwnIteration, r"stopped after batch 1 of epoch 0 .* should hold \[.*\] and holds \["),
        (
            Shorter,
            r"\d records, seed 0: epoch 0 of a run that never stopped should have \d indices, .* it has \[",
        ),
        (Longer, r"epoch \d should end after batch 1 of epoch \d .*, but goes on with \[0\] on rank 0"),
    ],
)
def test_a_broken_sampler_fails_with_the_story_of_its_smallest_failure(broken, story):
    with pytest.raises(ResumeError, match=story) as caught:
        check_sampler_resumes(made_by(broken))
    assert len(str(caught.value)) < 300
    assert isinstance(caught.value, (AssertionError, ParhelionError))


def test_a_failure_is_made_small():
    with pytest.raises(ResumeError, match=r"^2 records, seed 0, stopped after batch 1 of epoch 0"):
        check_sampler_resumes(made_by(Forgets))


def test_what_is_no_resumable_sampler_is_refused():
    with pytest.raises(InvalidTypeError, match=r"make_sampler returned \[.*\]; expected a ResumableSampler"):
        check_sampler_resumes(lambda size, seed, batch_size, rank, world: list(range(size)))


def test_a_sampler_that_ignores_its_rank_is_refused():
    def make_sampler(size, seed, batch_size, rank, world):
        return ResumableRandomSampler(range(size), seed, batch_size)

    with pytest.raises(InvalidValueError, match=r"returned a sampler with Shard\(.* or check with max_world=1"):
        check_sampler_resumes(make_sampler)
    check_sampler_resumes(make_sampler, max_world=1)


@dataclasses.dataclass
class Sample:
    image: np.ndarray
    meta: dict


@attrs.frozen
class Pair:
    first: object
    second: object


class Loader:
    """The smallest loader there is, with a random transform per sample."""

    open = 0

    def __init__(self, sampler, rng=sample_rng):
        self.sampler = sampler
        self.rng = rng
        type(self).open += 1

    def close(self):
        type(self).open -= 1

    def record(self, index):
        noise = self.rng().normal(size=2).astype(np.float32)
        return Sample(noise + index, {"index": index, "nan": float("nan"), "text": "a"})

    def __iter__(self):
        for request in self.sampler.requests():
            records = []
            with SampleScope(sample_base(1, 0, request.epoch), request.place) as scope:
                for k, index in enumerate(request.indices.tolist()):
                    scope.place = request.place + k
                    records.append(self.record(index))
            yield Pair(records, (len(records), request.indices))


def loading(kind=ResumableRandomSampler, loader=Loader, **options):
    def make_loader():
        sampler = kind(range(20), 3, 4)
        return loader(sampler, **options), sampler

    return make_loader


def test_a_sound_loader_passes_and_every_loader_is_closed():
    check_loader_resumes(loading())
    assert Loader.open == 0


def test_a_loader_s_random_numbers_are_compared_bit_by_bit():
    rng = np.random.default_rng(0)
    with pytest.raises(
        ResumeError,
        match=r"^started by seek\(Position\(epoch=0, offset=0\)\): batch 1 of epoch 0 \(from offset 0 of 20\)"
        r": batch\.first\[0\]\.image should be float32\[2\] \[.*\] and is float32\[2\] \[",
    ):
        check_loader_resumes(loading(rng=lambda: rng))


@pytest.mark.parametrize("broken", [LeakyStart, NextEpoch, SkipsSamples, Drawing])
def test_a_loader_with_a_broken_sampler_fails(broken):
    with pytest.raises(ResumeError, match=r"^stopped after batch \d of epoch \d .*: batch.*should be .* and is "):
        check_loader_resumes(loading(broken))


class Changing(Loader):
    """Started anywhere but at the beginning it gives something of another kind."""

    change = staticmethod(lambda batches: batches)

    def __iter__(self):
        batches = super().__iter__()
        return self.change(batches) if self.sampler.position.offset else batches


@pytest.mark.parametrize(
    ("change", "story"),
    [
        (lambda batches: iter([]), r": batch \d of epoch 0 .* is missing, the loader ended$"),
        (lambda batches: iter([*batches] * 2), r": epoch 0 should be over and goes on with Pair\("),
        (lambda batches: ([b.first] for b in batches), r": batch should be a Pair of 2 and is a list of 1$"),
        (
            lambda batches: (Pair(b.first[:1], b.second) for b in batches),
            r"batch\.first should be a list of 4 and is",
        ),
        (
            lambda batches: (Pair(b.first, (4, b.second[1].astype(np.int32))) for b in batches),
            r"batch\.second\[1\] should be int64\[4\] \[.*\] and is int32\[4\] \[",
        ),
    ],
)
def test_a_batch_of_another_form_fails(change, story):
    loader = type("Changed", (Changing,), {"change": staticmethod(change)})
    with pytest.raises(ResumeError, match=story):
        check_loader_resumes(loading(loader=loader))


def test_a_key_that_comes_or_goes_fails():
    class Keys(Changing):
        change = staticmethod(lambda batches: ({"b": 1} for _ in batches))

        def __iter__(self):
            return ({("b" if self.sampler.position.offset else "a"): 1} for _ in self.sampler.requests())

    with pytest.raises(ResumeError, match=r"batch\['a'\] is missing$"):
        check_loader_resumes(loading(loader=Keys))


def test_a_loader_may_use_its_memory_again():
    class Reuses(Loader):
        def __iter__(self):
            memory = np.zeros(1, np.int64)
            for request in self.sampler.requests():
                memory[0] = request.place
                yield memory

    check_loader_resumes(loading(loader=Reuses))


def test_a_run_of_one_batch_cannot_be_stopped_in_between():
    def make_loader():
        sampler = ResumableRandomSampler(range(2), 3, 4)
        return Loader(sampler), sampler

    with pytest.raises(InvalidValueError, match=r"number of batches in 1 epochs is 1; expected at least 2"):
        check_loader_resumes(make_loader, num_epochs=1)


@given(
    sizes(7),
    seeds(),
    worlds(3),
    batch_sizes(5),
    st.integers(2, 30).flatmap(lambda n: st.tuples(st.just(n), stop_points(n))),
)
def test_strategies_stay_in_their_ranges(size, seed, world, batch_size, stops):
    num_batches, points = stops
    assert 1 <= size <= 7
    assert 0 <= seed < 2**64
    assert 1 <= world <= 3
    assert 1 <= batch_size <= 5
    assert points == sorted(set(points))
    assert 1 <= points[0] <= points[-1] < num_batches
    assert len(points) <= 3


@given(resume_cases(max_size=9, max_world=2), resume_cases(elastic=False))
def test_a_case_is_a_run_with_stops(case, same):
    assert isinstance(case, ResumeCase)
    assert 1 <= case.size <= 9
    assert 2 <= len(case.segments) <= 4
    assert all(isinstance(each, Segment) and each.world <= 2 for each in case.segments)
    assert len({(each.batch_size, each.world) for each in same.segments}) == 1


def run_python(code):
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=paths)


def test_without_hypothesis_the_error_says_what_to_install():
    found = run_python("import sys; sys.modules['hypothesis'] = None; import parhelion.testing")
    assert "pip install 'parhelion[testing]'" in found.stderr.splitlines()[-1]


def test_importing_the_package_loads_neither_hypothesis_nor_the_checks():
    code = "import sys, parhelion; print([m for m in ('hypothesis', 'parhelion.testing') if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"
