"""Evaluation on many ranks, each a thread: the same as on one, and nobody waits for a rank without records."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parhelion as ph
from parhelion.data import stream_batches
from parhelion.errors import DataError, InvalidTypeError, InvalidValueError, WorldError
from parhelion.sampling import Tail
from parhelion.training import Trainer, TrainerOptions
from support.judged import Cases, CasesData, Judge, expected, judge_on
from support.threads import Threads, in_all, rank_parts


@pytest.fixture(autouse=True)
def ranks_that_notice_soon(monkeypatch) -> None:
    """How long an error waits to see whether all have it."""
    for name in ("_LATER", "_SOON"):
        monkeypatch.setattr(f"parhelion.training._together.{name}", 0.1)


def assert_close(row: dict[str, float], size: int) -> None:
    wanted = {f"test_{name}": value for name, value in expected(size).items()}
    assert row.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(row[name], value, rtol=1e-12, atol=0, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_eleven_records_give_the_same_on_any_number_of_ranks(ranks, batch_size) -> None:
    results = judge_on(ranks, 11, batch_size)
    (alone, one), *_ = judge_on(1, 11, 11)
    cases = Cases(11)
    for row, model in results:
        assert row == results[0][0]
        assert_close(row, 11)
        for name in ("count", "accuracy", "matrix_accuracy", "matrix_f1", "f1_0", "f1_1", "f1_2", "auc", "mean", "sum"):
            assert row[f"test_{name}"] == alone[f"test_{name}"], name  # to the bit
        assert (model.metrics["matrix"].matrix() == one.metrics["matrix"].matrix()).all()
        assert model.metrics["matrix"].matrix().sum(axis=1).tolist() == np.bincount(cases.label).tolist()


@given(size=st.integers(1, 40), ranks=st.integers(1, 8), batch_size=st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_any_number_of_records_ranks_and_batches_gives_what_all_records_at_once_do(size, ranks, batch_size) -> None:
    results = judge_on(ranks, size, batch_size)
    for row, _ in results:
        np.testing.assert_equal(row, results[0][0])
    assert_close(results[0][0], size)
    indices = [index for _, model in results for batch in model.journal for index in batch]
    assert sorted(indices) == list(range(size))


@pytest.mark.parametrize(("size", "ranks", "batch_size"), [(11, 8, 1), (11, 4, 2), (1, 4, 3), (9, 4, 2), (5, 4, 4)])
def test_every_rank_makes_the_same_number_of_steps_and_idles_where_it_has_no_record(size, ranks, batch_size) -> None:
    models = [model for _, model in judge_on(ranks, size, batch_size)]
    passes = -(-size // (ranks * batch_size))
    for model in models:
        told = Counter(what for what, _ in model.moments)
        assert told["start"] == told["end"] == passes
        assert told["idle"] == passes - len(model.journal)
        assert all(model.journal)
        assert [step for what, step in model.moments if what == "start"] == list(range(passes))
    idle = [("idle", passes - 1) in model.moments for model in models]
    assert any(idle)
    assert idle == sorted(idle)  # the last ranks


def test_what_is_logged_around_a_step_without_records_counts_nothing() -> None:
    class Chatty(Judge):
        def on_testing_batch_start(self, step: int) -> None:
            self.log("seen", 1.0 + self.rank)
            self.log("steps", 1, "sum")

    row, *_ = run_test(Chatty, CasesData(5, 2), ranks=4)  # 2, 2, 1 and 0 records
    assert row["test_steps"] == 3
    assert row["test_seen"] == pytest.approx((2 * 1 + 2 * 2 + 1 * 3) / 5)


def run_test(make_model: Any, data: Any, ranks: int, **changes: Any) -> list[Any]:
    """Return by rank the row, or the error that ended the test."""

    def one(world: Threads) -> Any:
        made = data(world) if callable(data) else data.__class__(**vars(data))
        trainer = Trainer(TrainerOptions(print_banner=False), rank_parts(world, **changes))
        if trainer.test(make_model(), made):
            return trainer.test_results
        raise trainer.error or AssertionError

    return in_all(one, ranks)


# -- splits of other kinds --------------------------------------------------------------------------------------------


def batch_of(start: int, stop: int) -> dict[str, Any]:
    rows = [Cases(11)[index] for index in range(start, stop)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


class Own(ph.DataModule):
    """Each rank brings batches of its own: rank ``r`` has those of ``shares[r]``."""

    def __init__(self, world: Threads, shares: list[list[tuple[int, int]]], open_batches: Any) -> None:
        self.batches = [batch_of(*share) for share in shares[world.rank]]
        self.open_batches = open_batches

    def setup(self) -> None:
        self._test_dataset = self._create_dataset(Cases(1), {})

    def test_dataloader(self) -> Any:
        return self.open_batches(self.batches)


SHARES = [[(0, 3)], [(3, 4), (4, 8), (8, 9)], [(9, 11)]]


@pytest.mark.parametrize("open_batches", [list, stream_batches], ids=["list", "stream"])
def test_ranks_with_more_or_fewer_batches_of_their_own_all_count(open_batches) -> None:
    models: list[Judge] = []

    def make() -> Judge:
        models.append(Judge())
        return models[-1]

    rows = run_test(make, lambda world: Own(world, SHARES, open_batches), ranks=3)
    assert rows[0] == rows[1] == rows[2]
    wanted = expected(11)
    for name in ("count", "total", "accuracy", "f1_0", "f1_1", "f1_2", "auc", "mean", "sum"):
        np.testing.assert_allclose(rows[0][f"test_{name}"], wanted[name], rtol=1e-12, err_msg=name)
    assert sorted(len(model.journal) for model in models) == [1, 1, 3]
    assert {sum(what == "start" for what, _ in model.moments) for model in models} == {3}


class Shared(CasesData):
    """Ready batches of one record, which ranks share by the sampler."""

    def __init__(self, world: Threads, tail: Tail) -> None:
        super().__init__(11, 1)
        self.world, self.tail = world, tail

    def test_dataloader(self) -> Any:
        batches = [batch_of(index, index + 1) for index in range(11)]
        sampler = ph.sampling.ResumableDistributedSampler(batches, num_replicas=self.world.size, rank=self.world.rank)
        sampler.reshard(attrs.evolve(sampler.shard, tail=self.tail))
        return batches, sampler


def test_ready_batches_can_be_shared_by_a_sampler() -> None:
    for row in run_test(Judge, lambda world: Shared(world, Tail.MASK), ranks=4):
        assert row["test_count"] == 11
        assert row["test_auc"] == expected(11)["auc"]


def test_a_sampler_that_pads_is_refused_in_an_evaluation_that_ranks_share() -> None:
    for error in run_test(Judge, lambda world: Shared(world, Tail.PAD), ranks=4):
        assert isinstance(error, InvalidValueError)
        assert str(error).startswith(
            "the evaluation split has 11 records, 4 ranks share it in batches of 1, and its sampler has Tail.PAD; "
            "expected Tail.MASK, so that each record counts once."
        )


def test_ranks_that_share_a_split_and_have_other_records_hear_both_numbers() -> None:
    for error in run_test(Judge, lambda world: CasesData(11 + world.rank, 2), ranks=2):
        assert isinstance(error, InvalidValueError)
        assert str(error).startswith(
            "the number of its records is 12 in process 1 and 11 in process 0; expected the same in every process"
        )


def test_a_loader_that_ends_early_in_one_rank_ends_the_test_in_all() -> None:
    class Short(CasesData):
        def test_dataloader(self) -> Any:
            loader, sampler = super().test_dataloader()
            return (iter([*loader][:1]), sampler) if self.trainer.rank == 1 else (loader, sampler)

    first, second = run_test(Judge, Short(11, 2), ranks=2)
    assert isinstance(second, DataError)
    assert str(second).startswith("the evaluation loader ended after 1 of 3 batches")
    assert isinstance(first, WorldError)


def test_ranks_that_compute_as_one_merge_nothing() -> None:
    models: dict[int, Judge] = {}

    class Kept(Judge):
        def on_testing_end(self) -> None:
            models[self.rank] = self

    rows = run_test(Kept, CasesData(11, 2), ranks=2, computes_as_one=True)
    assert [models[rank].journal for rank in (0, 1)] == [
        [[0, 1], [4, 5], [8, 9, 10]],
        [[2, 3], [6, 7], [8, 9, 10]],
    ]
    losses = Cases(11).loss
    for rank, row in enumerate(rows):
        assert row["test_count"] == 7
        means = [losses[batch].mean() for batch in models[rank].journal]
        np.testing.assert_allclose(row["test_loss"], np.average(means, weights=[4, 4, 3]), rtol=1e-12)
        assert not any(what == "idle" for what, _ in models[rank].moments)


def test_a_split_that_ranks_do_not_share_is_said_to_count_once_for_each(caplog) -> None:
    class Whole(CasesData):
        def setup(self) -> None:
            super().setup()
            self._test_dataset = self._create_dataset(Cases(11), {"batch_size": 4, "is_distributed": False})

    rows = run_test(Judge, Whole(11, 4), ranks=2)
    assert [row["test_count"] for row in rows] == [22, 22]
    assert rows[0]["test_accuracy"] == expected(11)["accuracy"]
    (text,) = (text for text in caplog.messages if "not shared" in text)
    assert text.startswith("the evaluation split is not shared by the 2 ranks, so each evaluates all of it, and sums")


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_a_metric_that_cannot_be_merged_is_refused_at_the_start_of_an_evaluation_on_several_ranks() -> None:
    class Lonely:
        def update(self, *args: Any) -> None: ...
        def compute(self) -> float:
            return 0.0

        def reset(self) -> None: ...

    class Model(Judge):
        def setup(self, fast_init: bool = False) -> None:
            self.metrics = {"mine": Lonely()}

        def examine(self, batch: Any) -> Any:
            return 0.0, {"mine": ()} if self.rank_count == 1 else pytest.fail("a batch was examined")

        rank_count = 2

    for error in run_test(Model, CasesData(11, 2), ranks=2):
        assert isinstance(error, InvalidTypeError)
        assert str(error).startswith(
            "metric 'mine' is a Lonely without merge, state_dict, load_state_dict, and 2 ranks each count their own "
            "records; expected the methods of parhelion.metrics.Metric"
        )
    Model.rank_count = 1
    assert run_test(Model, CasesData(11, 2), ranks=1)[0]["test_mine"] == 0.0


class Synced:
    """Counts, and would ask the other ranks itself."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, labels: Any) -> None:
        self.count += len(labels)

    def compute(self) -> int:
        return self.count

    def reset(self) -> None:
        self.count = 0

    def sync(self) -> None: ...
    def unsync(self) -> None: ...


class Collection:
    """Some of these by name."""

    def __init__(self) -> None:
        self.one = Synced()
        self.update, self.reset = self.one.update, self.one.reset

    def values(self) -> list[Synced]:
        return [self.one]

    def compute(self) -> dict[str, int]:
        return {"one": self.one.compute()}


def test_a_metric_that_asks_all_ranks_itself_is_left_to_do_so() -> None:
    class Model(Judge):
        def setup(self, fast_init: bool = False) -> None:
            self.metrics = {"own": Synced(), "many": Collection()}

        def examine(self, batch: Any) -> Any:
            return 0.0, dict.fromkeys(("own", "many"), (batch["label"],))

    row, _ = run_test(Model, CasesData(11, 4), ranks=2)
    assert row["test_own"] == row["test_many_one"] == 6  # of the first rank, which is everybody's with a real one


class Keeper(Synced):
    """Keeps the labels that it was given, as torchmetrics' exact metrics do."""

    def __init__(self) -> None:
        super().__init__()
        self.metric_state: dict[str, Any] = {"target": [], "count": np.zeros(1)}

    def update(self, labels: Any) -> None:
        super().update(labels)
        self.metric_state["target"].append(labels)


def test_a_rank_without_records_is_named_where_a_metric_that_keeps_them_would_end_all_processes() -> None:
    class Model(Judge):
        def setup(self, fast_init: bool = False) -> None:
            self.metrics = {"kept": Keeper()}

        def examine(self, batch: Any) -> Any:
            return 0.0, {"kept": (batch["label"],)}

    for error in run_test(Model, CasesData(3, 1), ranks=4):
        assert isinstance(error, InvalidValueError)
        assert str(error).startswith(
            "metric 'kept' is a Keeper, which keeps what it is given, and process 3 was given nothing: the split has "
            "too few records for 4 ranks."
        )
    assert [row["test_kept"] for row in run_test(Model, CasesData(4, 1), ranks=4)] == [1] * 4


class Order:
    """A user's metric: the order of what was counted."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def update(self, labels: Any) -> None:
        self.seen += labels.tolist()

    def compute(self) -> float:
        return float(int("".join(map(str, self.seen))))

    def merge(self, other: Any) -> None:
        self.seen += other.seen

    def reset(self) -> None:
        self.seen = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: Any) -> None:
        self.seen = list(state["seen"])


def test_users_metrics_with_the_protocols_methods_are_merged_in_rank_order() -> None:
    class Model(Judge):
        def setup(self, fast_init: bool = False) -> None:
            self.metrics = {"order": Order()}

        def examine(self, batch: Any) -> Any:
            return 0.0, {"order": (batch["index"],)}

    rows = run_test(Model, CasesData(7, 2), ranks=2)  # 0 1 4 5 and 2 3 6
    assert [row["test_order"] for row in rows] == [145236.0, 145236.0]


def test_an_explicit_model_asks_for_the_metric_of_all_ranks() -> None:
    class Model(Judge):
        def finish_evaluation(self) -> dict[str, Any]:
            return {}

        def on_testing_end(self) -> None:
            mine, whole = self.metrics["matrix"], self.merged(self.metrics["matrix"])
            self.log("mine", mine.matrix().sum(), "sum")
            self.log("whole", whole.matrix().sum(), "last")

    for row in run_test(Model, CasesData(11, 3), ranks=4):
        assert row["test_mine"] == row["test_whole"] == 11
    (alone,) = run_test(Model, CasesData(11, 3), ranks=1)
    assert alone["test_whole"] == 11
    with pytest.raises(ph.errors.ParhelionError, match="a metric was merged outside a run"):
        Judge().merged(ph.metrics.Sum())


# -- validation -------------------------------------------------------------------------------------------------------


def fit(world: Threads, model: Judge, **options: Any) -> Trainer:
    options = {"print_banner": False, "train_unit": "iteration", "total_steps": 4, "print_frequency": 2, **options}
    trainer = Trainer(TrainerOptions(**options), rank_parts(world))
    if not trainer.fit(model, CasesData(11, 2)):
        raise trainer.error or AssertionError
    return trainer


def test_the_verdict_on_a_validation_is_that_of_the_first_rank_everywhere() -> None:
    class Torn(Judge):
        def have_metrics_improved(self) -> bool:
            return self.rank != 0

    def one(world: Threads) -> Any:
        trainer = fit(world, Torn(), total_steps=4, valid_frequency=1, early_stop_cycles=2)
        return trainer.stop_reason, trainer.state.early_stop_count, trainer.state.current_iteration

    assert set(in_all(one, 3)) == {("early_stop", 2, 2)}


def test_the_monitored_value_is_that_of_all_ranks() -> None:
    def one(world: Threads) -> Any:
        model = Judge(monitor="valid_loss")
        rows = fit(world, model, valid_frequency=2).history
        return model.validated, [row["valid_loss"] for row in rows if "valid_loss" in row] if world.rank == 0 else None

    (validated, told), *others = in_all(one, 3)
    assert told == [validated["valid_loss"]] * 2
    np.testing.assert_allclose(validated["valid_loss"], expected(11)["loss"], rtol=1e-12)
    assert all(values == validated for values, _ in others)


# -- rows of training -------------------------------------------------------------------------------------------------


class Talker(Judge):
    """Logs what differs between ranks."""

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.log("records", 1, "sum")
        self.log("who", self.rank, "last")
        if self.rank == 2:
            self.log("rare", state.current_iteration)
        return 10.0 * self.rank + state.current_iteration


def test_losses_over_ranks_are_averaged_not_summed() -> None:
    rows = in_all(lambda world: fit(world, Talker()).history, 3)
    first = [{name: row[name] for name in ("loss", "records", "who", "rare")} for row in rows[0]]
    assert first == [
        {"loss": 11.5, "records": 6.0, "who": 0.0, "rare": 1.5},
        {"loss": 13.5, "records": 6.0, "who": 0.0, "rare": 3.5},
    ]


def test_ranks_that_log_a_value_in_different_ways_hear_of_it() -> None:
    class Torn(Judge):
        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            self.log("x", 1.0, "sum" if self.rank else "mean")

    errors = in_all(lambda world: fit(world, Torn()), 2)
    for error in errors:
        assert isinstance(error, InvalidValueError)
        assert str(error).startswith("reduce of 'x' is 'sum' in one process and 'mean' in another; expected the same")


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_row_that_was_begun_before_a_stop_is_finished_after_it_on_any_number_of_ranks(tmp_path, after) -> None:
    options = {"print_frequency": 4, "chkpt_root": tmp_path}
    errors = in_all(lambda world: fit(world, Talker(), total_steps=2, **options), 3)
    assert all(isinstance(each, Trainer) for each in errors), errors
    rows = in_all(lambda world: fit(world, Talker(), total_steps=4, **options).history, after)[0]
    assert [row["records"] for row in rows] == [3 * 2 + after * 2]
    losses = [10 * rank + step for rank in range(3) for step in (1, 2)]
    losses += [10 * rank + step for rank in range(after) for step in (3, 4)]
    assert rows[0]["loss"] == math.fsum(losses) / len(losses)
    assert rows[0]["rare"] == (2.5 if after > 2 else 1.5)
    assert rows[0]["who"] == 0
