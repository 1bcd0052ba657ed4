import pickle
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.data import ArrayDataset, Collate, CutMix, Loader, MixUp
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import Position, ResumableRandomSampler
from parhelion.testing import check_loader_resumes

CLASSES = 4


def images(size=6, dtype=np.float32, shape=(3, 8, 10)):
    return np.random.default_rng(0).random((size, *shape)).astype(dtype)


def batch_of(size=6, label=None, **options):
    label = np.arange(size) % CLASSES if label is None else label
    return {"image": images(size, **options), "label": label, "name": [*map(str, range(size))]}


class Zero:
    """A generator whose every draw is known."""

    def __init__(self, share, partners, centers=()):
        self.share, self.partners, self.centers = share, np.array(partners), iter(centers)

    def beta(self, a, b):
        assert a == b
        return self.share

    def permutation(self, size):
        assert size == len(self.partners)
        return self.partners

    def integers(self, size):
        return next(self.centers)


def test_mixup_adds_the_shares_of_two_records_and_of_their_labels():
    batch = batch_of(3)
    mixed = MixUp(0.2, num_classes=CLASSES)(batch, Zero(0.75, [2, 0, 1]))
    x = batch["image"]
    np.testing.assert_array_equal(mixed["image"], x * np.float32(0.75) + x[[2, 0, 1]] * np.float32(0.25))
    assert mixed["label"].tolist() == [[0.75, 0, 0.25, 0], [0.25, 0.75, 0, 0], [0, 0.25, 0.75, 0]]
    assert mixed["label"].dtype == np.float32
    assert mixed["name"] is batch["name"]


def test_cutmix_puts_a_rectangle_of_another_image_in_and_counts_its_area():
    batch = batch_of(2)
    # Half of each side: 4 of 8 rows around row 3, 4 of 10 columns around column 9, cut off at the border.
    mixed = CutMix(num_classes=CLASSES)(batch, Zero(0.75, [1, 0], [3, 9]))
    x = batch["image"]
    expected = x.copy()
    expected[:, :, 1:5, 7:10] = x[[1, 0], :, 1:5, 7:10]
    np.testing.assert_array_equal(mixed["image"], expected)
    area = np.float32(1 - 4 * 3 / 80)
    np.testing.assert_array_equal(mixed["label"][:, :2], [[area, 1 - area], [1 - area, area]])


def test_cutmix_finds_height_and_width_where_it_is_told():
    batch = batch_of(2, shape=(8, 10, 3), dtype=np.uint8)
    batch["image"][0] = 9
    mixed = CutMix(num_classes=CLASSES, axes=(1, 2))(batch, Zero(0.75, [1, 0], [4, 5]))
    assert mixed["image"].dtype == np.uint8
    assert (mixed["image"][1, 2:6, 3:7] == 9).all()
    assert (mixed["image"][1] == 9).sum() == 4 * 4 * 3


@given(
    mix=st.sampled_from([MixUp, CutMix]),
    size=st.integers(1, 8),
    alpha=st.floats(0.05, 5),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_labels_stay_shares_and_what_was_given_stays_as_it_was(mix, size, alpha, seed, dtype):
    batch = batch_of(size, dtype=dtype)
    before = pickle.dumps(batch)
    mixed = mix(alpha, num_classes=CLASSES)(batch, np.random.default_rng(seed))
    assert pickle.dumps(batch) == before
    assert mixed["image"].dtype == dtype
    assert mixed["image"].shape == batch["image"].shape
    assert (mixed["label"] >= 0).all()
    np.testing.assert_allclose(mixed["label"].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed["label"].sum(0), np.bincount(batch["label"], minlength=CLASSES), atol=1e-5)


class Pair(NamedTuple):
    image: Any
    label: Any


@attrs.frozen
class Sample:
    image: Any
    label: Any
    other: int = 3


@pytest.mark.parametrize(
    ("batch", "fields"),
    [
        ((images(2), np.array([0, 1])), {"inputs": 0, "labels": 1}),
        (Pair(images(2), np.array([0, 1])), {}),
        (Pair(images(2), np.array([0, 1])), {"inputs": 0, "labels": 1}),
        (Sample(images(2), np.array([0, 1])), {}),
        ({"x": images(2), "y": np.array([0, 1], np.uint8)}, {"inputs": "x", "labels": "y"}),
    ],
)
def test_fields_are_found_in_batches_of_all_kinds(batch, fields):
    mixed = MixUp(num_classes=2, **fields)(batch, Zero(0.25, [1, 0]))
    assert type(mixed) is type(batch)
    get = mixed.__getitem__ if isinstance(mixed, (dict, tuple)) else lambda name: getattr(mixed, name)
    inputs, labels = (fields.get("inputs", "image"), fields.get("labels", "label"))
    if isinstance(mixed, Pair):
        inputs, labels = 0, 1
    np.testing.assert_array_equal(get(labels), [[0.25, 0.75], [0.75, 0.25]])
    np.testing.assert_array_equal(get(inputs)[0], images(2)[0] * np.float32(0.25) + images(2)[1] * np.float32(0.75))


def test_labels_that_are_shares_already_can_be_mixed_again():
    batch = batch_of(2)
    once = MixUp(num_classes=CLASSES)(batch, Zero(0.5, [1, 0]))
    twice = CutMix()(once, Zero(0.75, [1, 0], [4, 5]))
    assert twice["label"].tolist() == [[0.5, 0.5, 0, 0]] * 2


@pytest.mark.parametrize(
    ("mix", "batch", "error", "message"),
    [
        (MixUp(), {"x": 1}, InvalidTypeError, "no field 'image', only 'x'; expected the fields that MixUp mixes"),
        (MixUp(), (1, 2), InvalidTypeError, r"no field 'image', only those of tuple of length 2.*inputs=0, labels=1"),
        (MixUp(inputs=2), (1, 2), InvalidTypeError, "the batch has no field 2"),
        (MixUp(), {"image": [1]}, InvalidTypeError, "field 'image' of the batch is a list; expected an array of NumPy"),
        (MixUp(), batch_of(2), InvalidValueError, "num_classes is None and the labels are whole numbers"),
        (MixUp(num_classes=2), batch_of(3), InvalidValueError, "a label is 2; expected one from 0 to num_classes - 1"),
        (MixUp(num_classes=9), batch_of(2, dtype=np.uint8), InvalidTypeError, "dtype uint8; .* or use CutMix"),
        (MixUp(num_classes=9), batch_of(2, label=np.zeros(2)), InvalidTypeError, r"dtype float64 and shape \(2,\)"),
        (MixUp(num_classes=9), batch_of(2, label=np.arange(3)), InvalidTypeError, "has 3 rows and 'image' 2"),
        (CutMix(num_classes=9), batch_of(2, shape=(5,)), InvalidTypeError, r"\(2, 5\), which has no axes \(2, 3\)"),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_refused(mix, batch, error, message):
    with pytest.raises(error, match=message):
        mix(batch, np.random.default_rng(0))


def test_numbers_that_cannot_work_are_refused():
    for alpha in (0, -1, float("inf"), float("nan")):
        with pytest.raises(InvalidValueError, match=rf"alpha is {alpha}; expected a number above 0"):
            MixUp(alpha)
    with pytest.raises(InvalidValueError, match="num_classes is 0; expected an integer >= 1"):
        CutMix(num_classes=0)


def test_a_share_is_drawn_from_the_beta_distribution():
    rng = np.random.default_rng(1)
    batch = {"image": np.array([[0.0], [1.0]]), "label": np.array([0, 1])}
    mixed = [MixUp(0.4, num_classes=2)(batch, rng)["label"][0, 0] for _ in range(2000)]
    away = np.array([share for share in mixed if share != 1])  # where it was mixed with itself nothing is seen
    # Beta(0.4, 0.4) has the mean 1/2 and the variance 1/(4 (2 * 0.4 + 1)).
    assert abs(away.mean() - 0.5) < 0.05
    assert abs(away.var() - 1 / (4 * 1.8)) < 0.02


def make(dataset, **options):
    def make_loader():
        sampler = ResumableRandomSampler(dataset, seed=3, batch_size=4)
        mixing = Collate(then=[MixUp(num_classes=CLASSES), CutMix()])
        return Loader(dataset, sampler, seed=1, collate_fn=mixing, **options), sampler

    return make_loader


class Records:
    def __len__(self):
        return 23

    def __getitem__(self, index):
        return {"image": np.full((1, 4, 4), index, np.float32), "label": index % CLASSES}


@pytest.mark.processes
def test_mixed_batches_resume_and_are_the_same_with_workers_and_from_arrays():
    check_loader_resumes(make(Records()), max_examples=5)

    def batches(loader, sampler):
        sampler.seek(Position(1, 4))
        return [(batch["image"].tobytes(), batch["label"].tobytes()) for batch in loader]

    whole = {"image": np.stack([Records()[k]["image"] for k in range(23)]), "label": np.arange(23) % CLASSES}
    expected = batches(*make(Records())())
    assert batches(*make(ArrayDataset(whole))()) == expected
    with make(Records(), num_workers=2)()[0] as loader:
        assert batches(loader, loader.sampler) == expected
