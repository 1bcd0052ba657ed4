"""Whether an order looks like chance: every statistic is also shown to see through a weak order."""

import math
from itertools import permutations

import numpy as np
import pytest

from parhelion.sampling import Permutation
from parhelion.sampling._network import Grid, mix
from parhelion.seeds import derive
from support.chance import chi_square, poisson_one

SIZES = [1024, 1025, 1369, 4097, 65537, 1_000_000]


def ours(size, key):
    return Permutation(size, key).indices(0, size)


def two_rounds(size, key):
    out = np.empty(size, np.int64)
    Grid(size, mix(key), rounds=2).span(0, out)
    return out


def affine(size, key):
    multiplier = mix(key) % size | 1
    while math.gcd(multiplier, size) > 1:
        multiplier += 2
    return (np.arange(size) * multiplier + mix(key + 1) % size) % size


def keys(size, total):
    return range(max(2, total // size))


def tables(order, cells=16):
    """Every pair of a cell of positions and a cell of indices is as likely as its sizes say."""
    for size in SIZES:
        counts = np.zeros(cells * cells)
        many = keys(size, 400_000)
        places = np.arange(size) * cells // size
        for key in many:
            counts += np.bincount(places * cells + order(size, key) * cells // size, minlength=cells * cells)
        each = np.bincount(places)
        yield chi_square(counts, np.outer(each, each) / size * len(many), (cells - 1) ** 2)


def differences(order, cells=64):
    """The step from one index to a later one, modulo the size, is uniform on [1, size)."""
    for size in SIZES:
        for lag in (1, 2, math.isqrt(size - 1) + 1):
            counts = np.zeros(cells)
            many = keys(size, 200_000)
            for key in many:
                found = order(size, key)
                counts += np.bincount((found[lag:] - found[:-lag]) % size * cells // size, minlength=cells)
            possible = np.bincount(np.arange(1, size) * cells // size)
            yield chi_square(counts, possible / (size - 1) * counts.sum())


def fixed_points(order):
    """An index comes at its own position in as many places as a Poisson variable of mean 1 says."""
    for size in SIZES[:4]:
        yield poisson_one([np.count_nonzero(order(size, key) == np.arange(size)) for key in range(2000)])


def agreements(order, pair=lambda i: (2 * i, 2 * i + 1)):
    """Two keys, neighbors too, put the same index at one position as often as two unrelated orders do."""
    for size in SIZES[:4]:
        pairs = [pair(i) for i in range(2000)]
        yield poisson_one([np.count_nonzero(order(size, a) == order(size, b)) for a, b in pairs])


def epochs(order):
    """The same for two epochs of one seed, and for one epoch of two seeds."""
    yield from agreements(order, lambda i: (derive(7, "order", i), derive(7, "order", i + 1)))
    yield from agreements(order, lambda i: (derive(i, "order", 0), derive(i + 1, "order", 0)))


def all_orders(order):
    """At sizes so small that every order can be counted, each comes up as often as any other."""
    for size in (3, 4, 5):
        number = {each: i for i, each in enumerate(permutations(range(size)))}
        counts = np.zeros(len(number))
        for seed in range(12_000):
            counts[number[tuple(order(size, derive(seed, "order", 0)).tolist())]] += 1
        yield chi_square(counts, np.full(len(number), 100.0 * 120 / len(number)))


def smallest(p_values):
    p_values = list(p_values)
    return min(p_values) * len(p_values)


@pytest.mark.parametrize("statistic", [tables, differences, fixed_points, agreements, epochs, all_orders])
def test_an_order_cannot_be_told_from_chance(statistic):
    assert smallest(statistic(ours)) > 1e-4


@pytest.mark.parametrize("statistic", [tables, differences, fixed_points, agreements, epochs])
def test_every_statistic_sees_a_network_of_two_rounds(statistic):
    assert smallest(statistic(two_rounds)) < 1e-12


@pytest.mark.parametrize("statistic", [differences, all_orders])
def test_statistics_of_neighbors_see_an_affine_map(statistic):
    assert smallest(statistic(affine)) < 1e-12


def windows(order):
    """Where only a part can be looked at: high bits, low bits and steps of 2**18 indices in the middle."""
    for size in (2**32, 2**32 + 15, 10**12, 2**62):
        found = order(size, size // 3, size // 3 + 2**18)
        even = np.full(256, 2.0**18 / 256)
        yield chi_square(np.bincount(found // (size // 256 + 1), minlength=256), even)
        yield chi_square(np.bincount(found % 256, minlength=256), even)
        steps = (found[1:] - found[:-1]) % size
        yield chi_square(np.bincount(steps // (size // 256 + 1), minlength=256), even * (1 - 2.0**-18))
        yield chi_square(np.bincount(steps % 256, minlength=256), even * (1 - 2.0**-18))


def test_parts_of_a_large_order_cannot_be_told_from_chance():
    assert smallest(windows(lambda size, start, stop: Permutation(size, 1).indices(start, stop))) > 1e-4


def test_parts_of_a_large_order_of_two_rounds_can():
    def order(size, start, stop):
        out = np.empty(stop - start, np.int64)
        Grid(size, 1, rounds=2).span(start, out)
        return out

    assert smallest(windows(order)) < 1e-12
