"""Several steps in one compiled call are the same steps: samples, weights, rows, checkpoints, counters, hooks."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

import parhelion as ph
from parhelion.checkpoint import list_checkpoints, load_checkpoint
from parhelion.testing import first_difference, rows_without_clocks, same
from parhelion_jax.arrays import Arrays
from support.small_jax import Data, Explicit, Line, Loaded, Points, failure, fit, host, make_trainer
from support.small_jax import programs as programs


class Journal(ph.Plugin):
    """Writes down what it is told and the batches that it sees."""

    def __init__(self) -> None:
        super().__init__("journal")
        self.unique_overrides.training_batch = True
        self.told: list[Any] = []
        self.batches: list[Any] = []

    def setup(self) -> None: ...

    def process_training_batch(self, batch: Any, state: Any) -> Any:
        self.batches.append((state.global_iteration, {name: type(value) for name, value in batch.items()}))
        self.told.append(("batch", state.global_iteration, np.asarray(batch["index"]).tolist()))
        return batch | {"x": batch["x"] * 1.5}

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.told.append(("epoch", current_epoch))

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self.told.append(("epoch end", current_epoch))

    def on_training_batch_start(self, state: Any) -> None:
        self.told.append(("start", state))

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.told.append(("end", state, should_log))

    def on_validation_start(self, validation_cycle: int) -> None:
        self.told.append(("validation", validation_cycle))

    def on_validation_end(self, validation_cycle: int) -> None:
        self.told.append(("validation end", validation_cycle))

    @property
    def without_batches(self) -> list[Any]:
        return [each for each in self.told if each[0] != "batch"]


class Images(Line):
    """A convolution, and dropout."""

    def setup(self, fast_init: bool = False) -> None:
        first, second = jax.random.split(self.key("params"))
        self.params = {
            "kernel": jax.random.normal(first, (2, 2, 1, 4)),
            "out": jax.random.normal(second, (36, 3)) * 0.3,
        }
        self.optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
        self.schedules = ph.schedules.cosine(0.03, num_updates=12)

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        images = batch["x"][:, :, None, None] * batch["x"][:, None, :, None]
        dimensions = ("NHWC", "HWIO", "NHWC")
        hidden = jax.lax.conv_general_dilated(images, params["kernel"], (1, 1), "VALID", dimension_numbers=dimensions)
        hidden = jax.nn.relu(hidden).reshape(len(images), -1)
        if key is not None:
            hidden = jnp.where(jax.random.bernoulli(key, 0.6, hidden.shape), hidden / 0.6, 0)
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["out"], batch["label"]).mean()


@pytest.fixture(scope="module")
def step_by_step() -> Any:
    return run_images(1)


def run_images(k: int) -> Any:
    model, journal = Images(clip_norm=1.0, ema_decay=0.8), Journal()
    trainer = make_trainer(steps_per_execution=k, print_frequency=4, valid_frequency=1)
    trainer.register_plugin(journal)
    assert trainer.fit(model, Loaded(shuffle=True)), trainer.error
    return trainer, model, journal


@pytest.mark.parametrize("k", [2, 3, 5, 7, 50])
def test_chunks_are_the_same_run(k, step_by_step) -> None:
    (one, other), (model, twin), (whole, journal) = zip(step_by_step, run_images(k), strict=True)
    assert [each for each in journal.told if each[0] == "batch"] == [each for each in whole.told if each[0] == "batch"]
    assert first_difference(host(model.state_dict()), host(twin.state_dict())) is None
    assert rows_without_clocks(other.history) == rows_without_clocks(one.history)
    assert other.state == one.state
    assert journal.without_batches == whole.without_batches
    # Each batch by itself, and placed: what a plugin computes must not depend on k.
    assert journal.batches == whole.batches
    assert all(issubclass(kind, jax.Array) for _, kinds in journal.batches for kind in kinds.values())
    assert [iteration for iteration, _ in journal.batches] == list(range(1, 13))


@pytest.mark.parametrize("k", [2, 4])
def test_the_hooks_of_batches_come_after_the_call(k) -> None:
    _, _, journal = run_images(k)
    kinds = [each[0] for each in journal.told if each[0] in ("batch", "start", "end")]
    assert kinds[: 3 * k] == ["batch"] * k + ["start", "end"] * k


class Tiny(Line):
    """As small as it can be and have a draw, an average and a momentum."""

    def __init__(self) -> None:
        super().__init__(ema_decay=0.5)

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return super().loss(params, batch, key) * (1 if key is None else jax.random.uniform(key))


def run_tiny(root: Path, k: int, size: int, **options: Any) -> tuple[Any, dict[int, Any]]:
    trainer = fit(Tiny(), Loaded(2, size, shuffle=True), chkpt_root=root, steps_per_execution=k, **options)
    entries = list_checkpoints(root / "line")
    return trainer, {entry.iteration: load_checkpoint(entry.path, Arrays()).tree for entry in entries}


@settings(max_examples=8, derandomize=True, database=None)
@given(
    k=st.sampled_from([2, 3, 5, 7, 50]),
    after=st.sampled_from([1, 2, 4]),
    size=st.integers(5, 15),
    every=st.integers(1, 4),
    print_frequency=st.sampled_from([None, 2, 3]),
    valid_frequency=st.sampled_from([None, 3]),
    steps=st.integers(1, 3),
    stop=st.integers(0, 10),
)
def test_checkpoints_are_the_same_at_every_update_and_go_on_with_another_k(
    k, after, size, every, print_frequency, valid_frequency, steps, stop
) -> None:
    options = {
        "train_unit": "iteration",
        "total_steps": 9,
        "accumulation_steps": steps,
        "chkpt_every_iterations": every,
        "print_frequency": print_frequency,
        "valid_frequency": valid_frequency,
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one, expected = run_tiny(root / "1", 1, size, **options)
        many, found = run_tiny(root / "k", k, size, **options)
        assert first_difference(expected, found) is None
        assert rows_without_clocks(many.history) == rows_without_clocks(one.history)
        run_tiny(root / "parts", k, size, **{**options, "total_steps": 1 + stop % 8})
        again, last = run_tiny(root / "parts", after, size, **options)
        assert first_difference(expected[max(expected)], last[max(last)]) is None
        assert rows_without_clocks(again.history) == rows_without_clocks(one.history)


def test_a_stop_takes_effect_at_the_end_of_the_call_and_the_run_goes_on_from_there(tmp_path) -> None:
    class Stopping(Journal):
        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            if state.global_iteration == 2:
                trainer.request_stop()

    whole = Tiny()
    fit(whole, Loaded())
    trainer = make_trainer(steps_per_execution=5, chkpt_root=tmp_path)
    trainer.register_plugin(Stopping())
    part = Tiny()
    part.loss = lambda params, batch, key: Tiny.loss(part, params, batch | {"x": batch["x"] / 1.5}, key)
    assert not trainer.fit(part, Loaded())
    assert (trainer.stop_reason, trainer.state.global_iteration) == ("interrupted", 5)
    again = Tiny()
    fit(again, Loaded(), steps_per_execution=3, chkpt_root=tmp_path)
    np.testing.assert_allclose(again.params["w"], whole.params["w"], rtol=1e-5)
    assert same(host(again.state_dict()["own"]), host(whole.state_dict()["own"]))


class Curriculum(ph.Plugin):
    """Scales each batch by how many batches have been trained on, as far as it knows."""

    def __init__(self, plug_id: str = "curriculum") -> None:
        super().__init__(plug_id)
        self.unique_overrides.training_batch = True
        self.count = 0

    def setup(self) -> None: ...

    def process_training_batch(self, batch: Any, state: Any) -> Any:
        return batch | {"x": batch["x"] / (2 + self.count)}

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        self.count += 1


@pytest.mark.parametrize("stop_at", [1, 4, 7, 9])
def test_a_stop_from_outside_moves_no_chunk(stop_at, tmp_path) -> None:
    """What runs once per call, such as a plugin that looks back, is the same in a run that was stopped."""

    def run(root: Path, batches_before_stop: int | None) -> Any:
        class Watched(Points):
            asked = 0

            def __getitem__(self, index: int) -> Any:
                Watched.asked += 1
                if batches_before_stop is not None and Watched.asked == 4 * batches_before_stop:
                    trainer.request_stop()
                return super().__getitem__(index)

        class Stopped(Loaded):
            def setup(self) -> None:
                self._train_dataset = self._create_dataset(Watched(self.size), self.params)

        trainer, model = make_trainer(steps_per_execution=4, chkpt_root=root), Tiny()
        trainer.register_plugin(Curriculum())
        trainer.fit(model, Stopped())
        return trainer, model

    _, whole = run(tmp_path / "whole", None)
    first, _ = run(tmp_path / "parts", stop_at)
    assert first.stop_reason == "interrupted"
    assert first.state.dataset_iter in (4, 6)
    again, model = run(tmp_path / "parts", None)
    assert again.stop_reason == "finished"
    assert first_difference(host(whole.state_dict()), host(model.state_dict())) is None


def test_a_plugin_computes_the_same_for_any_k() -> None:
    class Scale(Curriculum):
        def process_training_batch(self, batch: Any, state: Any) -> Any:
            return batch | {"x": batch["label"][:, None] / 3 - (batch["x"] - batch["x"].mean()) / batch["x"].std()}

    def run(k: int) -> Any:
        trainer, model = make_trainer(steps_per_execution=k), Tiny()
        trainer.register_plugin(Scale())
        assert trainer.fit(model, Loaded()), trainer.error
        return host(model.state_dict())

    assert first_difference(run(1), run(5)) is None


@pytest.mark.parametrize("k", [1, 4])
def test_a_plugin_that_claims_nothing_is_warned_of_once(k, caplog) -> None:
    silent, trainer = Curriculum("silent"), make_trainer(steps_per_execution=k)
    silent.unique_overrides.training_batch = False
    for plugin in (silent, Curriculum()):
        trainer.register_plugin(plugin)
    assert trainer.fit(Tiny(), Loaded()), trainer.error
    assert caplog.text.count("plugin 'silent' has a process_training_batch of its own that is not called") == 1


def test_a_model_that_wants_to_stop_is_asked_at_the_end_of_a_call() -> None:
    class Satisfied(Tiny):
        def should_training_stop(self) -> bool:
            return True

    trainer = make_trainer(steps_per_execution=4)
    trainer.fit(Satisfied(), Data())
    assert (trainer.stop_reason, trainer.state.global_iteration) == ("early_stop", 4)


def programs_of(model: Any) -> tuple[int, int]:
    """Return how many programs of one step, and of several, were compiled."""
    return model._one._cache_size(), model._many._cache_size()


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_is_compiled_once_for_each_shape_of_batch_also_after_a_resume(steps, tmp_path) -> None:
    options = {"accumulation_steps": steps, "chkpt_root": tmp_path, "valid_frequency": 1, "print_frequency": 3}
    for total in (2, 4):
        model = Tiny()
        fit(model, Data(4, 100), total_steps=total, **options)  # 50 steps
        assert programs_of(model) == (1, 0)
    tail = Tiny()
    fit(tail, Data(4, 102), accumulation_steps=steps)
    assert programs_of(tail) == (2, 0)


def test_however_many_remainders_there_are_few_lengths_are_compiled() -> None:
    model = Tiny()
    options = {"steps_per_execution": 50, "valid_frequency": 1}
    fit(model, Data(4, 102), print_frequency=7, total_steps=12, **options)
    assert programs_of(model)[1] <= 4 + 3 + 1  # four lengths as they come, powers of two below 7, the short batch
    model = Tiny()
    fit(model, Data(4, 4 * 96), print_frequency=37, total_steps=12, **options)
    assert programs_of(model)[1] <= 4 + 6


def test_early_stop_and_the_nan_guard_name_the_same_iteration(tmp_path) -> None:
    class Worse(Tiny):
        def have_metrics_improved(self) -> bool:
            return len(self.validated) > 5

    states = []
    for k in (1, 4):
        trainer = make_trainer(
            steps_per_execution=k, train_unit="iteration", total_steps=50, valid_frequency=3, early_stop_cycles=2
        )
        assert trainer.fit(Worse(), Data())
        assert trainer.stop_reason == "early_stop"
        states.append(trainer.state)
    assert states[0] == states[1]
    assert states[0].current_iteration == 6

    class Broken(Data):
        def train_dataloader(self) -> Any:
            batches = super().train_dataloader()
            batches[4]["y"] = np.full(4, np.nan, np.float32)
            return batches

    for k in (1, 2, 4, 50):
        message = failure(Tiny(), Broken(), steps_per_execution=k, chkpt_root=tmp_path / str(k), print_frequency=6)
        assert "loss is nan at iteration 5; expected a finite number" in message
        assert not list_checkpoints(tmp_path / str(k) / "line")


def test_a_model_with_a_step_of_its_own_takes_one_batch_at_a_time() -> None:
    class Own(Line):
        def train_step(self, batch: Any, state: Any) -> Any:
            return super().train_step(batch, state)

    for model in (Explicit(), Own()):
        message = failure(model, steps_per_execution=2)
        assert f"steps_per_execution is 2 and {type(model).__name__} has a train_step of its own" in message
        fit(model, total_steps=1)


def test_batches_of_every_kind_are_taken_in_a_chunk_as_one_by_one(caplog) -> None:
    class Kinds(Line):
        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            assert batch["texts"] == [None, None]
            assert batch["names"] is None
            return super().loss(params, batch, key) * batch["number"] * batch["flag"] * batch["scalar"]

    others = {
        "texts": ["a", "b"], "names": np.array(["a", "b"]), "number": 2, "flag": True, "scalar": np.float32(0.5),
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        runs = [fit(Kinds(), Data(**others), steps_per_execution=k, print_frequency=1) for k in (1, 5)]
    assert rows_without_clocks(runs[0].history) == rows_without_clocks(runs[1].history)
    plain = fit(Line(), print_frequency=1)
    assert [row["loss"] for row in plain.history] == [row["loss"] for row in runs[0].history]
