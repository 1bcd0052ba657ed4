import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import ORDER_VERSION, Permutation

large = st.integers(1, 2**62) | st.integers(1, 62).flatmap(lambda bits: st.integers(2 ** (bits - 1), 2**bits))
keys = st.integers(0, 2**64 - 1)

# To change a number here is to change the order of every run under way: that needs a new ORDER_VERSION.
GOLDEN = [
    # size, key, the first four indices, the index at 90 %
    (5, 0, [0, 1, 3, 2], 4),
    (1000, 1, [710, 205, 468, 105], 440),
    (1024, 2**64 - 1, [691, 443, 822, 556], 441),
    (1025, 0, [173, 428, 246, 277], 539),
    (1025, 1, [520, 270, 114, 337], 236),
    (1000000, 12345, [646853, 784194, 955519, 27037], 849271),
    (2**32, 7, [1549271760, 249678030, 499473984, 585820629], 3208633616),
    (2**32 + 15, 7, [1052438643, 725108845, 853735474, 1046305206], 359493407),
    (10**12, 3, [391491185457, 829991371898, 316121356434, 55180496040], 570096205005),
    (
        2**62,
        2**63,
        [3160616987288811971, 223639058472793893, 1095082095165635737, 2544840918749041452],
        4176526948084662752,
    ),
]


@pytest.mark.parametrize(("size", "key", "first", "late"), GOLDEN)
def test_the_order_of_version_1_never_changes(size, key, first, late):
    order = Permutation(size, key)
    assert ORDER_VERSION == 1
    assert order.indices(0, 4).tolist() == first
    assert order.indices(0, min(size, 16))[:4].tolist() == first
    assert order.index(size * 9 // 10) == late


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_every_size_up_to_2000_gives_each_index_once_and_back(key):
    for size in range(2001):
        order = Permutation(size, key)
        found = order.indices(0, size)
        assert np.array_equal(np.sort(found), np.arange(size)), size
        assert np.array_equal(order.positions(found), np.arange(size)), size


@pytest.mark.parametrize("size", [300_007, 2**20])
def test_larger_sizes_give_each_index_once(size):
    found = Permutation(size, 5).indices(0, size)
    assert np.array_equal(np.sort(found), np.arange(size))


@given(size=large, key=keys, data=st.data())
@settings(deadline=None)
def test_a_window_anywhere_has_distinct_indices_and_leads_back(size, key, data):
    order = Permutation(size, key)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, min(size, start + 3000)))
    found = order.indices(start, stop)
    assert found.dtype == np.int64
    assert len(np.unique(found)) == len(found) == stop - start
    assert found.min(initial=0) >= 0
    assert found.max(initial=0) < size
    places = np.arange(start, stop)
    assert np.array_equal(order.positions(found), places)
    assert np.array_equal(order.indices_at(places), found)


@given(size=large, key=keys, data=st.data())
@settings(deadline=None)
def test_plain_integers_and_arrays_give_the_same(size, key, data):
    order = Permutation(size, key)
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=9, max_size=40))
    found = [order.index(place) for place in places]
    assert order.indices_at(np.array(places)).tolist() == found
    assert [order.position(index) for index in found] == places
    assert order.positions(np.array(found)).tolist() == places
    assert all(type(index) is int for index in found)


@given(size=large, key=keys, data=st.data())
@settings(deadline=None)
def test_asking_in_parts_gives_what_asking_at_once_gives(size, key, data):
    start = data.draw(st.integers(0, size))
    cuts = sorted(data.draw(st.lists(st.integers(start, min(size, start + 500)), min_size=2, max_size=6)))
    order = Permutation(size, key)
    parts = [order.indices(a, b) for a, b in pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), Permutation(size, key).indices(cuts[0], cuts[-1]))


@pytest.mark.parametrize("size", [10**6 + 1, 2**32 + 15])
def test_a_call_over_several_chunks_gives_what_small_calls_give(size):
    order = Permutation(size, 3)
    whole = order.indices(11, 150_011)
    parts = [order.indices(start, min(start + 70_001, 150_011)) for start in range(11, 150_011, 70_001)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(order.positions(whole), np.arange(11, 150_011))


def test_neighboring_sizes_and_keys_give_unrelated_orders():
    for other in (Permutation(5001, 1), Permutation(5000, 2)):
        agreeing = np.count_nonzero(Permutation(5000, 1).indices(0, 5000) == other.indices(0, 5000))
        assert agreeing < 10


def test_numpy_integers_do_as_well_as_plain_ones():
    order = Permutation(np.int64(10**12), np.uint64(3))
    assert order.index(np.int64(77)) == Permutation(10**12, 3).index(77)
    assert order.position(np.int64(order.index(77))) == 77


def test_several_threads_may_ask_one_order():
    order = Permutation(10**7, 1)
    starts = [i * 60_000 for i in range(4)]
    expected = [order.indices(start, start + 60_000) for start in starts]
    together, wrong = threading.Barrier(4), []

    def ask(start, right):
        together.wait()
        for _ in range(20):
            if not np.array_equal(order.indices(start, start + 60_000), right):
                wrong.append(start)
                return

    threads = [threading.Thread(target=ask, args=each) for each in zip(starts, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_empty_range_is_empty():
    assert Permutation(0, 1).indices(0, 0).tolist() == []
    assert Permutation(9, 1).indices(4, 4).tolist() == []
    assert Permutation(9, 1).positions(np.empty(0, np.int64)).tolist() == []


def test_an_order_shows_its_size_and_key():
    assert repr(Permutation(10, 3)) == "Permutation(size=10, key=3)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Permutation(-1, 0),
            InvalidValueError,
            r"size is -1; expected an integer >= 0\. Give the number",
        ),
        (
            lambda: Permutation(2**62 + 1, 0),
            InvalidValueError,
            r"size is 4611686018427387905; expected an integer",
        ),
        (lambda: Permutation(2.0, 0), InvalidTypeError, r"size is 2\.0; expected an integer >= 0"),
        (
            lambda: Permutation(10, -1),
            InvalidValueError,
            r"key is -1; expected an integer from 0 to 2\*\*64 - 1",
        ),
        (
            lambda: Permutation(10, 1).index(10),
            InvalidValueError,
            r"position is 10; expected one in \[0, 10\)",
        ),
        (
            lambda: Permutation(10, 1).position(-1),
            InvalidValueError,
            r"index is -1; expected one in \[0, 10\)",
        ),
        (
            lambda: Permutation(10, 1).indices(3, 11),
            InvalidValueError,
            r"range of positions is \[3, 11\); expected",
        ),
        (
            lambda: Permutation(10, 1).indices(4, 3),
            InvalidValueError,
            r"range of positions is \[4, 3\); expected",
        ),
        (
            lambda: Permutation(10, 1).indices_at(np.array([0, 10])),
            InvalidValueError,
            r"position is 10; expected",
        ),
        (
            lambda: Permutation(10, 1).positions(np.array([-2, 1])),
            InvalidValueError,
            r"index is -2; expected one",
        ),
    ],
)
def test_what_is_out_of_range_is_refused_with_the_range(call, error, message):
    with pytest.raises(error, match=message):
        call()
