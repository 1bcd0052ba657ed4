import copy
import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError, UnknownNameError
from parhelion.training._metrics import (
    AUC,
    F1,
    METRIC_REGISTRY,
    Accuracy,
    ConfusionMatrix,
    Mean,
    Metric,
    Precision,
    Recall,
    Sum,
    create_metric,
    merge_states,
)
from parhelion.training._tally import MAX_PENDING_BYTES, MAX_PENDING_UPDATES, ExactSum

NUM_CLASSES = 4
finite = st.floats(-1e300, 1e300)
weights = st.floats(0, 1e6)
seeds = st.integers(0, 2**32 - 1)
tied_scores = st.integers(-2, 2)


@st.composite
def records(draw, max_size=30):
    """Draw scores with many ties, labels, and which of them are real."""
    size = draw(st.integers(0, max_size))
    rng = np.random.default_rng(draw(seeds))
    return (
        rng.integers(-2, 3, (size, NUM_CLASSES)).astype(np.float32),
        rng.integers(0, NUM_CLASSES, size),
        rng.random(size) < 0.7,
    )


def cuts(size, data):
    inner = data.draw(st.lists(st.integers(0, size), max_size=4))
    return list(itertools.pairwise([0, *sorted(inner), size]))


def assert_same(one, other):
    """Two metrics have seen the same, to the bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert np.array_equal(value, theirs[key], equal_nan=not isinstance(value, str)), key


class Device:
    """An array on a device: reading it is counted, and it can be changed in place, as torch's can."""

    reads = 0

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape, self.nbytes, self.is_cpu = self.array.shape, self.array.nbytes, False

    def detach(self):
        return self

    def clone(self):
        return Device(self.array.copy())

    def cpu(self):
        Device.reads += 1
        return self.array


class Immutable:
    """An array on a device that NumPy can read and nobody can change, as jax's are."""

    reads = 0

    def __init__(self, array):
        self.array = np.asarray(array)
        self.shape, self.nbytes = self.array.shape, self.array.nbytes

    def __array__(self, dtype=None, copy=None):
        Immutable.reads += 1
        return self.array.astype(dtype) if dtype is not None else self.array


KINDS = {
    "Mean": (Mean, lambda scores, labels: (scores[:, 0] / 3,)),
    "Sum": (Sum, lambda scores, labels: (scores[:, 0] / 3,)),
    "Accuracy": (Accuracy, lambda scores, labels: (scores, labels)),
    "top 2": (lambda: Accuracy(top_k=2), lambda scores, labels: (scores, labels)),
    "classes": (Accuracy, lambda scores, labels: (scores.argmax(-1), labels)),
    "ConfusionMatrix": (lambda: ConfusionMatrix(NUM_CLASSES), lambda scores, labels: (scores, labels)),
    "Precision": (lambda: Precision(NUM_CLASSES, "micro"), lambda scores, labels: (scores, labels)),
    "Recall": (lambda: Recall(NUM_CLASSES), lambda scores, labels: (scores, labels)),
    "F1": (lambda: F1(NUM_CLASSES, "each"), lambda scores, labels: (scores, labels)),
    "AUC": (AUC, lambda scores, labels: (scores[:, 0], labels % 2)),
}


@pytest.mark.parametrize("kind", KINDS)
class TestEveryMetric:
    @given(batch=records(), data=st.data())
    def test_any_split_merged_in_any_order_is_all_at_once_to_the_bit(self, kind, batch, data):
        make, arguments = KINDS[kind]
        scores, labels, mask = batch
        whole = make()
        whole.update(*arguments(scores, labels), mask=mask)
        parts = []
        for begin, end in cuts(len(labels), data):
            part = make()
            part.update(*arguments(scores[begin:end], labels[begin:end]), mask=mask[begin:end])
            parts.append(part)
        for part in data.draw(st.permutations(parts[1:])):
            parts[0].merge(part)
        assert_same(parts[0], whole)
        np.testing.assert_equal(parts[0].compute(), whole.compute())

    @given(batch=records(), data=st.data())
    def test_merging_is_associative_and_leaves_the_other_as_it_was(self, kind, batch, data):
        make, arguments = KINDS[kind]
        scores, labels, _ = batch
        metrics = []
        for begin, end in [*cuts(len(labels), data), (0, 1), (0, 2)][:3]:
            metrics.append(make())
            metrics[-1].update(*arguments(scores[begin:end], labels[begin:end]))
        a, b, c = metrics
        left, right, tail = copy.deepcopy(a), copy.deepcopy(a), copy.deepcopy(b)
        before = copy.deepcopy(b)
        left.merge(b)
        assert_same(b, before)
        left.merge(c)
        tail.merge(c)
        right.merge(tail)
        assert_same(left, right)

    @given(batch=records(), garbage=st.sampled_from([0, 3]))
    def test_padding_counts_nothing_whatever_it_holds(self, kind, batch, garbage):
        make, arguments = KINDS[kind]
        scores, labels, mask = batch
        real, padded = make(), make()
        real.update(*arguments(scores[mask], labels[mask]))
        noisy = np.where(mask[:, None], scores, np.nan)
        if kind == "classes":
            noisy = np.where(mask[:, None], scores, garbage)
        padded.update(*arguments(noisy, np.where(mask, labels, -100)), mask=mask)
        assert_same(real, padded)

    @given(batch=records(), data=st.data())
    def test_a_state_taken_midway_goes_on_as_if_nothing_had_happened(self, kind, batch, data):
        make, arguments = KINDS[kind]
        scores, labels, mask = batch
        straight, first = make(), make()
        cut = data.draw(st.integers(0, len(labels)))
        straight.update(*arguments(scores, labels), mask=mask)
        first.update(*arguments(scores[:cut], labels[:cut]), mask=mask[:cut])
        resumed = make()
        resumed.update(*arguments(scores, labels))  # what it had seen is forgotten
        resumed.load_state_dict(first.state_dict())
        resumed.update(*arguments(scores[cut:], labels[cut:]), mask=mask[cut:])
        assert_same(resumed, straight)

    def test_a_state_is_plain_values_and_arrays_that_belong_to_the_taker(self, kind):
        make, arguments = KINDS[kind]
        metric = make()
        metric.update(*arguments(np.eye(4, dtype=np.float32), np.arange(4)))
        same = copy.deepcopy(metric)
        for value in metric.state_dict().values():
            assert type(value) in (str, int) or value.dtype in (np.int64, np.float64)
            if isinstance(value, np.ndarray):
                np.negative(value, out=value)
        assert_same(metric, same)

    def test_the_states_of_all_ranks_make_the_metric_of_the_world(self, kind):
        make, arguments = KINDS[kind]
        rng = np.random.default_rng(3)
        scores, labels = rng.random((12, NUM_CLASSES)), rng.integers(0, NUM_CLASSES, 12)
        whole, ranks = make(), [make() for _ in range(3)]
        whole.update(*arguments(scores, labels))
        for rank, metric in enumerate(ranks):
            metric.update(*arguments(scores[rank::3], labels[rank::3]))
        mine = copy.deepcopy(ranks[1])
        world = merge_states(ranks[1], [metric.state_dict() for metric in ranks])
        assert_same(world, whole)
        assert_same(ranks[1], mine)

    @pytest.mark.parametrize("array", [Device, Immutable])
    def test_an_update_reads_nothing_from_a_device_until_a_result_is_asked_for(self, kind, array):
        make, arguments = KINDS[kind]
        lazy, eager = make(), make()
        scores, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
        array.reads = 0
        for _ in range(5):
            lazy.update(*map(array, arguments(scores, labels)), mask=array(labels == 0))
            eager.update(*arguments(scores, labels), mask=labels == 0)
        assert array.reads == 0
        assert_same(lazy, eager)
        assert array.reads == 5 * (1 + len(arguments(scores, labels)))
        lazy.compute()
        assert array.reads == 5 * (1 + len(arguments(scores, labels)))

    def test_what_changes_after_an_update_does_not_change_the_metric(self, kind):
        make, arguments = KINDS[kind]
        scores, labels, mask = (
            np.eye(4, dtype=np.float32),
            np.array([0, 1, 0, 1]),
            np.array([True] * 3 + [False]),
        )
        lazy, eager = make(), make()
        eager.update(*arguments(scores, labels), mask=mask)
        on_device, *others = arguments(scores.copy(), labels.copy())
        on_device, mask = Device(on_device), mask.copy()
        lazy.update(on_device, *others, mask=mask)
        for array in (on_device.array, *others, mask):
            array[:] = array[::-1].copy()
        assert_same(lazy, eager)

    def test_reset_forgets_what_was_counted_and_what_was_waiting(self, kind):
        make, arguments = KINDS[kind]
        metric = make()
        metric.update(*arguments(np.eye(4), np.arange(4)))
        metric.update(*map(Device, arguments(np.eye(4), np.arange(4))))
        metric.reset()
        assert_same(metric, make())

    def test_a_merge_counts_what_waits_on_both_sides(self, kind):
        make, arguments = KINDS[kind]
        scores, labels = np.eye(4), np.array([0, 1, 0, 1])
        eager, one, other = make(), make(), make()
        for metric in (one, other):
            metric.update(*map(Device, arguments(scores, labels)))
            eager.update(*arguments(scores, labels))
        one.merge(other)
        assert_same(one, eager)

    def test_a_loaded_state_forgets_what_was_waiting(self, kind):
        make, arguments = KINDS[kind]
        metric = make()
        metric.update(*map(Device, arguments(np.eye(4), np.arange(4))))
        metric.load_state_dict(make().state_dict())
        assert_same(metric, make())

    def test_it_is_a_metric_that_pickles_and_says_how_it_was_made(self, kind):
        make, arguments = KINDS[kind]
        metric = make()
        metric.update(*arguments(np.eye(4), np.arange(4)))
        assert isinstance(metric, Metric)
        assert_same(pickle.loads(pickle.dumps(metric)), metric)  # noqa: S301 - our own bytes
        assert_same(eval(repr(metric)), make())  # noqa: S307 - our own text

    def test_merging_another_kind_is_refused(self, kind):
        make, _ = KINDS[kind]
        other = Sum() if isinstance(make(), Mean) else Mean()
        with pytest.raises(InvalidTypeError, match=r"metric to merge is a \w+; expected a \w+\. Merge like"):
            make().merge(other)

    def test_a_state_of_another_kind_is_refused_and_nothing_changes(self, kind):
        make, arguments = KINDS[kind]
        metric = make()
        metric.update(*arguments(np.eye(4), np.arange(4)))
        before = metric.state_dict()
        with pytest.raises(InvalidValueError, match=r"state of \w+ has the keys \['kind'\]; expected \["):
            metric.load_state_dict({"kind": "Median"})
        with pytest.raises(InvalidValueError, match=r"kind in the state of \w+ is 'Median'; expected '\w+'\."):
            metric.load_state_dict({**before, "kind": "Median"})
        restored = make()
        restored.load_state_dict(before)
        assert_same(metric, restored)


class TestWaiting:
    def test_so_many_updates_may_wait_and_no_more(self):
        metric, Device.reads = Mean(), 0
        for _ in range(MAX_PENDING_UPDATES - 1):
            metric.update(Device(1.0))
        assert Device.reads == 0
        metric.update(Device(1.0))
        assert Device.reads == MAX_PENDING_UPDATES
        metric.update(Device(1.0))
        assert Device.reads == MAX_PENDING_UPDATES

    def test_so_many_bytes_may_wait_and_no_more(self):
        metric, Device.reads = Sum(), 0
        large = Device(np.zeros(MAX_PENDING_BYTES // 16 + 1))
        for reads in (0, 2, 2, 4):
            metric.update(large)
            assert Device.reads == reads

    def test_a_wrong_value_on_a_device_is_said_at_the_result_and_left_out(self):
        metric = Accuracy()
        metric.update(Device(np.eye(2)), np.array([0, 1]))
        metric.update(Device(np.eye(2)), np.array([0, 7]))
        metric.update(Device(np.eye(2)), np.array([1, 1]))
        with pytest.raises(InvalidValueError, match="labels hold 7"):
            metric.compute()
        assert metric.compute() == 0.75

    def test_a_wrong_shape_on_a_device_is_said_at_once(self):
        with pytest.raises(InvalidValueError, match=r"shape \(2, 2\) and labels \(3,\)"):
            Accuracy().update(Device(np.eye(2)), Device(np.zeros(3, int)))

    def test_a_type_that_numpy_does_not_have_is_read_as_float64(self):
        class BFloat16(Device):
            def clone(self):
                return self

            def cpu(self):
                return self

            def __array__(self, dtype=None, copy=None):
                raise TypeError("Got unsupported ScalarType BFloat16")

            def double(self):
                return self.array.astype(np.float64)

        metric = Mean()
        metric.update(BFloat16(np.array([1.5, 2.5], np.float32)))
        assert metric.compute() == 2.0


class TestMean:
    @given(st.lists(st.tuples(finite, weights), max_size=30))
    def test_it_is_the_true_mean(self, pairs):
        metric = Mean()
        metric.update(np.array([v for v, _ in pairs]), weight=np.array([w for _, w in pairs]))
        total = sum((Fraction(v * w) for v, w in pairs), Fraction(0))
        weight = sum((Fraction(w) for _, w in pairs), Fraction(0))
        if weight:
            assert metric.compute() == float(total) / float(weight)
            assert metric.compute() == pytest.approx(float(total / weight), rel=1e-12)
        else:
            assert math.isnan(metric.compute())

    def test_nothing_counted_is_nan(self):
        assert math.isnan(Mean().compute())
        metric = Mean()
        metric.update(np.array([1.0, 2.0]), mask=np.array([False, False]))
        assert math.isnan(metric.compute())

    def test_a_batchs_mean_stands_for_its_records(self):
        metric = Mean()
        metric.update(1.0, weight=3)
        metric.update(np.float32(5.0), weight=np.int64(1))
        assert metric.compute() == 2.0

    def test_a_weight_or_mask_of_the_leading_axes_covers_the_others(self):
        values = np.arange(6.0).reshape(2, 3)
        metric = Mean()
        metric.update(values, weight=np.array([1, 3]))
        assert metric.compute() == (3 + 3 * 12) / 12
        metric.reset()
        metric.update(values, mask=np.array([False, True]))
        assert metric.compute() == 4.0

    def test_a_value_of_weight_zero_is_not_looked_at(self):
        metric = Mean()
        metric.update(np.array([1.0, math.nan]), weight=np.array([2.0, 0.0]))
        assert metric.compute() == 1.0

    def test_a_weight_under_the_mask_is_not_looked_at(self):
        metric = Mean()
        metric.update([1.0, 5.0], weight=[2.0, math.nan], mask=[True, False])
        assert metric.compute() == 1.0

    def test_nan_and_infinities_are_passed_on(self):
        for values, expected in (
            ([1.0, math.nan], math.nan),
            ([1.0, math.inf], math.inf),
            ([-math.inf, 5.0], -math.inf),
            ([math.inf, -math.inf], math.nan),
            ([1e308, 1e308, 1e308], math.inf),
        ):
            together, apart = Mean(), Mean()
            together.update(np.array(values))
            for value in values:
                apart.update(value)
            np.testing.assert_equal(together.compute(), expected)
            np.testing.assert_equal(apart.compute(), expected)


class TestExactSum:
    @given(st.lists(finite, max_size=40), st.data())
    def test_equal_sums_are_equal_values_whatever_the_order(self, terms, data):
        shuffled = data.draw(st.permutations(terms))
        total = ExactSum().plus(np.array(terms, np.float64))
        assert sum(map(Fraction, total.parts), Fraction(0)) == sum(map(Fraction, terms), Fraction(0))
        stepwise = ExactSum()
        for term in shuffled:
            stepwise = stepwise.plus(np.array([term]))
        assert stepwise == total

    def test_what_floating_point_loses_is_kept(self):
        metric = Sum()
        for value in (1e16, 1.0, -1e16):
            metric.update(value)
        assert metric.compute() == 1.0


class TestSum:
    @given(st.lists(finite, max_size=30))
    def test_it_is_the_true_sum_rounded_once(self, values):
        metric = Sum()
        metric.update(np.array(values, np.float64))
        assert metric.compute() == float(sum(map(Fraction, values), Fraction(0)))

    def test_nothing_counted_is_zero(self):
        assert Sum().compute() == 0.0

    def test_integers_and_booleans_are_numbers(self):
        metric = Sum()
        metric.update(np.array([[2, 3], [4, 5]], np.uint8), mask=np.array([True, False]))
        metric.update([True, False, True])
        assert metric.compute() == 7.0


class TestAccuracy:
    @given(records(), st.integers(1, NUM_CLASSES))
    def test_of_equal_scores_the_lower_class_ranks_first(self, batch, top_k):
        scores, labels, mask = batch
        metric = Accuracy(top_k)
        metric.update(scores, labels, mask=mask)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        hits = [label in row for row, label, real in zip(best, labels, mask, strict=True) if real]
        np.testing.assert_equal(metric.compute(), np.mean(hits) if hits else math.nan)

    @given(records())
    def test_classes_and_scores_say_the_same(self, batch):
        scores, labels, mask = batch
        by_scores, by_classes = Accuracy(), Accuracy()
        by_scores.update(scores, labels, mask=mask)
        by_classes.update(scores.argmax(1), labels, mask=mask)
        assert_same(by_scores, by_classes)

    def test_all_classes_allowed_is_always_right(self):
        metric = Accuracy(top_k=3)
        metric.update([[0.1, 0.2, 0.3]], [0])
        assert metric.compute() == 1.0

    def test_records_may_have_several_axes_and_one_mask_a_row(self):
        scores, labels = np.eye(3)[[[0, 1], [2, 0]]], np.array([[0, 1], [0, 0]])
        metric = Accuracy()
        metric.update(scores, labels)
        assert metric.compute() == 0.75
        metric.update(scores, labels, mask=np.array([True, False]))
        assert metric.state_dict() == {"kind": "Accuracy", "top_k": 1, "num_correct": 5, "num_records": 6}

    def test_one_record_needs_no_axis(self):
        metric = Accuracy()
        metric.update([0.1, 0.9], 1)
        metric.update(1, 0)
        assert metric.compute() == 0.5

    def test_nothing_counted_is_nan(self):
        metric = Accuracy()
        metric.update(np.zeros((0, 5)), np.zeros(0, int))
        assert math.isnan(metric.compute())

    def test_another_top_k_is_neither_merged_nor_loaded(self):
        with pytest.raises(InvalidValueError, match=r"Accuracy to merge has \{'top_k': 5\}; expected \{'top_k': 1"):
            Accuracy().merge(Accuracy(top_k=5))
        with pytest.raises(InvalidValueError, match=r"top_k in the state of Accuracy is 5; expected 1\. Make the"):
            Accuracy().load_state_dict(Accuracy(top_k=5).state_dict())


AVERAGES = ("macro", "micro", "weighted", None)


class TestConfusionMatrix:
    @given(records())
    def test_it_counts_true_classes_by_row_and_predicted_ones_by_column(self, batch):
        scores, labels, mask = batch
        metric = ConfusionMatrix(NUM_CLASSES)
        metric.update(scores, labels, mask=mask)
        expected = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
        for row, label in zip(scores[mask], labels[mask], strict=True):
            expected[label, list(row).index(max(row))] += 1
        assert metric.matrix().dtype == np.int64
        np.testing.assert_array_equal(metric.matrix(), expected)

    @given(records())
    def test_its_micro_average_is_the_accuracy(self, batch):
        scores, labels, _ = batch
        matrix, accuracy = ConfusionMatrix(NUM_CLASSES), Accuracy()
        matrix.update(scores, labels)
        accuracy.update(scores, labels)
        for quotient in (matrix.precision, matrix.recall, matrix.f1):
            np.testing.assert_equal(quotient("micro"), accuracy.compute())

    @given(records())
    def test_per_class_they_are_their_definitions_and_zero_without_a_denominator(self, batch):
        scores, labels, _ = batch
        matrix = ConfusionMatrix(NUM_CLASSES)
        matrix.update(scores, labels)
        predicted = scores.argmax(1)
        for each in range(NUM_CLASSES if len(labels) else 0):
            hits = np.sum((predicted == each) & (labels == each))
            precision = hits / max(np.sum(predicted == each), 1)
            recall = hits / max(np.sum(labels == each), 1)
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            assert matrix.precision(None)[each] == precision
            assert matrix.recall(None)[each] == recall
            assert matrix.f1(None)[each] == pytest.approx(f1, rel=1e-12)

    def test_the_averages_are_those_that_one_can_work_out_by_hand(self):
        matrix = ConfusionMatrix(4)
        matrix.update(predictions=[0, 0, 0, 1, 1], labels=[0, 0, 1, 1, 2])  # class 3 does not occur
        np.testing.assert_allclose(matrix.precision(None), [2 / 3, 1 / 2, 0, 0])
        np.testing.assert_allclose(matrix.recall(None), [1, 1 / 2, 0, 0])
        np.testing.assert_allclose(matrix.f1(None), [4 / 5, 1 / 2, 0, 0])
        assert matrix.precision() == pytest.approx((2 / 3 + 1 / 2) / 3)
        assert matrix.recall("weighted") == pytest.approx((2 * 1 + 2 * 0.5) / 5)
        assert matrix.f1("macro") == pytest.approx(1.3 / 3)
        assert matrix.f1("micro") == pytest.approx(3 / 5)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("average", AVERAGES)
    @pytest.mark.parametrize("name", ["precision", "recall", "f1"])
    @given(batch=records())
    def test_they_agree_with_scikit_learn(self, name, average, batch):
        oracle = pytest.importorskip("sklearn.metrics")
        scores, labels, _ = batch
        if len(labels) == 0:
            return
        matrix = ConfusionMatrix(NUM_CLASSES)
        matrix.update(scores, labels)
        expected = getattr(oracle, f"{name}_score")(
            labels,
            scores.argmax(1),
            average=average,
            zero_division=0,
            labels=range(NUM_CLASSES) if average is None else None,
        )
        np.testing.assert_allclose(getattr(matrix, name)(average), expected, rtol=1e-12)

    @given(records())
    def test_its_result_is_the_accuracy_and_the_macro_averages(self, batch):
        scores, labels, mask = batch
        matrix, accuracy = ConfusionMatrix(NUM_CLASSES), Accuracy()
        matrix.update(scores, labels, mask)
        accuracy.update(scores, labels, mask)
        expected = {
            "accuracy": accuracy.compute(),
            "precision": matrix.precision("macro"),
            "recall": matrix.recall("macro"),
            "f1": matrix.f1("macro"),
        }
        np.testing.assert_equal(matrix.compute(), expected)

    def test_nothing_counted_is_zeros_and_every_quotient_nan(self):
        matrix = ConfusionMatrix(3)
        assert matrix.matrix().tolist() == [[0] * 3] * 3
        for average in AVERAGES:
            assert np.isnan(matrix.f1(average)).all()
        assert matrix.recall(None).shape == (3,)

    def test_the_matrix_belongs_to_the_taker(self):
        matrix = ConfusionMatrix(2)
        matrix.matrix()[:] = 9
        assert matrix.matrix().sum() == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Accuracy(0), InvalidValueError, r"top_k of Accuracy is 0; expected an integer >= 1"),
            (lambda: Accuracy(1.5), InvalidTypeError, r"top_k of Accuracy is 1\.5; expected an integer"),
            (
                lambda: ConfusionMatrix(1),
                InvalidValueError,
                r"num_classes of ConfusionMatrix is 1; expected an integer >= 2",
            ),
            (
                lambda: Mean().update(np.zeros((4, 2)), weight=np.ones(2)),
                InvalidValueError,
                r"weight has shape \(2,\) and values \(4, 2\); expected the same, or its leading axes",
            ),
            (
                lambda: Sum().update(np.zeros(4), mask=np.ones(3, bool)),
                InvalidValueError,
                r"mask has shape \(3,\) and values \(4,\); expected",
            ),
            (
                lambda: Mean().update(np.zeros(3), weight=[1, -2, 3]),
                InvalidValueError,
                r"weight holds -2\.0; expected finite numbers >= 0",
            ),
            (
                lambda: Mean().update(1.0, weight=math.inf),
                InvalidValueError,
                r"weight holds inf; expected finite numbers >= 0",
            ),
            (
                lambda: Mean().update(np.zeros(2), mask=np.array([0, 1])),
                InvalidTypeError,
                r"mask is of int64; expected bool, True for a real record\. Pass mask != 0",
            ),
            (
                lambda: Accuracy().update(np.zeros((8, 10, 5)), np.zeros((8, 5), int)),
                InvalidValueError,
                r"predictions have shape \(8, 10, 5\) and labels \(8, 5\); .* Move the axis",
            ),
            (
                lambda: Accuracy().update(np.zeros((8, 1)), np.zeros(8, int)),
                InvalidValueError,
                r"predictions have shape \(8, 1\), scores for 1 classes; expected at least 2\. For a single",
            ),
            (
                lambda: Accuracy().update(np.zeros((2, 3)), np.zeros(2, int), mask=np.ones((2, 1), bool)),
                InvalidValueError,
                r"mask has shape \(2, 1\) and labels \(2,\)",
            ),
            (
                lambda: Accuracy(top_k=4).update(np.zeros((2, 3)), np.zeros(2, int)),
                InvalidValueError,
                r"top_k of Accuracy is 4; expected at most 3, the classes that have scores",
            ),
            (
                lambda: Accuracy(top_k=2).update(np.zeros(2, int), np.zeros(2, int)),
                InvalidValueError,
                r"predictions have the labels' shape \(2,\), so they are classes; .* for top_k 2\. Pass what",
            ),
            (
                lambda: Accuracy().update(np.zeros((2, 3)), np.array([0, -100])),
                InvalidValueError,
                r"labels hold -100; expected 0 to 2\. Leave records without a class out with mask=",
            ),
            (
                lambda: Accuracy().update(np.zeros((2, 3)), np.array([0, 3])),
                InvalidValueError,
                r"labels hold 3; expected 0 to 2",
            ),
            (
                lambda: Accuracy().update(np.zeros((2, 3)), np.array([0.0, 1.0])),
                InvalidTypeError,
                r"labels are of float64; expected integers, one class per record",
            ),
            (
                lambda: Accuracy().update(np.array([0.2, 0.9]), np.array([0, 1])),
                InvalidTypeError,
                r"predictions are of float64; expected integers",
            ),
            (
                lambda: Accuracy().update(np.array([[0.2, math.nan]]), np.array([0])),
                InvalidValueError,
                r"predictions hold nan; expected scores that can be ordered\. Leave such records out",
            ),
            (
                lambda: ConfusionMatrix(3).update(np.array([[0.2, math.nan, 1]]), np.array([0])),
                InvalidValueError,
                r"predictions hold nan",
            ),
            (
                lambda: ConfusionMatrix(3).update(np.zeros((2, 4)), np.zeros(2, int)),
                InvalidValueError,
                r"predictions hold scores for 4 classes; expected num_classes, 3",
            ),
            (
                lambda: ConfusionMatrix(3).update(np.array([0, 3]), np.array([0, 0])),
                InvalidValueError,
                r"predictions hold 3; expected 0 to 2",
            ),
            (
                lambda: ConfusionMatrix(3).update(np.array([0, 0]), np.array([0, 5])),
                InvalidValueError,
                r"labels hold 5; expected 0 to 2",
            ),
            (
                lambda: ConfusionMatrix(3).f1("makro"),
                InvalidValueError,
                r"average is 'makro'; expected 'macro', 'micro', 'weighted' or None",
            ),
            (
                lambda: F1(3, "makro"),
                InvalidValueError,
                r"average of F1 is 'makro'; expected 'binary', 'macro', 'micro', 'weighted' or 'each'\.",
            ),
            (
                lambda: Recall(3, "binary"),
                InvalidValueError,
                r"average of Recall is 'binary' and num_classes 3; expected 2 classes, of which 1 is the positive",
            ),
            (lambda: Precision(1), InvalidValueError, r"num_classes of Precision is 1; expected an integer >= 2"),
            (
                lambda: F1(3).merge(F1(3, "each")),
                InvalidValueError,
                r"F1 to merge has \{'num_classes': 3, 'average': 'each'\}; expected .*'macro'\}\. Make both",
            ),
            (
                lambda: AUC().update(np.zeros((4, 2)), np.zeros(4, int)),
                InvalidValueError,
                r"scores have shape \(4, 2\) and labels \(4,\); .* pass those of class 1, probabilities\[\.\.\., 1\]",
            ),
            (
                lambda: AUC().update(np.zeros(2), np.array([0, 2])),
                InvalidValueError,
                r"labels hold 2; expected 0 to 1",
            ),
            (
                lambda: AUC().update(np.array([math.nan]), np.array([0])),
                InvalidValueError,
                r"predictions hold nan; expected scores that can be ordered",
            ),
            (
                lambda: AUC().update(np.zeros(2), np.array([0.0, 1.0])),
                InvalidTypeError,
                r"labels are of float64; expected integers",
            ),
            (
                lambda: ConfusionMatrix(3).merge(ConfusionMatrix(4)),
                InvalidValueError,
                r"ConfusionMatrix to merge has \{'num_classes': 4\}; expected .*3\}\. Make both",
            ),
        ],
    )
    def test_what_cannot_work_is_named_with_its_value(self, make, error, message):
        with pytest.raises(error, match=message):
            make()

    def test_an_update_that_fails_counts_nothing(self):
        metric = ConfusionMatrix(3)
        with pytest.raises(InvalidValueError):
            metric.update([0, 1, 7], [0, 1, 1])
        assert metric.matrix().sum() == 0


class TestRegistry:
    def test_every_metric_is_registered_under_its_name(self):
        assert METRIC_REGISTRY.names() == [
            *("AUC", "Accuracy", "ConfusionMatrix", "F1", "Mean", "Precision", "Recall", "Sum")
        ]
        assert_same(create_metric("Accuracy", top_k=3), Accuracy(3))
        assert_same(create_metric("ConfusionMatrix", 5), ConfusionMatrix(5))
        assert_same(create_metric("F1", 2, "binary"), F1(2, "binary"))
        assert isinstance(create_metric("Mean"), Mean)
        assert isinstance(create_metric("Sum"), Sum)

    def test_an_unknown_name_is_answered_with_near_ones(self):
        with pytest.raises(UnknownNameError, match=r"metric name is 'Acuracy'; .* Did you mean 'Accuracy'"):
            create_metric("Acuracy")
