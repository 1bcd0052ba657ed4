"""The short way on jax: what LossModel does between setup and loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")

import attrs
import jax
import jax.numpy as jnp
import optax

import parhelion as ph
import parhelion_jax as backend
from parhelion.testing import last_tree, same
from parhelion_jax.arrays import Arrays
from parhelion_jax.update import _norm, as_control
from support.small_jax import Data, Line, Loaded, fit, host, make_trainer, rows
from support.small_jax import programs as programs


class Watched(Line):
    """Its optimizer's state holds the gradient that it was given last."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        watch = optax.GradientTransformation(
            lambda params: (zeros, zeros), lambda updates, state, params=None: (updates, (updates, params))
        )
        self.optimizer = optax.chain(watch, optax.sgd(0.05))
        self.gradients: list[Any] = []
        self.before: list[Any] = []

    def on_training_batch_end(self, state: ph.TrainingState, should_log: bool = False) -> None:
        if state.is_update:
            gradient, params = host(self._carry.opt_state[0])
            self.gradients.append(gradient)
            self.before.append(params)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# -- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("steps", [2, 3])
def test_accumulated_gradients_are_those_of_one_large_batch(steps, clip_norm) -> None:
    """22 records in batches of 2 and 3: the last group of an epoch is short, and its last batch too."""
    for batch_size in (2, 3):
        small, large = Watched(clip_norm=clip_norm), Watched(clip_norm=clip_norm)
        fit(small, Loaded(batch_size), accumulation_steps=steps)
        fit(large, Loaded(batch_size * steps))
        assert len(small.gradients) == len(large.gradients) == 2 * -(-22 // (batch_size * steps))
        for one, other in zip(small.gradients, large.gradients, strict=True):
            np.testing.assert_allclose(flat(one), flat(other), atol=1e-6)


def test_clipping_is_that_of_optax_and_never_exceeds_the_bound() -> None:
    model, free, loose = Watched(clip_norm=0.5), Watched(), Watched(clip_norm=100)
    for each in (model, free, loose):
        fit(each)
    clip = optax.clip_by_global_norm(0.5)
    expected = clip.update(free.gradients[0], clip.init(None))[0]
    np.testing.assert_allclose(flat(model.gradients[0]), flat(expected), atol=1e-6)
    norms = [np.linalg.norm(flat(gradient)) for gradient in model.gradients]
    assert 0.4999 < max(norms) <= 0.5
    assert np.linalg.norm(flat(free.gradients[0])) > 1
    assert same(loose.gradients, free.gradients)


def test_the_norm_of_bfloat16_gradients_is_computed_in_float32() -> None:
    gradient = {"w": jnp.full(1001, 0.125, jnp.bfloat16), "c": jnp.array([3 + 4j])}
    assert float(_norm(gradient)) == pytest.approx((1001 * 0.125**2 + 25) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_bfloat16_computes_in_that_type_and_keeps_float32(steps) -> None:
    seen = set()

    class Looking(Line):
        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            product = batch["x"] @ params["w"]
            seen.add((product.dtype, batch["label"].dtype))
            return jnp.square(product + params["b"] - batch["y"]).mean()

    model = Looking(precision="bfloat16", ema_decay=0.5, clip_norm=1.0)
    trainer = fit(model, valid_frequency=1, accumulation_steps=steps)
    assert seen == {(jnp.dtype("bfloat16"), jnp.dtype("int32"))}
    arrays = jax.tree.leaves((model._carry.params, model._carry.opt_state, model._carry.average))
    assert {leaf.dtype.name for leaf in arrays} == {"float32"}
    assert np.isfinite(trainer.history[-1]["valid_loss"])
    plain = Line(ema_decay=0.5, clip_norm=1.0)
    fit(plain, accumulation_steps=steps)
    difference = np.abs(flat(host(plain.params)) - flat(host(model.params))).max()
    assert 0 < difference < 0.05


# -- the average of the parameters, variables -------------------------------------------------------------------------


def test_the_average_is_the_one_computed_by_hand_and_evaluation_uses_it() -> None:
    class Averaged(Watched):
        def __init__(self) -> None:
            super().__init__(ema_decay=0.75)

    model = Averaged()
    trainer = fit(model, Loaded(), valid_frequency=1)
    weights = [*model.before[1:], host(model.params)]
    average = weights[0]
    for each in weights[1:]:
        average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, each)
    np.testing.assert_allclose(flat(host(model._carry.average)), flat(average), rtol=1e-5)
    batch = rows(0, 22)
    expected = np.square(batch["x"] @ average["w"] + average["b"] - batch["y"]).mean()
    assert trainer.history[-1]["valid_loss"] == pytest.approx(expected, rel=1e-4)
    assert same(host(model.trained_state_dict()), host(model._carry.average))
    one = Averaged()
    fit(one, Loaded(), total_steps=1, limit_batches=1)
    assert same(host(one._carry.average), host(one.params))


class Counting(Line):
    """Variables that count the batches, and say what evaluation is given."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.variables = {"mean": jnp.zeros(4), "batches": 0}

    def loss(self, params: Any, batch: Any, key: Any, variables: Any) -> Any:
        changed = {"mean": 0.5 * variables["mean"] + 0.5 * batch["x"].mean(0), "batches": variables["batches"] + 1}
        return super().loss(params, batch, key), (variables["batches"], variables["mean"]), changed


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_variables_change_in_training_and_not_in_evaluation(precision) -> None:
    model = Counting(precision=precision)
    trainer = fit(model, valid_frequency=1)
    mean = np.zeros(4, np.float32)
    for batch in Data().batches(4) * 2:
        mean = 0.5 * mean + 0.5 * batch["x"].mean(0)
    assert int(model.variables["batches"]) == 12
    assert model.variables["mean"].dtype == np.float32
    np.testing.assert_allclose(model.variables["mean"], mean, atol=1e-6 if precision == "float32" else 0.02)
    outputs = trainer.predict(model, Data())
    assert [int(each[0]) for each in outputs] == [12, 12, 12]


# -- schedules --------------------------------------------------------------------------------------------------------


class Scheduled(Line):
    """With another optimizer and a schedule."""

    def __init__(self, optimizer: Any, schedules: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.made = optimizer, schedules

    def setup(self, fast_init: bool = False) -> None:
        super().setup()
        self.optimizer, self.schedules = self.made


@pytest.mark.parametrize("steps", [1, 4])
def test_a_schedule_per_update_one_per_epoch_and_one_inside_of_optax(steps) -> None:
    updates = -(-6 // steps)
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    options = {"accumulation_steps": steps, "print_frequency": 1}
    pure = fit(Scheduled(injected, ph.schedules.linear(0.1, 0.0, 10)), **options)
    expected = [max(0, 0.1 - 0.01 * update) for update in range(2 * updates)]
    assert [row["lr"] for row in pure.history] == [pytest.approx(each, abs=1e-7) for each in expected]
    inside = fit(Scheduled(optax.sgd(optax.linear_schedule(0.1, 0.0, 10))), **options)
    assert [row["loss"] for row in inside.history] == pytest.approx([row["loss"] for row in pure.history], rel=1e-5)
    theirs = optax.inject_hyperparams(optax.sgd)(learning_rate=optax.linear_schedule(0.1, 0.0, 10))
    told = fit(Scheduled(theirs), **options)
    assert [row["lr"] for row in told.history] == [pytest.approx(each, abs=1e-7) for each in expected]
    by_epoch = fit(Scheduled(injected, backend.per_epoch(lambda epoch: 0.1 * 0.5**epoch)), **options)
    assert [row["lr"] for row in by_epoch.history] == pytest.approx([0.1] * updates + [0.05] * updates)
    stepped = fit(Scheduled(injected, backend.per_update(lambda update: jnp.where(update < 2, 0.1, 0.01))), **options)
    assert [row["lr"] for row in stepped.history[:3]] == pytest.approx([0.1, 0.1, 0.01])


def test_an_optimizer_is_given_the_loss_as_value() -> None:
    plateau = optax.contrib.reduce_on_plateau(patience=1, factor=0.5, accumulation_size=1)

    class Flat(Scheduled):
        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            return 0 * super().loss(params, batch, key) + 1.0

    model = Flat(optax.chain(optax.sgd(0.1), plateau))
    fit(model)
    assert float(model._carry.opt_state[1].scale) < 0.5
    assert float(model._carry.opt_state[1].best_value) == 1.0


# -- evaluation, keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_mapping", [False, True])
def test_metrics_count_outputs_and_predictions_are_outputs(as_mapping) -> None:
    keys = []

    class Classes(Line):
        def setup(self, fast_init: bool = False) -> None:
            self.params = {"w": jax.random.normal(self.key("params"), (4, 3))}
            self.optimizer = optax.sgd(0.1)
            self.metrics = {"accuracy": ph.metrics.Accuracy()}

        def loss(self, params: Any, batch: Any, key: Any) -> Any:
            keys.append(key)
            logits = batch["x"] @ params["w"]
            outputs = logits, batch["label"]
            loss = optax.softmax_cross_entropy_with_integer_labels(*outputs).mean()
            return loss, {"accuracy": outputs} if as_mapping else outputs

    model = Classes(precision="bfloat16")
    trainer = fit(model, valid_frequency=1)
    batch, seen = rows(0, 22), len(keys)
    assert None in keys
    logits = np.asarray(jnp.asarray(batch["x"], jnp.bfloat16) @ model.params["w"].astype(jnp.bfloat16), np.float32)
    assert trainer.history[-1]["valid_accuracy"] == pytest.approx((logits.argmax(1) == batch["label"]).mean())
    assert trainer.test(model, Data())
    assert trainer.test_results["test_accuracy"] == trainer.history[-1]["valid_accuracy"]
    outputs = trainer.predict(model, Data())
    assert len(outputs) == 3
    first = outputs[0]["accuracy"] if as_mapping else outputs[0]
    np.testing.assert_allclose(first[0], logits[:9], atol=0.05)
    assert len(keys) == seen  # nothing was traced anew


class Drawing(Line):
    """Its loss is a draw from its key."""

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return jax.random.uniform(key) + 0 * params["w"].sum()

    def draw(self, iteration: int) -> float:
        made = ph.TrainingState(global_iteration=iteration, current_iteration=iteration, global_epoch=1, epoch=0)
        return float(self.train_step(jax.tree.map(jnp.asarray, rows(0, 4)), made))


def test_the_key_of_a_step_is_a_function_of_seed_and_iteration_alone() -> None:
    def draws(**options: Any) -> list[float]:
        return [row["loss"] for row in fit(Drawing(), print_frequency=1, **options).history]

    assert len(set(draws())) == 12
    assert draws() == draws(steps_per_execution=5) == draws(total_steps=4)[:12]
    assert not set(draws()) & set(draws(random_seed=1))
    model = Drawing()
    fit(model, total_steps=0)
    far = [5, 2**31 + 5, 2**32 - 1, 2**32, 2**32 + 5, 2**33 + 5, 2**63 + 5]
    found = [model.draw(iteration) for iteration in far]
    assert len(set(found)) == len(far)
    assert found == [model.draw(iteration) for iteration in far]
    assert found[0] == draws()[4]


def test_counts_end_where_those_of_optax_do() -> None:
    state = attrs.evolve(ph.TrainingState(), global_iteration=2**40, current_iteration=2**40, global_epoch=2**35)
    assert as_control(state).tolist() == [2**8, 0, 2**31 - 1, 2**31 - 1, 0x3F800000, 1]


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_second_fit_of_a_model_is_a_fresh_one_and_old_buffers_are_given_up(tmp_path) -> None:
    model = Line(ema_decay=0.5)
    fit(model, total_steps=1)
    first = host(model.params)
    fit(model, total_steps=1, chkpt_root=tmp_path)
    assert same(host(model.params), first)
    again = Line(ema_decay=0.5)
    steps = make_trainer(chkpt_root=tmp_path).steps(again, Data())
    next(steps)
    assert not [leaf for leaf in jax.tree.leaves(again._attributes._before) if isinstance(leaf, jax.Array)]
    carry = jax.tree.leaves(again._carry)
    next(steps)
    assert all(leaf.is_deleted() for leaf in carry)  # donated, after a resume too


def test_a_test_needs_no_fit_and_a_run_may_begin_with_other_weights(tmp_path) -> None:
    donor = Line()
    trainer = fit(donor, chkpt_root=tmp_path)
    assert trainer.test(donor, Data())
    fresh, other = Line(), make_trainer(chkpt_root=tmp_path)
    assert other.test(fresh, Data())
    assert other.test_results == trainer.test_results
    begun = Line(ema_decay=0.5)
    start = make_trainer(total_steps=0)
    assert start.fit(begun, Data(), init_from=ph.find_last_checkpoint(tmp_path / "line"))
    weights = last_tree(tmp_path / "line", Arrays())["model"]["params"]
    assert same(host(begun.trained_state_dict()), host(weights))
    assert same(host(begun.params), host(donor.params))
    assert float(jnp.abs(begun._carry.opt_state[0].trace["w"]).sum()) == 0  # a fresh optimizer
