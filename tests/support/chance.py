"""How surprising a count is: two-sided p-values from NumPy alone."""

import math

import numpy as np


def _gamma_upper(a, x):
    """Regularized upper incomplete gamma Q(a, x): a series below a + 1, a continued fraction above."""
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        n = a
        while abs(term) > abs(total) * 1e-16:
            n += 1
            term *= x / n
            total += term
        return max(0.0, 1 - total * scale)
    b = x + 1 - a
    c, d = 1e300, 1 / b
    h = d
    for i in range(1, 10_000):
        an = -i * (i - a)
        b += 2
        d = 1 / (an * d + b)
        c = b + an / c
        h *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return h * scale


def two_sided(upper):
    """Too even is as suspicious as too uneven."""
    return min(1.0, 2 * min(upper, 1 - upper))


def chi_square(observed, expected, degrees=None):
    """Return the two-sided p-value of counts against what is expected of them."""
    observed, expected = np.asarray(observed, float).ravel(), np.asarray(expected, float).ravel()
    assert expected.min() >= 5, "too few expected in a cell for the chi-square approximation"
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return two_sided(_gamma_upper((len(observed) - 1 if degrees is None else degrees) / 2, statistic / 2))


def poisson_one(counts):
    """Return the p-value of counts against a Poisson distribution of mean 1."""
    classes = [math.exp(-1) / math.factorial(k) for k in range(5)]
    expected = np.array([*classes, 1 - sum(classes)]) * len(counts)
    return chi_square(np.bincount(np.minimum(counts, 5), minlength=6), expected)
