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


def foreign(bits):
    np.random.set_bit_generator(bits)


# A Gaussian is made with its twin, which waits; a fetch must neither lose nor leave one.
@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("inside", range(4))
@pytest.mark.parametrize(
    "swap", [lambda: None, lambda: foreign(np.random.MT19937(3)), lambda: foreign(np.random.PCG64(3))]
)
def test_streams_that_were_set_aside_go_on_as_if_nothing_had_been_drawn(before, inside, swap):
    generators = PythonGenerators()
    random.seed(1)
    np.random.seed(2)
    swap()
    for _ in range(before):
        np.random.randn()
        random.gauss(0, 1)
    state = generators.capture()
    expected = [draw() for _ in range(3)]
    if isinstance(np.random.get_bit_generator(), np.random.MT19937):
        generators.restore(state)
    else:
        np.random.set_state(state["numpy"])
        random.setstate((3, tuple(state["random"][1].tolist()), state["random"][2]))
    aside = generators.set_aside()
    for _ in range(inside):
        np.random.randn()
        random.gauss(0, 1)
    generators.put_back(aside)
    assert [draw() for _ in range(3)] == expected


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
