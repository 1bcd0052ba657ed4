import random

import numpy as np
import pytest

from parhelion import generators as generators_module
from parhelion.generators import PythonGenerators

GOLDEN = [2542293617, 917796260, 3588239089], [3666451005, 1454873262, 1775430335]


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
    monkeypatch.setattr("parhelion.generators._python._memory", None)
    monkeypatch.setattr("parhelion.generators._legacy_numpy._owner", np.random.get_bit_generator())
    monkeypatch.setattr("parhelion.generators._legacy_numpy._memory", None)
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


def draw_all():
    """Draw from every global generator, in ways that leave a Gaussian waiting."""
    return [random.random(), random.gauss(0, 1), *np.random.random(3), np.random.standard_normal()]


@pytest.fixture
def generators():
    ours = PythonGenerators()
    before = ours.capture()
    yield ours
    ours.restore(before)


def test_a_seed_sets_python_s_and_numpy_s_global_generators(generators):
    generators.seed(2**63 + 5)
    first = draw_all()
    generators.seed(2**63 + 5)
    assert draw_all() == first
    for other in (5, 2**63, 2**63 + 6):
        generators.seed(other)
        assert not set(draw_all()) & set(first)


@pytest.mark.parametrize("waiting", [0, 1])
def test_captured_generators_go_on_where_they_were(generators, waiting):
    generators.seed(1)
    for _ in range(waiting):
        random.gauss(0, 1)
        np.random.standard_normal()
    state = generators.capture()
    expected = [draw_all() for _ in range(200)]
    random.gauss(0, 1)
    generators.restore(state)
    assert [draw_all() for _ in range(200)] == expected


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_seed_forgets_a_gaussian_that_waits(generators, waiting):
    generators.seed(2)
    expected = [random.gauss(0, 1), np.random.standard_normal()]
    generators.seed(1)
    for _ in range(waiting):
        random.gauss(0, 1)
        np.random.standard_normal()
    generators.seed(2)
    assert [random.gauss(0, 1), np.random.standard_normal()] == expected


def test_the_streams_of_a_seed_are_the_words_of_a_keyed_philox(generators):
    # What a record draws is exact for ever, so a stream of a seed is, too.
    words = np.random.Philox(key=7, counter=1 << 192).random_raw(624).view(np.uint32).reshape(2, 624)
    generators.seed(7)
    assert random.getstate() == (3, (*words[0].tolist(), 624), None)
    state = np.random.get_state(legacy=False)
    assert (state["state"]["key"].tolist(), state["state"]["pos"], state["has_gauss"]) == (words[1].tolist(), 624, 0)
    assert [random.getrandbits(32) for _ in range(3)] == GOLDEN[0]
    assert np.random.randint(2**32, size=3, dtype=np.uint32).tolist() == GOLDEN[1]


def test_states_that_lie_elsewhere_give_the_same_streams(generators, monkeypatch):
    def run():
        generators.seed(3)
        draw_all()
        outer = generators.set_aside()
        generators.seed(4)
        found = draw_all()
        generators.put_back(outer)
        return found, draw_all()

    expected = run()
    monkeypatch.setattr("parhelion.generators._python._memory", None)
    monkeypatch.setattr("parhelion.generators._legacy_numpy._memory", None)
    monkeypatch.setattr("parhelion.generators._legacy_numpy._owner", np.random.get_bit_generator())
    assert run() == expected


def test_the_quick_way_is_taken_here():
    assert generators_module._python._memory is not None
    assert generators_module._legacy_numpy._find_memory() is not None


@pytest.mark.parametrize("waiting_here", [0, 1])
@pytest.mark.parametrize("waiting_there", [0, 1])
def test_generators_set_aside_come_back_where_they_were(generators, waiting_here, waiting_there):
    generators.seed(1)
    for _ in range(waiting_here):
        random.gauss(0, 1)
        np.random.standard_normal()
    state = generators.capture()
    expected = draw_all()
    generators.restore(state)
    aside = generators.set_aside()
    generators.seed(2)
    for _ in range(waiting_there):
        random.gauss(0, 1)
        np.random.standard_normal()
    generators.put_back(aside)
    assert draw_all() == expected


def test_a_captured_state_is_plain_values_and_arrays(generators):
    def leaves(tree):
        if isinstance(tree, dict):
            tree = list(tree.values())
        return [leaf for each in tree for leaf in leaves(each)] if isinstance(tree, (list, tuple)) else [tree]

    found = {type(leaf) for leaf in leaves(generators.capture())}
    assert found <= {int, float, str, np.ndarray, type(None)}
