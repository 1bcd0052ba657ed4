"""The host's generators under jax; and a run that goes from one backend to the other."""

import random
import sys

import numpy as np
import pytest

from parhelion.generators import LoadedGenerators

pytest.importorskip("parhelion_jax")

from parhelion_jax.randomness import Randomness


def draw():
    return random.random(), np.random.rand()


@pytest.fixture(autouse=True)
def _kept():
    state = Randomness().capture()
    yield
    Randomness().restore(state)


def test_a_captured_state_continues_both_streams():
    randomness = Randomness()
    randomness.seed(2**63 + 1)
    draw()
    state = randomness.capture()
    expected = draw(), draw()
    randomness.seed(0)
    randomness.restore(state)
    assert (draw(), draw()) == expected


def test_aside_brings_both_streams_back_also_after_an_error():
    randomness = Randomness()
    randomness.seed(1)
    expected = draw()
    randomness.seed(1)
    with pytest.raises(ZeroDivisionError), randomness.aside():
        1 / (draw()[0] * 0)
    assert draw() == expected


def test_a_state_of_jax_continues_under_torch_and_leaves_torchs_own_stream_as_it_is():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("parhelion_torch.randomness").Randomness(torch.device("cpu"))
    randomness = Randomness()
    randomness.seed(4)
    state = randomness.capture()
    expected = draw()
    with theirs.aside():
        theirs.seed(5)
        before = torch.get_rng_state()
        theirs.restore(state)
        assert draw() == expected
        assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_torch_continues_under_jax():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("parhelion_torch.randomness").Randomness(torch.device("cpu"))
    with theirs.aside():
        theirs.seed(6)
        state = theirs.capture()
        expected = draw()
        Randomness().restore(state)
        assert draw() == expected


def test_a_fetch_keys_torchs_stream_like_torchs_loader_and_puts_it_back():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("parhelion_torch.randomness").Randomness(torch.device("cpu"))
    before = torch.get_rng_state()
    drawn = []
    for generators in (LoadedGenerators(), theirs):
        aside = generators.set_aside()
        generators.seed(2**64 - 3)
        drawn.append((draw(), torch.rand(3).tolist()))
        generators.put_back(aside)
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_torch_a_fetch_keys_the_two_others(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    generators = LoadedGenerators()
    expected = draw()
    generators.seed(1)
    first = draw()
    generators.seed(1)
    assert draw() == first != expected


def test_torch_that_a_fetch_loads_first_is_no_error(monkeypatch):
    generators = LoadedGenerators()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        aside = generators.set_aside()
    generators.put_back(aside)
