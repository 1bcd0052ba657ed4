"""What a trainer and a model go through over several fits, tests and resumes, on the core alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import parhelion as ph
from parhelion.checkpoint import list_checkpoints, load_checkpoint
from parhelion.errors import CheckpointMismatchError
from parhelion.processes import World
from parhelion.training import Model, Trainer, TrainerOptions
from support.plain import Data, Descent, Streams, make_trainer, parts


class Parts(Model):
    """A model with state of every kind that the core knows by itself."""

    def __init__(self) -> None:
        super().__init__("parts")

    def setup(self, fast_init: bool = False) -> None:
        self.weights = np.zeros(3)
        self.generators = {"numpy": np.random.default_rng(1), "all": [random.Random(2), np.random.RandomState(3)]}
        self.best = None
        self.count = 0

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        self.count += 1
        noise = self.generators["numpy"].standard_normal(3) + self.generators["all"][0].random()
        self.weights -= (
            0.1 * (self.weights - batch["x"].mean(0)) + 0.01 * noise + self.generators["all"][1].random_sample()
        )
        return float(np.square(self.weights).sum()) / self.count

    def have_metrics_improved(self) -> bool:
        value = float(self.weights.sum())
        improved = self.best is None or value < self.best
        self.best = value if improved else self.best
        return improved

    def valid_step(self, batch: Any, step: int) -> Any:
        return None


def state_of(model: Parts) -> Any:
    draws = model.generators["numpy"].random(), *(each.random() for each in model.generators["all"])
    return model.weights.tolist(), model.best, model.count, draws


@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_arrays_numbers_and_generators_of_a_model_go_on(tmp_path, stop) -> None:
    whole = Parts()
    assert make_trainer(total_steps=2, valid_frequency=1).fit(whole, Data())
    walker = make_trainer(total_steps=2, valid_frequency=1, chkpt_root=tmp_path, chkpt_every_iterations=1)
    for state in walker.steps(Parts(), Data()):
        if state.global_iteration == stop:
            break
    part = Parts()
    assert make_trainer(total_steps=2, valid_frequency=1, chkpt_root=tmp_path).fit(part, Data())
    assert state_of(part) == state_of(whole)


def test_a_model_with_other_parts_is_refused_by_their_names(tmp_path) -> None:
    assert make_trainer(total_steps=1, chkpt_root=tmp_path).fit(Parts(), Data())

    class More(Parts):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.extra = random.Random(1)

    class Fewer(Parts):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.generators["all"].pop()

    class Else(Parts):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.generators["numpy"] = random.Random(1)

    for other, message in (
        (More, r"the saved model has the parts \['generators'\] and More has \['extra', 'generators'\]"),
        (Fewer, r"generators\['all'\] of the saved model has the entries \[0, 1\] and here \[0\]"),
        (Else, r"state of a generator does not fit Random"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            make_trainer(total_steps=2, chkpt_root=tmp_path).fit(other(), Data())


def test_a_test_takes_a_checkpoint_s_attributes_too(tmp_path) -> None:
    class Tuned(Descent):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.threshold = 0.0

        def on_training_end(self) -> None:
            self.threshold = 9.0  # too late for a checkpoint

        def on_training_epoch_end(self, current_epoch: int) -> None:
            self.threshold += 1.0

        def test_step(self, batch: Any, step: int) -> Any:
            return {"threshold": self.threshold}

    assert make_trainer(total_steps=2, chkpt_root=tmp_path).fit(Tuned(), Data())
    trainer = make_trainer(chkpt_root=tmp_path)
    assert trainer.test(Tuned(), Data())
    assert trainer.test_results == {"test_threshold": 2.0}


def test_checkpoints_later_than_the_one_resumed_from_are_put_where_no_later_run_finds_them(tmp_path) -> None:
    assert make_trainer(total_steps=2, chkpt_root=tmp_path, chkpt_every_iterations=1).fit(Descent(), Data())
    folder = tmp_path / "descent"
    walker = make_trainer(total_steps=2, chkpt_root=tmp_path)
    for _ in walker.steps(Descent(), Data(), resume=folder / "descent_epoch_1_iter_3"):
        break  # stopped before its first checkpoint
    assert [entry.iteration for entry in list_checkpoints(folder)] == [3, 2, 1]
    assert len(list((folder / "superseded").iterdir())) == 7
    again = Descent()
    assert make_trainer(total_steps=2, chkpt_root=tmp_path).fit(again, Data())
    assert len(again.journal) == 7


def test_a_resume_from_another_folder_sets_the_later_ones_of_this_one_aside(tmp_path) -> None:
    assert make_trainer(total_steps=1, chkpt_root=tmp_path / "one").fit(Descent(), Data())
    assert make_trainer(total_steps=3, chkpt_root=tmp_path / "two").fit(Descent(), Data())
    path = ph.find_last_checkpoint(tmp_path / "one" / "descent")
    for _ in make_trainer(total_steps=3, chkpt_root=tmp_path / "two").steps(Descent(), Data(), resume=path):
        break
    assert list_checkpoints(tmp_path / "two" / "descent") == []


@pytest.mark.parametrize("resume", ["auto", "never", "path"])
def test_a_refusal_renames_nothing(tmp_path, resume) -> None:
    assert make_trainer(total_steps=2, chkpt_root=tmp_path, chkpt_every_iterations=1).fit(Descent(), Data())
    folder = tmp_path / "descent"
    before = sorted(tmp_path.rglob("*"))
    chosen = folder / "descent_epoch_1_iter_3" if resume == "path" else resume
    with pytest.raises(ph.ParhelionError):
        make_trainer(total_steps=3, chkpt_root=tmp_path, random_seed=3).fit(
            Descent(), Data(valid=None) if resume == "never" else Data(), resume=chosen,
            allow_changes=("nothing",) if resume == "never" else (),
        )  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_is_not_taken_for_fitted_after_a_fit_that_failed() -> None:
    class Failing(Descent):
        fails = False

        def train_step(self, batch: Any, state: Any) -> Any:
            if self.fails:
                raise OSError("planted")
            return super().train_step(batch, state)

        def load_for_testing(self) -> None:
            self.weights = np.full(3, 7.0)

    model, trainer = Failing(), make_trainer(total_steps=1)
    assert trainer.fit(model, Data())
    model.fails = True
    assert not trainer.fit(model, Data())
    assert trainer.test(model, Data())
    assert model.weights.tolist() == [7.0] * 3


def test_the_best_checkpoint_is_that_of_the_model_that_was_fitted(tmp_path) -> None:
    class Watched(Descent):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.monitor = "valid_loss"

    trainer = make_trainer(total_steps=1, valid_frequency=1, chkpt_root=tmp_path)
    assert trainer.fit(Watched(), Data())
    best = trainer.best_checkpoint
    assert best == tmp_path / "descent" / "descent_epoch_1_iter_5"
    assert trainer.test(Descent("another"), Data())
    assert trainer.best_checkpoint == best
    saved = trainer.save_checkpoint()
    assert saved == best


def test_what_the_trainer_says_of_a_run_is_of_the_latest() -> None:
    class Failing(Descent):
        def train_step(self, batch: Any, state: Any) -> Any:
            raise OSError("planted")

    trainer = make_trainer(total_steps=1)
    assert not trainer.fit(Failing(), Data())
    assert (trainer.stop_reason, trainer.exit_code) == ("error", 1)
    list(trainer.steps(Descent(), Data()))
    assert (trainer.stop_reason, trainer.exit_code, trainer.error) == ("finished", 0, None)


def test_switches_hold_in_a_fit_a_test_and_a_prediction_and_not_afterwards() -> None:
    from contextlib import contextmanager

    on = []

    @contextmanager
    def switch():
        on.append(True)
        yield
        on.pop()

    class Looking(Descent):
        def train_step(self, batch: Any, state: Any) -> Any:
            assert on
            return super().train_step(batch, state)

        def valid_step(self, batch: Any, step: int) -> Any:
            assert on
            return super().valid_step(batch, step)

        test_step = valid_step

        def predict_step(self, batch: Any, step: int) -> Any:
            assert on

    trainer = Trainer(TrainerOptions(total_steps=1, valid_frequency=1, print_banner=False), parts(switches=switch))
    model = Looking()
    assert trainer.fit(model, Data()), trainer.error
    assert trainer.test(model, Data()), trainer.error
    trainer.predict(model, Data())
    assert not on


def test_every_rank_has_streams_of_its_own_and_the_first_writes_for_all(tmp_path) -> None:
    class Pair(World):
        def gather(self, value: Any) -> list[Any]:
            # All but the streams is the same in both.
            return [value, streams if isinstance(value, dict) and "random" in value else value]

        gather_to_first = gather

    def run(world: Any, root: Any) -> Any:
        options = TrainerOptions(total_steps=1, print_banner=False, chkpt_root=root)
        model = Descent()
        trainer = Trainer(options, parts(world=world))
        assert trainer.fit(model, Data(is_distributed=False)), trainer.error
        return model

    streams: Any = None
    second = run(Pair(rank=1, size=2), tmp_path / "second")
    assert ph.find_last_checkpoint(tmp_path / "second" / "descent") is None
    streams = Streams().capture()
    first = run(Pair(size=2), tmp_path / "both")
    assert not np.array_equal(first.weights, second.weights)
    tree = load_checkpoint(ph.find_last_checkpoint(tmp_path / "both" / "descent")).tree
    assert set(tree["randomness"]) == {"0", "1"}
    assert np.array_equal(tree["randomness"]["1"]["random"][1], streams["random"][1])
    # What the second rank finds in there is its own.
    again = Trainer(
        TrainerOptions(total_steps=1, print_banner=False, chkpt_root=tmp_path / "both"),
        parts(world=Pair(rank=1, size=2)),
    )
    assert again.fit(Descent(), Data(is_distributed=False)), again.error
    assert np.array_equal(Streams().capture()["random"][1], streams["random"][1])


def test_a_plugin_whose_method_is_not_called_for_want_of_its_flag_is_named(caplog) -> None:
    class Forgetful(ph.Plugin):
        def setup(self) -> None: ...

        def process_training_batch(self, batch: Any, state: Any) -> Any:
            raise AssertionError

        def should_training_stop(self) -> bool:
            raise AssertionError

    trainer = make_trainer(total_steps=1)
    trainer.register_plugin(Forgetful("forgetful"))
    with caplog.at_level("WARNING", "parhelion"):
        assert trainer.fit(Descent(), Data())
    for name, flag in (("process_training_batch", "training_batch"), ("should_training_stop", "should_training_stop")):
        assert f"plugin 'forgetful' has a {name} of its own that is not called; set {flag} in its" in caplog.text


def test_the_state_of_a_plugin_that_is_not_there_is_said_to_be_lost(tmp_path, caplog) -> None:
    class Keeping(ph.Plugin):
        def setup(self) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"kept": 3}

    trainer = make_trainer(total_steps=1, chkpt_root=tmp_path)
    trainer.register_plugin(Keeping("keeping"))
    assert trainer.fit(Descent(), Data())
    with caplog.at_level("WARNING", "parhelion"):
        assert make_trainer(total_steps=2, chkpt_root=tmp_path).fit(Descent(), Data())
    assert "state of plugins that are not registered now: keeping" in caplog.text


def test_a_stateful_container_knows_its_parts() -> None:
    from parhelion.training._stateful import entries, has_state, is_stateful

    assert entries({"a": 1}) == {"a": 1}
    assert entries([5, 6]) == {0: 5, 1: 6}
    assert entries("text") == entries(3) == {}
    assert not is_stateful(Parts)  # a class is none
    assert has_state([{"deep": (Parts(),)}], is_stateful)
    assert not has_state([1, "a", None, {"b": 2.0}], is_stateful)


def test_a_test_says_what_it_has_measured(capsys) -> None:
    trainer, model = make_trainer(total_steps=1), Descent()
    assert trainer.fit(model, Data()), trainer.error
    capsys.readouterr()
    assert trainer.test(model, Data()), trainer.error
    out = capsys.readouterr().out
    assert out == "  ".join(f"{name} {value:.4g}" for name, value in trainer.test_results.items()) + "\n"
    assert out.startswith("test_loss ")
