"""Parameters of every make: flax nnx, flax linen, equinox, dictionaries, lists, named tuples; short and explicit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp
import optax

import parhelion as ph
import parhelion_jax as backend
from parhelion.testing import same
from support.small_jax import Explicit, Loaded, assert_resumes, failure, fit, host
from support.small_jax import programs as programs


class Classes(backend.LossModel):
    """Three classes; says by ``logits`` how."""

    def __init__(self) -> None:
        super().__init__("line", ema_decay=0.5)

    def setup(self, fast_init: bool = False) -> None:
        self.params = self.make(self.key("params"))
        self.optimizer = optax.adam(1e-2)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def make(self, key: Any) -> Any:
        raise NotImplementedError

    def logits(self, params: Any, x: Any) -> Any:
        raise NotImplementedError

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        outputs = self.logits(params, batch["x"]), batch["label"]
        return optax.softmax_cross_entropy_with_integer_labels(*outputs).mean(), outputs


def weights(key: Any, rows: int, columns: int) -> Any:
    return jax.random.normal(key, (rows, columns)) * 0.5


class Layer(NamedTuple):
    kernel: Any
    bias: Any
    name: str = "layer"


class Nested(Classes):
    """Lists, tuples and named tuples, one in the other, with a number and a text among them."""

    def make(self, key: Any) -> Any:
        first, second = jax.random.split(key)
        layer = Layer(weights(second, 5, 3), jnp.zeros(3))
        return [(weights(first, 4, 5), jnp.ones(5)), {"last": [layer]}, 0.5, jnp.arange(3)]

    def logits(self, params: Any, x: Any) -> Any:
        (kernel, bias), last, factor, index = params
        layer = last["last"][0]
        assert (factor, layer.name) == (0.5, "layer")
        return jax.nn.relu(x @ kernel + bias) @ layer.kernel * factor + layer.bias[index]


class Equinox(Classes):
    """A module as it is, with functions and numbers among its leaves."""

    def make(self, key: Any) -> Any:
        eqx = pytest.importorskip("equinox")
        first, second = jax.random.split(key)
        layers = [eqx.nn.Linear(4, 5, key=first), eqx.nn.LayerNorm(5), eqx.nn.Lambda(jnp.tanh)]
        return eqx.nn.Sequential([*layers, eqx.nn.Dropout(0.5, inference=True), eqx.nn.Linear(5, 3, key=second)])

    def logits(self, params: Any, x: Any) -> Any:
        return jax.vmap(params)(x)


class Linen(Classes):
    """A definition outside, parameters inside."""

    def make(self, key: Any) -> Any:
        nn = pytest.importorskip("flax.linen")
        self.module = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])
        return self.module.init(key, jnp.zeros((1, 4)))

    def logits(self, params: Any, x: Any) -> Any:
        return self.module.apply(params, x)


def make_network() -> Any:
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(4, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)
            self.last = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))

    return Network


class Nnx(Classes):
    """Split: parameters, and as variables the batch statistics and the state of dropout's generator."""

    def setup(self, fast_init: bool = False) -> None:
        nnx = pytest.importorskip("flax.nnx")
        module = make_network()(nnx.Rngs(self.key("params")))
        self.graph, self.params, self.variables = nnx.split(module, nnx.Param, ...)
        self.optimizer = optax.adam(1e-2)
        self.metrics = {"accuracy": ph.metrics.Accuracy()}

    def loss(self, params: Any, batch: Any, key: Any, variables: Any = None) -> Any:
        from flax import nnx

        module = nnx.merge(self.graph, params, variables)
        module.eval() if key is None else module.train()
        outputs = module(batch["x"]), batch["label"]
        loss = optax.softmax_cross_entropy_with_integer_labels(*outputs).mean()
        return loss, outputs, nnx.state(module, nnx.Not(nnx.Param))


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("kind", [Nested, Equinox, Linen, Nnx])
def test_a_model_of_any_library_trains_validates_and_resumes_bit_for_bit(kind, k, tmp_path) -> None:
    first = kind()
    fit(first, Loaded(), total_steps=0)
    model = assert_resumes(
        kind, tmp_path, data=Loaded, valid_frequency=1, print_frequency=2, steps_per_execution=k, accumulation_steps=2
    )
    assert jax.tree.structure(model.params) == jax.tree.structure(first.params)
    before, after = (
        [np.asarray(leaf) for leaf in jax.tree.leaves(each.params) if isinstance(leaf, jax.Array)]
        for each in (first, model)
    )
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    if kind is Nnx:
        assert list(model.state_dict()["params"])[:2] == ["first/bias", "first/kernel"]
        assert {"norm/mean", "dropout/rngs/count"} <= set(model.state_dict()["variables"])


class ExplicitNnx(backend.Model):
    """Modules that change in place, with one reachable from two attributes, and weights shared by two layers."""

    def __init__(self) -> None:
        super().__init__("line")

    def setup(self, fast_init: bool = False) -> None:
        nnx = pytest.importorskip("flax.nnx")
        self.module = make_network()(nnx.Rngs(self.key("params")))
        self.module.twin = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
        self.module.twin.kernel = self.module.first.kernel
        self.optimizer = nnx.Optimizer(self.module, optax.adam(1e-2), wrt=nnx.Param)
        self.last = self.module.last

        @nnx.jit
        def step(module: Any, optimizer: Any, x: Any, label: Any) -> Any:
            def loss_of(module: Any) -> Any:
                return optax.softmax_cross_entropy_with_integer_labels(module(x), label).mean()

            loss, gradient = nnx.value_and_grad(loss_of)(module)
            optimizer.update(module, gradient)
            return loss

        self.step = step

    def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
        loss = self.step(self.module, self.optimizer, batch["x"], batch["label"])
        self.last.bias[...] = self.last.bias[...] * 1.01
        return loss


def test_an_nnx_module_with_its_optimizer_resumes_bit_for_bit_and_what_is_shared_stays_so(tmp_path) -> None:
    model = assert_resumes(ExplicitNnx, tmp_path, data=Loaded)
    assert model.last is model.module.last
    assert model.module.twin.kernel is model.module.first.kernel
    assert int(model.optimizer.step[...]) == 12


# -- what an explicit model keeps in its attributes -------------------------------------------------------------------


class Pair(NamedTuple):
    mean: Any
    count: Any


class Keeping(Explicit):
    """Every kind of attribute that a step may go on with."""

    def begin(self) -> None:
        self.state, self.stream = Pair(jnp.zeros(4), 0), jax.random.key(3)
        self.buffer, self.gradient = jnp.zeros((0, 4)), jnp.zeros(4)
        self.scale = jnp.asarray(0.3)  # its type is weak
        self.levels = jnp.full(4, 0.25)
        self.mixed = {"turn": 0, "text": "", "array": jnp.ones(2), "nothing": None}
        self.host, self.nested = np.zeros(4, np.float32), None
        self.generator = np.random.default_rng(0)
        self.odd = {1: "keys", "of": "two kinds"}

    def more(self, gradient: Any, state: Any) -> None:
        self.state = Pair(self.state.mean * 0.9 + gradient, self.state.count + 1)
        self.stream, key = jax.random.split(self.stream)
        self.buffer = jnp.concatenate([self.buffer, gradient[None]])
        self.gradient = None if state.current_iteration % 2 else gradient
        small = (self.scale * self.levels * gradient.astype(jnp.bfloat16)).astype(jnp.float32)
        self.mixed = {**self.mixed, "turn": self.mixed["turn"] + 1, "text": self.mixed["text"] + "x"}
        self.host += np.asarray(gradient)
        nested = self.nested or {"sum": [jnp.zeros(4)], "turns": (0, jnp.zeros(()))}
        self.nested = {"sum": [nested["sum"][0] + gradient], "turns": (nested["turns"][0] + 1, nested["turns"][1] + 1)}
        noise = jax.random.normal(key, (4,)) + self.generator.standard_normal(4).astype(np.float32)
        parts = [self.state.mean, self.buffer.mean(0), small, self.host, self.nested["sum"][0], noise]
        parts += [] if self.gradient is None else [self.gradient]
        self.w = self.w - 0.001 * sum(parts) * (1 + len(self.mixed["text"])) * self.state.count


@pytest.mark.parametrize("stop", [3, 4])
def test_whatever_an_explicit_model_goes_on_with_is_there_after_a_resume(stop, tmp_path) -> None:
    model = assert_resumes(Keeping, tmp_path, stop=stop, data=Loaded, valid_frequency=1)
    assert model.buffer.shape == (12, 4)
    assert model.scale.weak_type
    assert model.levels.weak_type
    assert not model.w.weak_type


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda w: optax.adam(0.1).init(w), "tuple"),
        (lambda w: Pair(w, 0), "Pair"),
        (lambda w: [{"inner": Pair(w, 0)}], "list"),
        (lambda w: jax.random.key(0), "PRNGKeyArray"),
    ],
)
def test_arrays_in_a_form_that_only_training_makes_are_refused_at_the_first_checkpoint(make, kind, tmp_path) -> None:
    class Late(Explicit):
        def begin(self) -> None:
            self.late = None

        def more(self, gradient: Any, state: Any) -> None:
            self.late = make(self.w)

    message = failure(Late(), Loaded(), chkpt_root=tmp_path, chkpt_every_iterations=1)
    assert f"self.late, a {kind} with arrays or keys in it, was made or took another form during training" in message
    assert "Assign it in setup()" in message


def test_an_explicit_model_is_not_kept_twice() -> None:
    model = Keeping()
    fit(model, Loaded())
    assert "w" not in model._attributes._before[""]
    again = Keeping()
    fit(again, Loaded())
    fit(again, Loaded())
    assert same(host(again.w), host(model.w))
