"""Fit and test on the core alone: order of events, decisions, errors."""

from __future__ import annotations

import logging
import math
import os
import signal
from typing import Any

import numpy as np
import pytest

import parhelion as ph
from parhelion.errors import NonFiniteLossError
from support.plain import Data, Descent, make_trainer


class Witness(Descent):
    """Writes down every call."""

    def __init__(self, told: list[Any]) -> None:
        super().__init__("witness")
        self.told = told

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.told.append(("setup", fast_init))

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.told.append(("train_step", state.global_iteration, state.global_epoch))
        return super().train_step(batch, state)

    def valid_step(self, batch: Any, step: int) -> Any:
        self.told.append(("valid_step", step))
        return super().valid_step(batch, step)

    test_step = valid_step

    def have_metrics_improved(self) -> bool:
        self.told.append("have_metrics_improved")
        return True

    def on_training_start(self) -> None:
        self.told.append("on_training_start")

    def on_training_end(self) -> None:
        self.told.append("on_training_end")

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.told.append(("on_training_epoch_start", current_epoch))

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.told.append(("on_training_epoch_end", current_epoch))

    def on_training_batch_start(self, state: ph.TrainingState) -> None:
        self.told.append(("on_training_batch_start", state.global_iteration))

    def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
        self.told.append(("on_training_batch_end", state.global_iteration, should_log))

    def on_validation_start(self, validation_cycle: int) -> None:
        self.told.append(("on_validation_start", validation_cycle))

    def on_validation_end(self, validation_cycle: int) -> None:
        self.told.append(("on_validation_end", validation_cycle))

    def on_validation_batch_start(self, step: int) -> None:
        self.told.append(("on_validation_batch_start", step))

    def on_validation_batch_end(self, step: int) -> None:
        self.told.append(("on_validation_batch_end", step))

    def on_testing_start(self) -> None:
        self.told.append("on_testing_start")

    def on_testing_end(self) -> None:
        self.told.append("on_testing_end")

    def on_testing_batch_start(self, step: int) -> None:
        self.told.append(("on_testing_batch_start", step))

    def on_testing_batch_end(self, step: int) -> None:
        self.told.append(("on_testing_batch_end", step))


class Echo(ph.Plugin):
    """Writes down its own calls, in front of the model's."""

    def __init__(self, told: list[Any]) -> None:
        super().__init__("echo")
        self.told = told
        self.unique_overrides = ph.UniquePluginOverrides(training_batch=True, validation_batch=True, testing_batch=True)

    def configure_trainer(self, trainer: Any) -> None:
        self.told.append("plugin configure_trainer")

    def configure_model(self, model: Any) -> None:
        self.told.append("plugin configure_model")

    def setup(self) -> None:
        self.told.append("plugin setup")

    def on_training_start(self) -> None:
        self.told.append("plugin on_training_start")

    def on_training_batch_start(self, state: Any) -> None:
        self.told.append(("plugin on_training_batch_start", state.global_iteration))

    def process_training_batch(self, batch: Any, state: Any) -> Any:
        self.told.append(("plugin process_training_batch", state.global_iteration))
        return batch

    def process_validation_batch(self, batch: Any, step: int) -> Any:
        self.told.append(("plugin process_validation_batch", step))
        return batch

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        self.told.append(("plugin process_testing_batch", step))
        return batch


def test_everything_happens_in_the_documented_order() -> None:
    told: list[Any] = []
    trainer = make_trainer(total_steps=1, valid_frequency=1, print_frequency=2)
    trainer.register_plugin(Echo(told))
    assert trainer.fit(Witness(told), Data(size=8, valid=3))

    def step(number: int, logs: bool) -> list[Any]:
        return [
            ("plugin process_training_batch", number),
            ("plugin on_training_batch_start", number),
            ("on_training_batch_start", number),
            ("train_step", number, 1),
            ("on_training_batch_end", number, logs),
        ]

    assert told == [
        "plugin configure_trainer",
        "plugin configure_model",
        "plugin setup",
        ("setup", False),
        "plugin on_training_start",
        "on_training_start",
        ("on_training_epoch_start", 1),
        *step(1, logs=False),
        *step(2, logs=True),
        ("on_training_epoch_end", 1),
        ("on_validation_start", 1),
        ("plugin process_validation_batch", 0),
        ("on_validation_batch_start", 0),
        ("valid_step", 0),
        ("on_validation_batch_end", 0),
        ("on_validation_end", 1),
        "have_metrics_improved",
        "on_training_end",
    ]


def test_a_test_tells_plugins_then_the_model() -> None:
    told: list[Any] = []
    trainer = make_trainer(total_steps=1)
    trainer.register_plugin(Echo(told))
    assert trainer.test(Witness(told), Data(valid=3))
    assert told[3:] == [
        ("setup", True),
        "on_testing_start",
        ("plugin process_testing_batch", 0),
        ("on_testing_batch_start", 0),
        ("valid_step", 0),
        ("on_testing_batch_end", 0),
        "on_testing_end",
    ]
    assert set(trainer.test_results) == {"test_loss", "test_draw"}


def test_the_data_module_is_prepared_set_up_and_torn_down_also_when_a_step_fails() -> None:
    class Broken(Descent):
        def train_step(self, batch, state):
            raise OSError("no")

    data = Data()
    assert make_trainer(total_steps=1).fit(Broken(), data) is False
    assert data.calls == ["prepare_data", "setup", "teardown"]


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_accumulated_gradients_are_those_of_one_large_batch(unit, steps) -> None:
    class Slope(Descent):
        """The gradient is the mean of the records, so groups of batches must give those of their union."""

        def __init__(self) -> None:
            super().__init__()
            self.updates: list[Any] = []

        def train_step(self, batch, state):
            self.gradient += state.loss_weight * batch["x"].mean(0)
            if state.is_update:
                self.updates.append(self.gradient.copy())
                self.gradient[:] = 0

    small, large = Slope(), Slope()
    trainer = make_trainer(train_unit=unit, total_steps=2 if unit == "epoch" else 100, accumulation_steps=steps)
    other = make_trainer(train_unit=unit, total_steps=2 if unit == "epoch" else 100)
    assert trainer.fit(small, Data(size=22, batch_size=2))
    assert other.fit(large, Data(size=22, batch_size=2 * steps))
    np.testing.assert_allclose(small.updates, large.updates, rtol=1e-5)
    assert trainer.state.current_iteration == other.state.current_iteration == len(small.updates)
    assert trainer.state.global_epoch == other.state.global_epoch


def test_groups_end_with_the_epoch_and_counters_count_both() -> None:
    trainer = make_trainer(total_steps=2, accumulation_steps=3)
    assert trainer.fit(Descent(), Data(size=20))  # 5 batches: groups of 3 and 2
    assert (trainer.state.global_iteration, trainer.state.current_iteration) == (10, 4)


def test_early_stopping_counts_validations_without_improvement() -> None:
    class Plateau(Descent):
        verdicts = iter([True, False, True, False, False, True])

        def have_metrics_improved(self) -> bool:
            return next(self.verdicts)

    trainer = make_trainer(total_steps=50, valid_frequency=1, early_stop_cycles=2)
    assert trainer.fit(Plateau(), Data()) is True
    assert trainer.stop_reason == "early_stop"
    assert trainer.state.validation_cycles == 5


def test_the_model_or_a_plugin_may_end_training_after_any_update() -> None:
    class Enough(Descent):
        def should_training_stop(self) -> bool:
            return len(self.journal) >= 3

    trainer = make_trainer(total_steps=50)
    assert trainer.fit(Enough(), Data()) is True
    assert (trainer.stop_reason, trainer.state.global_iteration) == ("early_stop", 3)

    class Guard(ph.Plugin):
        def setup(self) -> None:
            self.asked = 0

        def should_training_stop(self) -> bool:
            self.asked += 1
            return self.asked >= 2

    plugin = Guard("guard")
    plugin.unique_overrides = ph.UniquePluginOverrides(should_training_stop=True)
    trainer = make_trainer(total_steps=50)
    trainer.register_plugin(plugin)
    assert trainer.fit(Descent(), Data()) is True
    assert trainer.state.global_iteration <= 2


def test_an_endless_run_is_ended_by_the_model() -> None:
    class Enough(Descent):
        def should_training_stop(self) -> bool:
            return len(self.journal) >= 12

    trainer = make_trainer(total_steps=math.inf)
    assert trainer.fit(Enough(), Data())
    assert trainer.state.global_epoch == 3


def test_no_steps_trains_nothing_and_says_so(caplog) -> None:
    model = Descent()
    with caplog.at_level(logging.WARNING, "parhelion"):
        assert make_trainer(total_steps=0).fit(model, Data()) is True
    assert model.journal == []
    assert "total_steps is 0, so nothing is trained" in caplog.text


@pytest.mark.parametrize(
    ("number", "at_terminal", "reason", "code"),
    [
        (signal.SIGINT, True, "interrupted", 130),
        (signal.SIGINT, False, "preempted", 75),
        (signal.SIGTERM, True, "preempted", 75),
        (signal.SIGUSR1, False, "preempted", 75),
    ],
)
def test_a_signal_ends_the_run_after_its_update_with_a_checkpoint(
    tmp_path, monkeypatch, number, at_terminal, reason, code
) -> None:
    monkeypatch.setattr("parhelion.training._signals._is_at_terminal", lambda: at_terminal)

    class Struck(Descent):
        def train_step(self, batch, state):
            if state.global_iteration == 3:
                os.kill(os.getpid(), number)
            return super().train_step(batch, state)

    before = signal.getsignal(number)
    trainer = make_trainer(total_steps=5, chkpt_root=tmp_path)
    assert trainer.fit(Struck(), Data()) is False
    assert (trainer.stop_reason, trainer.exit_code) == (reason, code)
    assert signal.getsignal(number) is before
    last = ph.find_last_checkpoint(tmp_path / "descent")
    assert last is not None
    assert last.name == "descent_epoch_1_iter_3"
    calm, oracle = Descent(), Descent()
    assert make_trainer(total_steps=5, chkpt_root=tmp_path).fit(calm, Data())
    assert make_trainer(total_steps=5).fit(oracle, Data())
    np.testing.assert_array_equal(calm.weights, oracle.weights)


def test_an_exception_in_a_step_is_logged_kept_and_never_counts_its_batch(caplog, tmp_path) -> None:
    class Broken(Descent):
        def train_step(self, batch, state):
            if state.global_iteration == 4:
                raise ZeroDivisionError("a planted mistake")
            return super().train_step(batch, state)

    trainer = make_trainer(total_steps=2, chkpt_root=tmp_path, chkpt_every_iterations=2)
    with caplog.at_level(logging.ERROR, "parhelion"):
        assert trainer.fit(Broken(), Data()) is False
    assert isinstance(trainer.error, ZeroDivisionError)
    assert (trainer.stop_reason, trainer.exit_code) == ("error", 1)
    assert "a planted mistake" in caplog.text
    assert "train_step" in caplog.text  # the traceback
    assert trainer.state.global_iteration == 3


def test_a_listed_exception_leaves() -> None:
    class Broken(Descent):
        def train_step(self, batch, state):
            raise ZeroDivisionError("listed")

        def test_step(self, batch, step):
            raise KeyError("listed")

    trainer = make_trainer(total_steps=1)
    trainer.train_exceptions.append(ZeroDivisionError)
    trainer.test_exceptions.append(KeyError)
    with pytest.raises(ZeroDivisionError, match="listed"):
        trainer.fit(Broken(), Data())
    with pytest.raises(KeyError, match="listed"):
        trainer.test(Broken(), Data())
    assert trainer.stop_reason == "error"


@pytest.mark.parametrize("print_frequency", [1, 4, None])
def test_a_loss_that_is_nan_stops_the_run_and_no_checkpoint_follows(tmp_path, print_frequency, caplog) -> None:
    class Spoilt(Descent):
        def train_step(self, batch, state):
            super().train_step(batch, state)
            return math.nan if state.global_iteration >= 6 else 1.0

    trainer = make_trainer(
        total_steps=3, chkpt_root=tmp_path, chkpt_every_iterations=4, print_frequency=print_frequency
    )
    with caplog.at_level(logging.ERROR, "parhelion"):
        assert trainer.fit(Spoilt(), Data()) is False
    assert isinstance(trainer.error, NonFiniteLossError)
    assert "loss is nan at iteration 6" in caplog.text
    last = ph.find_last_checkpoint(tmp_path / "descent")
    assert last is not None
    assert last.name == "descent_epoch_1_iter_4"
    unguarded = make_trainer(total_steps=3, nan_guard=False)
    assert unguarded.fit(Spoilt(), Data()) is True


def test_a_validation_moves_no_random_stream() -> None:
    with_validation, without = Descent(), Descent()
    assert make_trainer(total_steps=3, valid_frequency=1).fit(with_validation, Data())
    assert make_trainer(total_steps=3).fit(without, Data())
    np.testing.assert_array_equal(with_validation.weights, without.weights)


def test_how_much_the_set_up_draws_changes_no_step() -> None:
    class Thirsty(Descent):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            np.random.standard_normal(17)

    one, other = Descent(), Thirsty()
    assert make_trainer(total_steps=1).fit(one, Data())
    assert make_trainer(total_steps=1).fit(other, Data())
    np.testing.assert_array_equal(one.weights, other.weights)


def test_seeds_decide_the_run() -> None:
    def weights(**options: Any) -> Any:
        model = Descent()
        assert make_trainer(total_steps=1, **options).fit(model, Data())
        return model.weights

    np.testing.assert_array_equal(weights(), weights(random_seed=6691))
    assert not np.array_equal(weights(), weights(random_seed=0))


def test_evaluation_values_are_means_over_records() -> None:
    class Sizes(Descent):
        def valid_step(self, batch, step):
            return float(len(batch["index"]))

        test_step = valid_step

    trainer = make_trainer(total_steps=1, valid_frequency=1)
    assert trainer.fit(Sizes(), Data(valid=7))  # batches of 4 and 3
    assert trainer.history[-1]["valid_loss"] == (4 * 4 + 3 * 3) / 7
    assert trainer.test(Sizes(), Data(valid=7))
    assert trainer.test_results == {"test_loss": (4 * 4 + 3 * 3) / 7}


def test_an_epoch_ends_in_its_row_and_logged_values_stand_beside_returned_ones() -> None:
    class Talkative(Descent):
        def train_step(self, batch, state):
            self.log("norm", 2.0)
            self.log("records", len(batch["index"]), "sum")
            return super().train_step(batch, state)

    trainer = make_trainer(total_steps=1, print_frequency=5)
    assert trainer.fit(Talkative(), Data(size=20))
    (row,) = trainer.history
    assert (row["step"], row["epoch"], row["norm"], row["records"]) == (5, 1, 2.0, 20.0)


def test_logging_outside_a_run_is_refused() -> None:
    with pytest.raises(ph.ParhelionError, match=r"'x' was logged outside a run"):
        Descent().log("x", 1.0)


def test_a_plan_that_needs_a_split_the_data_has_not_is_refused_at_the_start() -> None:
    class Nothing(ph.DataModule):
        def setup(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"the data module has no train set and fit needs one"):
        make_trainer(total_steps=1).fit(Descent(), Nothing())
    with pytest.raises(ValueError, match=r"the data module has no valid set and valid_frequency needs one"):
        make_trainer(total_steps=1, valid_frequency=1).fit(Descent(), Data(valid=None))
    with pytest.raises(ValueError, match=r"the data module has no test set and test needs one"):
        make_trainer(total_steps=1).test(Descent(), Data(valid=None))


@pytest.mark.parametrize(("model", "data", "message"), [(3, Data(), "model is 3"), (Descent(), [1], "datamodule is")])
def test_something_else_in_place_of_a_model_or_data_is_refused(model, data, message) -> None:
    with pytest.raises(TypeError, match=message):
        make_trainer(total_steps=1).fit(model, data)


def test_a_user_may_drive_the_loop() -> None:
    trainer, model = make_trainer(total_steps=2), Descent()
    states = []
    for state in trainer.steps(model, Data()):
        states.append(state)
        if state.global_iteration == 7:
            break
    assert [state.global_iteration for state in states] == list(range(1, 8))
    assert len(model.journal) == 7
    oracle = Descent()
    assert make_trainer(total_steps=2).fit(oracle, Data())
    assert model.journal == oracle.journal[:7]


def test_ready_batches_can_be_trained_on() -> None:
    batches = [{"index": np.array([k]), "x": np.full((1, 3), k, np.float32), "legacy": np.zeros(1)} for k in range(5)]

    class Ready(Data):
        def train_dataloader(self):
            return batches

    model = Descent()
    assert make_trainer(total_steps=2).fit(model, Ready())
    assert [ids for _, ids in model.journal] == [[k] for k in range(5)] * 2


def test_a_loader_that_ends_early_is_an_error(caplog) -> None:
    class Short(Data):
        def train_dataloader(self):
            loader, sampler = super().train_dataloader()

            class Half:
                def __iter__(self):
                    return iter(list(loader)[:2])

            return Half(), sampler

    trainer = make_trainer(total_steps=1)
    assert trainer.fit(Descent(), Short()) is False
    assert "the training loader ended at record 8 of 20 of epoch 1" in str(trainer.error)


def test_predictions_come_in_order() -> None:
    trainer = make_trainer(total_steps=1)
    assert trainer.predict(Descent(), Data(valid=7)) == [[0, 1, 2, 3], [4, 5, 6]]


def test_a_dry_run_takes_one_update_and_writes_nothing(tmp_path) -> None:
    trainer = make_trainer(
        total_steps=9, valid_frequency=3, chkpt_root=tmp_path / "c", log_path=tmp_path / "l", dry_run=True,
        enable_file_logging=True,
    )  # fmt: skip
    model = Descent()
    assert trainer.fit(model, Data())
    assert len(model.journal) == 1
    assert not list(tmp_path.rglob("*"))


def test_a_limit_shortens_every_epoch_and_evaluation() -> None:
    trainer, model = make_trainer(total_steps=2, valid_frequency=1, limit_batches=2), Descent()
    assert trainer.fit(model, Data())
    assert [epoch for epoch, _ in model.journal] == [1, 1, 2, 2]


def test_a_test_uses_the_weights_just_fitted_else_the_checkpoint_else_the_model_s_own(tmp_path) -> None:
    class Loaded(Descent):
        def load_for_testing(self) -> None:
            self.weights = np.full(3, 9.0)

    trainer, model = make_trainer(total_steps=1, chkpt_root=tmp_path), Descent()
    assert trainer.fit(model, Data())
    weights = model.weights.copy()
    assert trainer.test(model, Data())
    np.testing.assert_array_equal(model.weights, weights)
    fresh = Descent()
    assert make_trainer(total_steps=1, chkpt_root=tmp_path).test(fresh, Data())
    np.testing.assert_array_equal(fresh.weights, weights)
    own = Loaded()
    assert make_trainer(total_steps=1).test(own, Data())
    np.testing.assert_array_equal(own.weights, np.full(3, 9.0))


def test_properties_of_a_trainer_before_and_after_a_fit() -> None:
    trainer = make_trainer(total_steps=1)
    with pytest.raises(ph.ParhelionError, match="no model yet"):
        _ = trainer.model
    with pytest.raises(ph.ParhelionError, match="no datamodule yet"):
        _ = trainer.datamodule
    model, data = Descent(), Data()
    assert trainer.fit(model, data)
    assert (trainer.model, trainer.datamodule) == (model, data)
    assert (trainer.rank, trainer.local_rank, trainer.gpu_ids, trainer.queue) == (0, 0, [], None)
    assert model.trainer is trainer
    assert (model.rank, model.device, model.is_distributed) == (0, "cpu", False)


def test_modules_below_src_root_are_imported_for_their_registrations(tmp_path, monkeypatch) -> None:
    (tmp_path / "things_to_register.py").write_text(
        "import parhelion as ph\n@ph.DATASET_REGISTRY.register(name='from-src-root')\nclass Found: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_trainer(total_steps=1, src_root=tmp_path).fit(Descent(), Data())
    assert "from-src-root" in ph.DATASET_REGISTRY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_name": "a/b"}, r"run_name is 'a/b'; expected a name that can begin a folder's"),
        ({"random_seed": -1}, r"random_seed is -1; expected an integer from 0 to 2\*\*64 - 1"),
        ({"random_seed": 2**64}, r"random_seed is 18446744073709551616; expected an integer from 0"),
        ({"enable_tensorboard": True}, r"enable_tensorboard is True and run_path is None"),
        ({"enable_file_logging": True}, r"enable_file_logging is True and log_path is None"),
        ({"src_root": "/nowhere/at/all"}, r"src_root is '/nowhere/at/all'; expected an existing folder"),
        ({"limit_batches": 0}, r"limit_batches is 0; expected an integer >= 1"),
        ({"chkpt_keep_last": 0}, r"chkpt_keep_last is 0; expected an integer >= 1"),
        ({"print_frequency": 0}, r"print_frequency is 0; expected an integer >= 1"),
    ],
)
def test_an_invalid_argument_is_refused_at_construction(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


@pytest.mark.parametrize("name", ["chkpt_root", "log_path", "run_path", "src_root"])
def test_a_root_that_is_a_file_is_refused(name, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=rf"{name} is '.*file', a file; expected a folder"):
        make_trainer(**{name: file})


def test_a_name_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"run_name is 3; expected a string"):
        make_trainer(run_name=3)
    with pytest.raises(TypeError, match=r"random_seed is '1'; expected an integer"):
        make_trainer(random_seed="1")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_model_needs_a_name_that_can_be_a_folder(name) -> None:
    with pytest.raises(ValueError, match=r"save_name is .*; expected a name that can be a folder"):
        Descent(name)
