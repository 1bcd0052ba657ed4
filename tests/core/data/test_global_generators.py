import random

import numpy as np
import pytest

from parhelion.seeds import PythonGenerators


def draw():
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        int(np.random.randint(99)),
    ]


@pytest.fixture(autouse=True)
def _leave_no_trace():
    owner, python, legacy = (
        np.random.get_bit_generator(),
        random.getstate(),
        np.random.get_state(legacy=False),
    )
    yield
    np.random.set_bit_generator(owner)
    np.random.set_state(legacy)
    random.setstate(python)


# A Gaussian is made with its twin, which waits; a fetch must neither lose nor leave one.
@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("inside", range(4))
@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.PCG64])
def test_streams_that_were_set_aside_go_on_as_if_nothing_had_been_drawn(before, inside, bits):
    def start():
        random.seed(1)
        np.random.set_bit_generator(bits(3))
        for _ in range(before):
            np.random.randn()
            random.gauss(0, 1)

    start()
    expected = [draw() for _ in range(3)]
    start()
    generators = PythonGenerators()
    aside = generators.set_aside()
    generators.seed(4)
    for _ in range(inside):
        np.random.randn()
        random.gauss(0, 1)
    generators.put_back(aside)
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("inside", [lambda: np.random.set_bit_generator(np.random.PCG64(1)), lambda: np.random.seed(1)])
def test_whatever_is_done_to_the_legacy_generator_inside_is_undone(inside):
    np.random.seed(3)
    expected = np.random.randn(5).tolist()
    np.random.seed(3)
    aside = PythonGenerators().set_aside()
    inside()
    PythonGenerators().put_back(aside)
    assert np.random.randn(5).tolist() == expected


def test_without_the_layout_that_is_expected_the_streams_go_on_all_the_same(monkeypatch):
    monkeypatch.setattr("parhelion.seeds._legacy_numpy._owner", np.random.get_bit_generator())
    monkeypatch.setattr("parhelion.seeds._legacy_numpy._memory", None)
    test_streams_can_be_set_aside_inside_one_another()


def test_streams_can_be_set_aside_inside_one_another():
    generators = PythonGenerators()
    generators.seed(1)
    expected = draw()
    generators.seed(1)
    outer = generators.set_aside()
    generators.seed(2)
    inner = generators.set_aside()
    generators.seed(3)
    draw()
    generators.put_back(inner)
    middle = draw()
    generators.put_back(outer)
    assert draw() == expected
    generators.seed(2)
    assert draw() == middle


def test_seeding_makes_the_streams_of_a_seed_whatever_was_set_aside_before():
    generators = PythonGenerators()
    generators.seed(2**64 - 1)
    expected = draw()
    np.random.randn()
    generators.put_back(generators.set_aside())
    generators.seed(2**64 - 1)
    assert draw() == expected
    generators.seed(2**63 - 1)
    assert draw() != expected
