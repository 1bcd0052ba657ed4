"""A process that saves is killed at every point and at any moment: nothing is lost, and nothing wrong is resumed."""

from __future__ import annotations

import os
import random

import pytest

from faults.lives import Lives
from faults.points import POINTS, REPLACING, SWEEPING

pytestmark = pytest.mark.processes

BOTH_WAYS = pytest.mark.parametrize("is_behind", [False, True], ids=["at once", "behind"])
# Often enough that every one of several occurrences in a save, and several saves, are hit.
NTHS = (1, 2, 3, 5, 7, 4)


@pytest.fixture
def check(record_property):
    """Return what ends a run, records its tally, and fails if anything is in it that must not be."""

    def end(lives, points=1):
        lives.end()
        for word in ("kills", "resumes", "lost", "wrong", "leftovers"):
            record_property(word, lives.tally[word])
        record_property("points", points)
        bad = {word: lives.tally[word] for word in ("lost", "wrong", "leftovers")}
        assert not any(bad.values()), bad
        assert lives.tally["resumes"] > 0

    return end


@BOTH_WAYS
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_point_of_a_save_loses_nothing(nursery, quick_path, check, point, is_behind):
    lives = Lives(nursery, quick_path, is_behind=is_behind)
    for nth in NTHS:
        lives.kill_at(point, nth)
    check(lives)


@BOTH_WAYS
@pytest.mark.parametrize("point", REPLACING)
def test_a_kill_while_a_checkpoint_is_replaced_loses_nothing(nursery, quick_path, check, point, is_behind):
    lives = Lives(nursery, quick_path, is_behind=is_behind, is_replacing=True)
    for nth in NTHS:
        lives.kill_at(point, nth)
    check(lives)


@pytest.mark.parametrize("point", SWEEPING)
def test_a_kill_while_leftovers_are_swept_loses_nothing(nursery, quick_path, check, point):
    lives = Lives(nursery, quick_path)
    for nth in NTHS:
        lives.kill_at("before the fsync of the manifest", nth)
        lives.kill_at(point, 1)
    check(lives)


@BOTH_WAYS
@pytest.mark.parametrize("is_replacing", [False, True], ids=["new", "replacing"])
def test_a_kill_at_a_random_moment_loses_nothing(nursery, tmp_path, check, is_replacing, is_behind):
    lives = Lives(nursery, tmp_path, is_behind=is_behind, is_replacing=is_replacing)
    moments = random.Random(f"{is_replacing} {is_behind}")
    for _ in range(20):
        lives.kill_after(moments.uniform(0, 0.2))
    check(lives, points=0)


@pytest.mark.endurance
@BOTH_WAYS
@pytest.mark.parametrize("is_replacing", [False, True], ids=["new", "replacing"])
def test_thousands_of_kills_lose_nothing(nursery, quick_path, check, is_replacing, is_behind):
    lives = Lives(nursery, quick_path, is_behind=is_behind, is_replacing=is_replacing)
    chance = random.Random(f"{is_replacing} {is_behind}")
    points = list(REPLACING if is_replacing else POINTS)
    for _ in range(int(os.environ.get("PARHELION_KILLS", "3000")) // 8):
        lives.kill_at(chance.choice(points), chance.randint(1, 6))
        lives.kill_after(chance.uniform(0, 0.15))
    check(lives, points=len(points))
