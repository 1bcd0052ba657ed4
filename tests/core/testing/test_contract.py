"""A third party derives from the contract suite: a sound backend passes it, a broken one is told how it is broken."""

from __future__ import annotations

import operator
import random
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import pytest

from parhelion.checkpoint import HostArray
from parhelion.data import create_loader
from parhelion.errors import ContractError, InvalidTypeError, ResumeError
from parhelion.processes import World
from parhelion.testing import (
    ArraysContract,
    LoaderContract,
    PlacementContract,
    RandomnessContract,
    ResumeContract,
    TrainerContract,
    WorldContract,
)
from support.plain import Streams
from support.plain_case import Net, PlainCase

# -- a backend of a third party ---------------------------------------


class Desk:
    """Batches stay where they are; a value is held as a float."""

    def place(self, batch: Any, *, shared: bool = False) -> Any:
        return batch

    def hold(self, value: Any) -> Any:
        if isinstance(value, (float, int, np.generic)) or (isinstance(value, np.ndarray) and value.size == 1):
            return float(value)
        raise InvalidTypeError(f"it is {value!r}")

    def to_host(self, values: Any) -> list[float]:
        return list(values)


@attrs.frozen(eq=False)
class Beads:
    """An array type of its own."""

    values: Any

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


class BeadArrays:
    """Its adapter."""

    def identity(self, leaf: Any) -> Any:
        return id(leaf) if isinstance(leaf, Beads) else None

    def encode(self, leaf: Any, path: str) -> HostArray:
        data = np.ascontiguousarray(leaf.values).reshape(-1).view(np.uint8)
        return HostArray(leaf.values.dtype.name, leaf.values.shape, data)

    def decode(self, array: HostArray) -> Beads:
        return Beads(array.data.view(array.dtype).reshape(array.shape))


class TestPlacement(PlacementContract):
    def make_placement(self):
        return Desk()

    def make_scalar(self, number):
        return np.float32(number)


class TestRandomness(RandomnessContract):
    def make_randomness(self):
        return Streams()


class TestWorld(WorldContract):
    def make_world(self):
        return World()


class Pliable(World):
    """One process, whose attributes a test can spoil."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class TestArrays(ArraysContract):
    def make_arrays(self):
        return BeadArrays()

    def make_array(self, values):
        return Beads(np.array(values))

    def special_arrays(self):
        return {"beads": Beads(np.arange(3))}


class TestLoader(LoaderContract):
    def make_loader(self, dataset, split, params):
        return create_loader(dataset, split, params)


class TestTrainer(TrainerContract):
    case = PlainCase()


class TestResume(ResumeContract):
    case = PlainCase()


# -- broken ones ---------------------------------------


def changed(contract: type, make: str, part: Any) -> Any:
    """Return the suite over another part."""
    return type("Changed", (contract,), {make: lambda self, *_: part})()


def without(batch: Any, name: str) -> Any:
    return {key: value for key, value in batch.items() if key != name}


def replaced(name: str, change: Any) -> Any:
    return lambda batch: {**batch, name: change(batch[name])} if name in batch else batch


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda batch: without(batch, "mask"), r"place lost batch\['mask'\]; expected every field of the host batch"),
        (lambda batch: {**batch, "new": 1}, r"place added batch\['new'\]; expected the fields of the host batch only"),
        (
            replaced("x", lambda x: x[::-1]),
            r"place changed \d+ of the 24 values of batch\['x'\]: the first, 0, should be .* and is",
        ),
        (
            replaced("x", lambda x: x.astype(np.float16).astype(np.float32)),
            r"place changed \d+ of the 24 values of batch\['x'\]",
        ),
        (
            replaced("label", lambda label: label.astype(np.float32)),
            r"batch\['label'\] should stay int64\[8\] when it is placed and became float32\[8\]",
        ),
        (replaced("pair", list), r"batch\['pair'\] should stay a tuple of 2 when it is placed and became \["),
        (
            replaced("pair", lambda pair: (pair[0], {"deep": pair[1]["deep"] + 1})),
            r"place changed 8 of the 8 values of batch\['pair'\]\[1\]\['deep'\]",
        ),
        (replaced("nothing", lambda _: 0), r"batch\['nothing'\] should stay None when it is placed and became 0"),
        (replaced("name", len), r"batch\['name'\] should stay \['record 0', .* when it is placed and became 8"),
    ],
)
def test_a_placement_that_spoils_a_batch_goes_red(spoil, message) -> None:
    desk = Desk()
    desk.place = lambda batch, shared=False: spoil(batch)
    suite = changed(TestPlacement, "make_placement", desk)
    with pytest.raises(ContractError, match=message):
        suite.test_place_keeps_every_field_and_every_value()


def test_a_placement_that_writes_into_the_host_batch_goes_red() -> None:
    desk = Desk()
    desk.place = lambda batch, shared=False: batch["x"].fill(0)
    with pytest.raises(ContractError, match=r"the host batch, after place,\['x'\] \(\(8, 3\)\) differs in 24 of 24"):
        changed(TestPlacement, "make_placement", desk).test_place_leaves_the_host_batch_as_it_was()


def test_a_placement_that_cuts_a_shared_batch_goes_red() -> None:
    desk = Desk()
    desk.place = lambda batch, shared=False: {**batch, "x": batch["x"][:4]}
    with pytest.raises(ContractError, match=r"shared batch of 5\['x'\] should stay float32\[5, 3\] when it is placed"):
        changed(TestPlacement, "make_placement", desk).test_a_shared_batch_may_have_any_number_of_records()


def test_a_placement_that_takes_records_apart_goes_red() -> None:
    desk = Desk()
    desk.place = lambda batch, shared=False: {"record": {"x": batch["record"].x}}
    with pytest.raises(ContractError, match=r"a record should stay a _Record when it is placed and became \{'x'"):
        changed(TestPlacement, "make_placement", desk).test_a_record_of_a_kind_of_its_own_keeps_its_kind()


@pytest.mark.parametrize(
    ("to_host", "message"),
    [
        (lambda values: sorted(values, reverse=True), r"value 0 should be 0\.0 and is 749\.5"),
        (lambda values: [*values[:7], values[8], values[7], *values[9:]], r"value 7 should be 3\.5 and is 4\.0"),
        (lambda values: values[1:], r"to_host of 1500 values should return as many, not 1499"),
        (lambda values: [np.float64(value) for value in values], r"to_host should return Python floats only"),
    ],
)
def test_a_placement_that_reorders_values_goes_red(to_host, message) -> None:
    desk = Desk()
    desk.to_host = to_host
    with pytest.raises(ContractError, match=message):
        changed(TestPlacement, "make_placement", desk).test_values_come_back_in_their_order()


def test_a_placement_that_hides_a_loss_that_is_not_finite_goes_red() -> None:
    desk = Desk()
    desk.to_host = lambda values: [float(np.nan_to_num(value)) for value in values]
    with pytest.raises(ContractError, match=r"\[inf, nan, -inf, nan\] should come back and \[1\.79.*e\+308, 0\.0"):
        changed(TestPlacement, "make_placement", desk).test_what_is_not_finite_comes_back_as_it_is()


@pytest.mark.parametrize(
    ("hold", "message"),
    [
        (lambda value: value, r"hold\('0\.5'\) should raise InvalidTypeError and returned '0\.5'"),
        (operator.index, r"hold\('0\.5'\) should raise InvalidTypeError and raised TypeError: 'str' object cannot be"),
    ],
)
def test_a_placement_that_holds_anything_goes_red(hold, message) -> None:
    desk = Desk()
    desk.hold = hold
    with pytest.raises(ContractError, match=message):
        changed(TestPlacement, "make_placement", desk).test_what_is_no_scalar_is_refused()


class ForgetsNumPy(Streams):
    def restore(self, state):
        version, words, gauss = state["random"]
        random.setstate((version, tuple(words.tolist()), gauss))


class LeaksAside(Streams):
    @contextmanager
    def aside(self):
        state = self.capture()
        yield
        self.restore(state)


class DrawsWhileCapturing(Streams):
    def capture(self):
        random.random()
        return super().capture()


class IgnoresTheHighHalf(Streams):
    def seed(self, seed):
        super().seed(seed % 2)


@pytest.mark.parametrize(
    ("streams", "test", "message"),
    [
        (
            ForgetsNumPy,
            "what_was_captured_is_restored",
            r"after restore, NumPy's generator should give 0\.\d+ and gives 0",
        ),
        (
            LeaksAside,
            "what_happens_aside_moves_nothing",
            r"after aside\(\), which failed, Python's generator should give",
        ),
        (
            DrawsWhileCapturing,
            "capturing_moves_nothing",
            r"after capture, Python's generator should give 0\.\d+ and gives",
        ),
        (
            IgnoresTheHighHalf,
            "a_seed_says_everything_that_is_drawn",
            r"other seeds should give other numbers; Python's generator has \[",
        ),
    ],
)
def test_randomness_that_loses_a_stream_goes_red(streams, test, message) -> None:
    with pytest.raises(ContractError, match=message):
        getattr(changed(TestRandomness, "make_randomness", streams()), f"test_{test}")()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rank": 1}, r"0 <= local_rank <= rank < size should hold and a world has \{'rank': 1, .* 'size': 1\}"),
        ({"size": "1"}, r"a world should have integers and has .*'size': '1'"),
    ],
)
def test_a_world_that_cannot_count_goes_red(numbers, message) -> None:
    world = Pliable()
    for name, number in numbers.items():
        setattr(world, name, number)
    with pytest.raises(ContractError, match=message):
        changed(TestWorld, "make_world", world).test_ranks_count_from_zero()


def test_a_world_that_gathers_nothing_goes_red() -> None:
    world = Pliable()
    world.gather = lambda value: []
    with pytest.raises(ContractError, match=r"gather should return 1 values, one per rank, and returned \[\]"):
        changed(TestWorld, "make_world", world).test_gather_returns_what_every_rank_gave()


@pytest.mark.parametrize("found", [[], [None], [1, 2]])
def test_a_world_that_gathers_something_else_to_the_first_goes_red(found) -> None:
    world = Pliable()
    world.gather_to_first = lambda value: found
    with pytest.raises(ContractError, match=r"gather_to_first should return (1 values in rank 0 and|\{'numbers')"):
        changed(TestWorld, "make_world", world).test_gather_to_first_gives_the_first_rank_what_gather_would()


class Deaf:
    """Hears everything twice, or at once."""

    def __init__(self, *heard):
        self.heard = list(heard)

    def ask(self, wish): ...

    def enter(self):
        return self.heard.pop(0) if self.heard else ()


@pytest.mark.parametrize(
    ("heard", "message"),
    [
        ([("stop",)], r"enter should return \(\) where nobody has wished for anything and returned \('stop',\)"),
        ([(), ("save", "stop", "save")], r"should be heard as save, stop and were as \['save', 'stop', 'save'\]"),
        ([(), ("save", "stop"), ("save",)], r"should be heard as save, stop and were as \['save', 'stop', 'save'\]"),
    ],
)
def test_a_meeting_that_mishears_goes_red(heard, message) -> None:
    world = Pliable()
    world.meeting = Deaf(*heard)
    with pytest.raises(ContractError, match=message):
        changed(TestWorld, "make_world", world).test_a_wish_is_heard_in_front_of_a_later_unit_and_once()


class Narrowing(BeadArrays):
    def decode(self, array):
        beads = super().decode(array)
        return Beads(beads.values.astype(np.int32)) if array.dtype == "int64" else beads


class Untying(BeadArrays):
    def identity(self, leaf):
        return object() if isinstance(leaf, Beads) else None


class Greedy(BeadArrays):
    def identity(self, leaf):
        return id(leaf)


class Transposing(BeadArrays):
    def encode(self, leaf, path):
        host = super().encode(leaf, path)
        return HostArray(host.dtype, host.shape, np.ascontiguousarray(leaf.values.T).reshape(-1).view(np.uint8))


@pytest.mark.parametrize(
    ("arrays", "test", "message"),
    [
        (
            Narrowing,
            "every_array_comes_back_from_disk_bit_for_bit",
            r"int64\[\] should be of int64 and shape \(\), and is of int32 and \(\)",
        ),
        (
            Transposing,
            "every_array_comes_back_from_disk_bit_for_bit",
            r"\w+\[2, 3\] \(\(2, 3\)\) differs in \d of 6 elements: the first, 1, should be",
        ),
        (
            Transposing,
            "the_bytes_are_what_numpy_would_write",
            r"\w+\[2, 3\] should be encoded in C order, little-endian",
        ),
        (
            Untying,
            "one_array_in_two_places_stays_one",
            r"one array in two places should come back as one, and came back",
        ),
        (
            Greedy,
            "what_is_no_array_of_the_framework_is_left_to_the_core",
            r"identity\(None\) should be None; it is no array of the framework",
        ),
    ],
)
def test_arrays_that_change_on_the_way_go_red(arrays, test, message, tmp_path) -> None:
    method = getattr(changed(TestArrays, "make_arrays", arrays()), f"test_{test}")
    with pytest.raises(ContractError, match=message):
        method(tmp_path) if "tmp_path" in method.__code__.co_varnames else method()


class OtherOrder(TestLoader):
    def make_loader(self, dataset, split, params):
        return create_loader(dataset, split, attrs.evolve(params, random_seed=params.random_seed + 1))


class Fewer(TestLoader):
    def make_loader(self, dataset, split, params):
        return create_loader(dataset, split, attrs.evolve(params, drop_last=True))


class Moving(TestLoader):
    def make_loader(self, dataset, split, params):
        return create_loader(dataset, split, attrs.evolve(params, options={"global_rng": "off"}))


@pytest.mark.parametrize(
    ("suite", "test", "message"),
    [
        (
            OtherOrder,
            "records_order_and_random_numbers_are_the_core_s",
            r"train split, shuffle True: epochs\[0\]\[0\]\['index'\] \(\(4,\)\) differs in \d of 4 elements",
        ),
        (
            Fewer,
            "an_epoch_delivers_every_record_once",
            r"epoch 0 should deliver every index below 11 once and delivered \[",
        ),
        (Moving, "loading_moves_no_stream", r"after an epoch Python and NumPy should draw \(0\.13\d+, .* and draw \("),
    ],
)
def test_a_loader_that_delivers_something_else_goes_red(suite, test, message) -> None:
    with pytest.raises(ContractError, match=message):
        getattr(suite(), f"test_{test}")()


def test_a_dataset_s_error_that_is_not_named_goes_red() -> None:
    class Bare(TestLoader):
        def make_loader(self, dataset, split, params):
            return Plainly(dataset), create_loader(dataset, split, params)[1]

    class Plainly:
        def __init__(self, dataset):
            self.dataset = dataset

        def __iter__(self):
            return (self.dataset[index] for index in range(11))

    with pytest.raises(
        ContractError, match=r"a dataset that fails should raise RecordError and raised SampleScopeError"
    ):
        Bare().test_a_record_that_fails_is_named()


# -- broken experiments: what a broken trainer or model comes to ---------------------------------------


def suite_over(contract: type, **changes: Any) -> Any:
    """Return a suite whose models are changed."""
    case = PlainCase()
    kind = type("Broken", (Net,), changes)
    case.make_model = kind
    return type("Changed", (contract,), {"case": case})()


def forgetful_step(self, batch, state):
    """Train with a number that no checkpoint holds."""
    self.hidden = getattr(self, "hidden", [1.0])
    self.hidden[0] *= 1.01
    return {"loss": Net.train_step(self, batch, state)["loss"] * self.hidden[0]}


def global_step(self, batch, state):
    """Train with what a global generator of nobody's draws."""
    self.weights = self.weights + OUTSIDE.standard_normal((6, 3))
    return Net.train_step(self, batch, state)


OUTSIDE = np.random.Generator(np.random.PCG64(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_step": forgetful_step},
            r"a run of 'update', stopped after iteration 1 and started again: the history\[\d\]\['loss'\] should be",
        ),
        (
            {"train_step": global_step},
            r"stopped after iteration 1 and started again: the history\[0\]\['loss'\] should be .* and is",
        ),
        (
            {"load_state_dict": lambda *_, **__: None, "put_attributes": lambda *_, **__: None},
            r"a run of 'update', stopped after iteration 1 and started again: the history",
        ),
    ],
)
def test_a_model_that_forgets_goes_red(changes, message, tmp_path) -> None:
    suite = suite_over(TestResume, **changes)
    with pytest.raises(ResumeError, match=message):
        suite.test_a_run_resumed_at_any_checkpoint_is_the_run_that_never_stopped(tmp_path)


def test_a_backend_that_trains_on_other_records_goes_red(tmp_path) -> None:
    starts = []

    def train_step(self, batch, state):
        outcome = Net.train_step(self, batch, state)
        if len(starts) > 1:
            self.seen[-1] = ([*reversed(self.seen[-1][0])], self.seen[-1][1])
        return outcome

    suite = suite_over(TestResume, train_step=train_step, on_training_start=lambda self: starts.append(1))
    message = r"stopped after iteration 1 and started again: iteration 2 should train on \[.*\] and trained on \["
    with pytest.raises(ResumeError, match=message):
        suite.test_a_run_resumed_at_any_checkpoint_is_the_run_that_never_stopped(tmp_path)


def test_a_metric_that_averages_means_goes_red() -> None:
    suite = suite_over(TestTrainer, finish_evaluation=lambda self: {"accuracy": np.mean([1 / 4, 1 / 4, 2 / 3])})
    with pytest.raises(ContractError, match=r"valid_accuracy should be a share of 11 records and is 4\.27\d* of them"):
        suite.test_an_evaluation_sees_every_record_once_and_counts_it_once()


def test_a_validation_that_trains_goes_red() -> None:
    def valid_step(self, batch, step):
        self.weights = self.weights * 0.99
        return Net.valid_step(self, batch, step)

    with pytest.raises(
        ContractError, match=r"with validations, trained weights\['weights'\] \(\(6, 3\)\) differs in 18"
    ):
        suite_over(TestTrainer, valid_step=valid_step).test_a_validation_moves_nothing_of_the_training()


def test_a_run_that_no_seed_says_goes_red() -> None:
    suite = suite_over(TestTrainer, train_step=global_step)
    with pytest.raises(ContractError, match=r"with the same seed again, history\[0\]\['loss'\] should be"):
        suite.test_a_run_is_a_function_of_its_seeds()


def test_a_model_whose_step_is_skipped_goes_red() -> None:
    suite = type("Changed", (TestTrainer,), {"case": PlainCase()})()
    trainers = suite.case.make_trainer
    suite.case.make_trainer = lambda **options: trainers(**{**options, "limit_batches": 2})
    with pytest.raises(
        ContractError, match=r"moments of an epoch of 'update': moments\[8\] should be 'on_training_batch"
    ):
        suite.test_every_moment_comes_once_and_in_its_order()


def test_a_suite_without_its_part_says_which_method_is_missing() -> None:
    with pytest.raises(TypeError, match=r"abstract class Incomplete .*make_world"):
        type("Incomplete", (WorldContract,), {})()
