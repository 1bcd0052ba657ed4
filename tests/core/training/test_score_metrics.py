"""Precision, recall and F1 by themselves, and the area under the ROC curve."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.training._metrics import AUC, F1, ConfusionMatrix, Precision, Recall

NUM_CLASSES = 4


@st.composite
def records(draw):
    """Draw scores with many ties, labels, and which of them are real."""
    size = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.integers(-2, 3, (size, NUM_CLASSES)).astype(np.float32)
    return scores, rng.integers(0, NUM_CLASSES, size), rng.random(size) < 0.7


def assert_same(one, other):
    """Two metrics have seen the same, to the bit."""
    np.testing.assert_equal(one.state_dict(), other.state_dict())


QUOTIENTS = {"precision": Precision, "recall": Recall, "f1": F1}


@pytest.mark.parametrize("name", QUOTIENTS)
class TestQuotients:
    @given(batch=records())
    def test_their_averages_are_those_of_the_confusion_matrix(self, name, batch):
        scores, labels, mask = batch
        matrix = ConfusionMatrix(NUM_CLASSES)
        matrix.update(scores, labels, mask)
        for average in ("macro", "micro", "weighted"):
            metric = QUOTIENTS[name](NUM_CLASSES, average)
            metric.update(scores, labels, mask)
            np.testing.assert_equal(metric.compute(), getattr(matrix, name)(average))
        metric = QUOTIENTS[name](NUM_CLASSES, "each")
        metric.update(scores, labels, mask)
        each = dict(zip("0123", getattr(matrix, name)(None).tolist(), strict=True))
        np.testing.assert_equal(metric.compute(), each)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @given(batch=records())
    def test_of_two_classes_the_binary_one_is_that_of_class_1_as_scikit_learn_has_it(self, name, batch):
        oracle = pytest.importorskip("sklearn.metrics")
        scores, labels, _ = batch
        metric = QUOTIENTS[name](2, "binary")
        metric.update(scores[:, :2], labels % 2)
        if not len(labels):
            assert math.isnan(metric.compute())
            return
        expected = getattr(oracle, f"{name}_score")(labels % 2, scores[:, :2].argmax(1), zero_division=0)
        assert metric.compute() == pytest.approx(expected, rel=1e-12)


ties = st.integers(-3, 3).map(lambda number: number / 2)
cases = st.lists(st.tuples(ties | st.floats(-1e300, 1e300) | st.sampled_from([0.0, -0.0, math.inf]), st.booleans()))


def area(pairs):
    """The share of pairs of a yes and a no that are in order, a tie being half."""
    yes, no = ([score for score, label in pairs if label is each] for each in (True, False))
    ordered = sum(Fraction(2 * (a > b) + (a == b), 2) for a in yes for b in no)
    return ordered / (len(yes) * len(no)) if yes and no else math.nan


class TestAUC:
    @given(cases, st.data())
    def test_it_is_the_share_of_pairs_in_order_whatever_the_order_of_the_records(self, pairs, data):
        metric, shuffled = AUC(), AUC()
        for score, label in pairs:
            metric.update(score, label)
        again = data.draw(st.permutations(pairs))
        shuffled.update(np.array([score for score, _ in again]), np.array([label for _, label in again], bool))
        assert_same(metric, shuffled)
        np.testing.assert_equal(metric.compute(), float(area(pairs)))

    @given(cases)
    def test_it_agrees_with_scikit_learn(self, pairs):
        oracle = pytest.importorskip("sklearn.metrics")
        pairs = [(score, label) for score, label in pairs if math.isfinite(score)]
        if len({label for _, label in pairs}) < 2:
            return
        scores, labels = map(np.array, zip(*pairs, strict=True))
        metric = AUC()
        metric.update(scores, labels.astype(int))
        assert metric.compute() == pytest.approx(oracle.roc_auc_score(labels, scores), rel=1e-9)

    def test_with_one_class_only_it_is_nan(self):
        metric = AUC()
        assert math.isnan(metric.compute())
        metric.update([0.1, 0.2], [1, 1])
        assert math.isnan(metric.compute())
        metric.update([0.15], [0])
        assert metric.compute() == 0.5

    def test_it_keeps_one_row_for_each_distinct_score(self):
        metric = AUC()
        for number in range(1000):
            metric.update(np.full(3, number % 7 / 7), [0, 1, 1])
        assert metric.state_dict()["table"].shape == (7, 3)
        assert metric.state_dict()["table"].sum(axis=0)[1:].tolist() == [1000, 2000]

    def test_it_stays_exact_beyond_64_bits(self):
        many = 2.0**40
        table = np.array([[0.0, many, 1.0], [1.0, 3.0, many]])
        metric = AUC()
        metric.load_state_dict({**metric.state_dict(), "table": table})
        ordered = 2 * 2**40 * 2**40 + 3 * 2**40 + 2**40  # twice the pairs in order, ties once
        assert metric.compute() == float(Fraction(ordered, 2 * (2**40 + 3) * (2**40 + 1)))

    def test_a_thousand_updates_of_a_record_cost_little_more_than_one_of_a_thousand(self):
        scores = np.random.default_rng(1).random(4096)
        metric = AUC()
        for score in scores:
            metric.update(score, score > 0.5)
        levels = metric._sums["table"].levels
        assert sum(map(len, levels)) == 4096
        assert len(levels) <= 13  # each is shorter than the one before it by half or so, so few rows move at a time
