"""What cannot work on jax says so: what it is, what is allowed, and a way out."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp
import optax

import parhelion as ph
import parhelion_jax as backend
from parhelion.checkpoint import list_checkpoints
from parhelion.errors import CheckpointMismatchError, InvalidTypeError
from parhelion.testing import same
from support.small_jax import Data, Explicit, Line, Loaded, failure, fit, host, make_trainer
from support.small_jax import programs as programs

# -- the trainer and the model's arguments ----------------------------------------------------------------------------


def name_case(value):
    """Return an id that is the same in every process, as the address of a function is not."""
    return value[:60] if isinstance(value, str) else "-"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_execution": 0}, r"steps_per_execution is 0; expected an integer >= 1. 1 trains step by step"),
        ({"steps_per_execution": True}, r"steps_per_execution is True; expected an integer >= 1"),
        ({"steps_per_execution": 2.5}, r"steps_per_execution is 2.5; expected an integer >= 1"),
        ({"enable_cudnn_benchmark": True}, r"enable_cudnn_benchmark is True; expected False on jax.* Leave it out"),
        ({"enable_cudnn_benchmark": 1}, r"enable_cudnn_benchmark is 1; expected True or False"),
        ({"enable_deterministic": "yes"}, r"enable_deterministic is 'yes'; expected True or False"),
        ({"use_cpu": None, "gpus": [99]}, r"gpus (is|has) .*99"),
        ({"gpus": [0]}, r"use_cpu is True and gpus is \[0\]"),
        (
            {"random_seed": jax.random.key(3)},
            r"random_seed is a jax array of key<fry>; expected an integer .*self\.key\('",
        ),
        ({"random_seed": jnp.uint32(3)}, r"random_seed is a jax array of uint32; expected an integer from 0"),
    ],
    ids=name_case,
)
def test_an_argument_that_cannot_work_is_refused_at_construction(options, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make_trainer(**options)
    assert isinstance(caught.value, ph.ParhelionError)


def test_deterministic_kernels_are_the_only_ones_of_the_cpu(monkeypatch) -> None:
    fit(Line(), enable_deterministic=True, total_steps=1)
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")
    with pytest.raises(ValueError, match=r"XLA_FLAGS is ''; expected --xla_gpu_deterministic_ops=true in it"):
        backend.trainer._check_flags(benchmark=False, deterministic=True, platform="gpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, r"precision is 'float16'; expected 'float32' or 'bfloat16'.*bfloat16 does not"),
        ({"clip_norm": 0}, r"clip_norm is 0; expected a number > 0, or None"),
        ({"clip_norm": True}, r"clip_norm is True; expected a number > 0"),
        ({"ema_decay": 1}, r"ema_decay is 1; expected a number between 0 and 1, such as 0.999"),
        ({"mode": "best"}, r"mode is 'best'; expected 'min' or 'max'"),
    ],
    ids=name_case,
)
def test_an_argument_of_the_model_that_cannot_work_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Line(**options)


# -- setup and loss ---------------------------------------------------------------------------------------------------


class Made(Line):
    """With other attributes after setup, or another loss."""

    def __init__(self, made: Any = None, loss: Any = None) -> None:
        super().__init__()
        self.made = made or {}
        if loss is not None:
            self.loss = loss

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        for name, value in self.made.items():
            setattr(self, name, value)


def torch_optimizer() -> Any:
    torch = pytest.importorskip("torch")
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"params": None}, "self.params is None after setup(), without an array of floats; expected a pytree with one"),
        ({"params": {"w": jnp.ones(4, int)}}, "self.params is a dict after setup(), without an array of floats"),
        ({"params": 0.5}, "self.params is a float after setup(), without an array of floats"),
        ({"optimizer": None}, "self.optimizer is None after setup(); expected one of optax, such as optax.adam(1e-3)"),
        ({"optimizer": torch_optimizer}, "self.optimizer is a SGD after setup(); expected one of optax"),
        ({"optimizer": lambda: optax.adam}, "self.optimizer is a function after setup(); expected one of optax"),
        ({"schedules": lambda: 0.1}, "self.schedules is 0.1; expected a function from a count to a learning rate"),
        (
            {"schedules": lambda: ph.schedules.constant(0.1)},
            (
                "self.schedules is set and the learning rate of self.optimizer cannot be; expected an optimizer made "
                "by optax.inject_hyperparams(optax.adam)(learning_rate=0.1), or the schedule inside it"
            ),
        ),
        ({"schedules": lambda: backend.per_epoch(3)}, "self.schedules is Scheduled(schedule=3"),
    ],
    ids=name_case,
)
def test_a_setup_that_cannot_work_is_refused(made, message) -> None:
    made = {name: value() if callable(value) else value for name, value in made.items()}
    assert message in failure(Made(made))


HERE = {"mean": jnp.zeros(4)}


@pytest.mark.parametrize(
    ("variables", "loss", "message"),
    [
        (None, lambda p, b, k: b["x"] @ p["w"], "returned an array of shape (4,) and float32; expected a scalar of"),
        (None, lambda p, b, k: jnp.int32(3), "returned an array of shape () and int32; expected a scalar of floats"),
        (None, lambda p, b, k: None, "loss(params, batch, key) returned None; expected a scalar of floats"),
        (
            None,
            lambda p, b, k: (p["b"], 1, 2),
            "returned 3 values; expected a scalar, or (scalar, outputs). Set self.v",
        ),
        (HERE, lambda p, b, k, v: p["b"], "returned 1 values; expected (loss, outputs, variables) where self.var"),
        (HERE, lambda p, b, k, v: (p["b"], v), "returned 2 values; expected (loss, outputs, variables)"),
        (
            HERE,
            lambda p, b, k, v: (p["b"], None, {}),
            "other variables: 'mean' is (4,) in self.variables and not there",
        ),
        (HERE, lambda p, b, k, v: (p["b"], None, v | {"n": 1}), "'n' is not there in self.variables and ()"),
        (
            HERE,
            lambda p, b, k, v: (p["b"], None, {"mean": b["x"]}),
            "'mean' is (4,) in self.variables and (4, 4) in what it returned; expected the same names and shapes",
        ),
    ],
    ids=range(9),
)
def test_a_loss_that_returns_something_else_is_an_error(variables, loss, message) -> None:
    model = Made({} if variables is None else {"variables": variables}, loss)
    assert message in failure(model)


def test_a_model_without_a_loss_and_metrics_without_outputs_say_so() -> None:
    class Forgetful(backend.LossModel):
        setup = Line.setup

    assert "Forgetful defines no loss(params, batch, key); a LossModel needs one" in failure(Forgetful("forgetful"))
    model = Made({"metrics": {"accuracy": ph.metrics.Accuracy()}})
    message = failure(model, valid_frequency=1)
    assert "returned no outputs and there are metrics (accuracy); expected (loss, outputs), with outputs as" in message


@pytest.mark.parametrize("k", [1, 4])
def test_text_in_a_batch_is_passed_over_and_a_loss_of_nan_ends_the_run(k, tmp_path) -> None:
    fit(Line(), Data(names=["a", "b"], title="text", array=np.array(["a"])), steps_per_execution=k)
    model = Made(loss=lambda params, batch, key: params["b"] * jnp.nan)
    message = failure(model, chkpt_root=tmp_path, steps_per_execution=k)
    assert "loss is nan at iteration 1; expected a finite number" in message
    assert not list_checkpoints(tmp_path / "line")


# -- buffers that were donated ----------------------------------------------------------------------------------------


class Donating(Explicit):
    """Its step donates what ``donated`` says."""

    donated = 0

    def begin(self) -> None:
        def update(w: Any, batch: Any) -> Any:
            loss, gradient = jax.value_and_grad(lambda w: jnp.square(batch["x"] @ w - batch["y"]).mean())(w)
            return w - 0.1 * gradient, loss, jax.tree.map(lambda leaf: leaf + 1, batch)

        self.update, self.old = jax.jit(update, donate_argnums=self.donated), self.w

    def train_step(self, batch: Any, state: Any) -> Any:
        self.w, loss, self.changed = self.update(self.w, {name: batch[name] for name in ("x", "y")})
        return loss


def test_an_attribute_that_was_donated_is_refused_by_name_at_the_first_checkpoint(tmp_path) -> None:
    message = failure(Donating(), chkpt_root=tmp_path, chkpt_every_iterations=1)
    assert "old" in message
    assert "is an array that was donated to a computation or deleted" in message
    assert "Keep what the computation returned instead, or a copy from before (jnp.copy)" in message


def test_a_logged_array_that_was_donated_is_an_error_with_a_way_out() -> None:
    class Logging(Line):
        def train_step(self, batch: Any, state: Any) -> Any:
            self.log("bias", self.params["b"])
            return super().train_step(batch, state)

    message = failure(Logging(), print_frequency=2)
    assert "a logged array of float32 and shape () was donated to a compiled function" in message
    assert "Log a copy of it: jnp.copy(value)" in message


def test_a_batch_that_was_donated_cannot_come_again() -> None:
    class Batches(Donating):
        donated = 1

    class Placed(Data):
        def setup(self) -> None:
            names = ("x", "y")
            self.placed = [{name: jnp.asarray(each[name]) for name in names} for each in self.batches(4)]

        def train_dataloader(self) -> Any:
            return jax.device_put(self.placed, jax.devices("cpu")[0])

    fit(Batches(), total_steps=2)  # batches on the host are placed anew
    assert "deleted" in failure(Batches(), Placed(), total_steps=2)


# -- checkpoints of something else ------------------------------------------------------------------------------------

WIDE = {"w": jnp.ones(4), "b": jnp.zeros((2,))}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"params": WIDE},
            (
                r"self.params of the checkpoint is another tree: 'b' is \(2,\) of float32 here and \(\) of float32 in "
                r"the checkpoint \(2 leaves here, 2 there; this is the first that differs\). Build the model as it was"
            ),
        ),
        ({"params": {"w": jnp.ones(4)}}, r"'b' is not there here and \(\) of float32 in the checkpoint"),
        ({"params": {"w": jnp.ones(4), "a": jnp.ones(3)}}, r"'a' is \(3,\) of float32 here and not there in the check"),
        (
            {"params": {"w": jnp.ones(4, jnp.bfloat16), "b": jnp.zeros(())}},
            r"'w' is \(4,\) of bfloat16 here and \(4,\) of float32",
        ),
        (
            {"optimizer": optax.adam(0.1)},
            r"self.optimizer of the checkpoint is another tree: '0/count' is \(\) of int32",
        ),
        (
            {"variables": {"n": jnp.zeros(2)}},
            r"self.variables .* another tree: 'n' is \(2,\) of float32 here and not there in",
        ),
        (
            {"table": jnp.ones(2)},
            r"the saved model has the pytrees \[\] and Made has \['made', 'table'\]; expected the same",
        ),
    ],
    ids=name_case,
)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_changed(made, message, tmp_path) -> None:
    fit(Made(), Loaded(), chkpt_root=tmp_path, total_steps=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    loss = None
    if "variables" in made:
        loss = lambda params, batch, key, variables: (params["b"], None, variables)  # noqa: E731
    fresh, refused = Made(made, loss), Made(made, loss)
    assert make_trainer(total_steps=0).fit(fresh, Loaded())
    with pytest.raises(CheckpointMismatchError, match=message):
        make_trainer(chkpt_root=tmp_path).fit(refused, Loaded())
    assert same(host(refused._carry), host(fresh._carry))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_leaves_of_one_name_are_refused_at_the_start(tmp_path) -> None:
    class Slashes(Explicit):
        def begin(self) -> None:
            self.table = {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}

    message = failure(Slashes(), chkpt_root=tmp_path)
    assert "two leaves of a pytree are called 'a/b'; expected a name for each. Rename one" in message


def test_a_model_is_used_in_a_run_only() -> None:
    with pytest.raises(ph.ParhelionError, match=r"model 'line' is not set up; it is in Trainer.fit, test and predict"):
        Line().state_dict()
    with pytest.raises(InvalidTypeError, match=r"model is .*; expected a parhelion.Model"):
        make_trainer().fit(object(), Data())


@pytest.mark.parametrize(
    ("assign", "message"),
    [
        (lambda m: setattr(m, "optimizer", optax.sgd(0.0)), "self.optimizer or self.schedules was assigned during"),
        (lambda m: setattr(m, "schedules", lambda _: 0.1), "self.optimizer or self.schedules was assigned during"),
        (lambda m: setattr(m, "params", {"w": m.params["w"]}), "'b' is not there and was () of float32"),
        (lambda m: setattr(m, "params", {**m.params, "w": jnp.zeros(3)}), "'w' is (3,) of float32 and was (4,)"),
        (lambda m: setattr(m, "params", {**m.params, "n": jnp.int32(7)}), "other leaves than arrays of floats"),
        (lambda m: setattr(m, "variables", {"c": jnp.zeros(2)}), "self.variables was assigned another pytree"),
    ],
    ids=["optimizer", "schedules", "a leaf less", "another shape", "an integer", "variables"],
)
def test_what_is_compiled_into_the_step_cannot_be_assigned_during_training(assign, message) -> None:
    class Assigning(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.params = {**self.params, "n": jnp.int32(2)}

        def on_training_epoch_start(self, current_epoch: int) -> None:
            if current_epoch == 2:
                assign(self)

    assert message in failure(Assigning())


def test_floats_of_the_parameters_may_be_assigned_during_training() -> None:
    class Halving(Line):
        def on_training_end(self) -> None:
            self.params = jax.tree.map(lambda leaf: leaf * 0, self.params)

    model = Halving()
    fit(model)
    assert np.asarray(model.params["w"]).tolist() == [0, 0, 0, 0]


def test_a_number_that_the_loss_reads_and_training_changes_is_warned_of(tmp_path, caplog) -> None:
    class Cooling(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.heat, self.seen = 1.0, 0

        def on_training_epoch_start(self, current_epoch: int) -> None:
            self.heat, self.seen = 1.0 / current_epoch, current_epoch

        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            return super().loss(params, batch, key) * self.heat

    with caplog.at_level("WARNING", "parhelion"):
        fit(Cooling(), chkpt_root=tmp_path, chkpt_frequency=1)
    assert caplog.text.count("self.heat has changed and loss reads it, which was compiled with what it was") == 1
    assert "self.seen" not in caplog.text


def test_a_value_inside_the_compiled_step_cannot_be_logged() -> None:
    class Logging(Line):
        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            loss = super().loss(params, batch, key)
            self.log("inner", loss)
            return loss

    message = failure(Logging())
    assert "'inner' of a row cannot be used: it is inside a compiled step, where there are no values yet" in message


def test_multi_steps_of_optax_is_told_what_to_do_instead() -> None:
    class Wrapped(Line):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.optimizer = optax.MultiSteps(optax.sgd(0.1), 2)

    assert "self.optimizer is optax.MultiSteps after setup(); expected what it wraps" in failure(Wrapped())
