"""Weights and moments carried between torch and jax: the same outputs there, and the same next step."""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import numpy as np
import pytest

import parhelion as ph
from parhelion.checkpoint import flatten, unflatten
from parhelion.errors import CheckpointMismatchError

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
pytest.importorskip("parhelion_torch")
pytest.importorskip("parhelion_jax")

import parhelion_jax.portable as on_jax  # noqa: E402 - only where both are installed
import parhelion_torch.portable as on_torch  # noqa: E402
from parhelion_jax.arrays import Arrays as JaxArrays  # noqa: E402
from parhelion_jax.leaves import fill, named_leaves, named_weights  # noqa: E402
from parhelion_torch.arrays import Arrays as TorchArrays  # noqa: E402

jnp, lax, nn = jax.numpy, jax.lax, torch.nn
WeightMap, conv, dense = ph.weights.WeightMap, ph.weights.conv, ph.weights.dense
embedding, norm, same = ph.weights.embedding, ph.weights.norm, ph.weights.same


def saved(state: Any, written: Any, read: Any) -> Any:
    """Return a state as the other backend finds it in a checkpoint."""
    return unflatten(*flatten(state, written), read)


to_jax = functools.partial(saved, written=TorchArrays(), read=JaxArrays())
to_torch = functools.partial(saved, written=JaxArrays(), read=TorchArrays())


# -- networks, on both sides ------------------------------------------------------------------------------------------


class Case(NamedTuple):
    net: Any
    params: Any
    variables: Any
    forward: Any
    weight_map: WeightMap
    inputs: Any


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32) * 0.5


def affine(layer: Any, x: Any) -> Any:
    return x @ layer["kernel"] + layer["bias"]


def mlp() -> Case:
    def forward(params: Any, _: Any, x: Any) -> Any:
        return affine(params["head"], jnp.tanh(affine(params["body"], x)))

    params = {
        "body": {"kernel": jnp.asarray(random(5, 7)), "bias": jnp.asarray(random(7))},
        "head": {"kernel": jnp.asarray(random(7, 3)), "bias": jnp.asarray(random(3))},
    }
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    return Case(net, params, None, forward, WeightMap({"body": dense("0"), "head": dense("2")}), random(4, 5))


def cnn() -> Case:
    def forward(params: Any, variables: Any, x: Any) -> Any:
        x = x.transpose(0, 2, 3, 1)
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=layout)
        x = x + params["conv"]["bias"]
        x = lax.conv_general_dilated(
            x, params["group"]["kernel"], (1, 1), "SAME", dimension_numbers=layout, feature_group_count=2
        )
        stats, scale = variables["batch_stats"]["bn"], params["bn"]
        x = (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5) * scale["scale"] + scale["bias"]
        return affine(params["head"], jnp.maximum(x, 0).reshape(len(x), -1))

    params = {
        "conv": {"kernel": jnp.asarray(random(3, 2, 2, 4)), "bias": jnp.asarray(random(4))},
        "group": {"kernel": jnp.asarray(random(3, 3, 2, 4))},
        "bn": {"scale": jnp.asarray(random(4)), "bias": jnp.asarray(random(4, seed=1))},
        "head": {"kernel": jnp.asarray(random(4 * 5 * 4, 3)), "bias": jnp.asarray(random(3))},
    }
    variables = {"batch_stats": {"bn": {"mean": jnp.asarray(random(4, seed=2)), "var": jnp.full(4, 0.7)}}}
    net = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2)), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4),
        nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 5, 3),
    )  # fmt: skip
    with torch.no_grad():
        for name, tensor in net[2].named_buffers():
            if name != "num_batches_tracked":
                tensor.copy_(torch.from_numpy(np.abs(random(4, seed=len(name)))))
    layers = {"conv": conv("0"), "group": conv("1"), "bn": norm("2"), "head": dense("5", flattened=(4, 4, 5))}
    return Case(net, params, variables, forward, WeightMap(layers), random(6, 2, 6, 6))


def words() -> Case:
    def forward(params: Any, _: Any, x: Any) -> Any:
        return params["scale"] * affine(params["head"], params["tokens"]["embedding"][x].mean(1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Any) -> Any:
            return self.scale * self.head(self.tokens(x).mean(1))

    params = {
        "tokens": {"embedding": jnp.asarray(random(9, 4))},
        "head": {"kernel": jnp.asarray(random(4, 3)), "bias": jnp.asarray(random(3))},
        "scale": jnp.float32(0.3),
    }
    layers = {"tokens": embedding("tokens"), "head": dense("head"), "scale": same("scale")}
    inputs = np.random.default_rng(0).integers(0, 9, (5, 6))
    return Case(Net(), params, None, forward, WeightMap(layers), inputs)


CASES = [mlp, cnn, words]


def output(net: Any, inputs: Any) -> Any:
    net.eval()
    with torch.no_grad():
        return net(torch.from_numpy(inputs)).numpy()


def close(one: Any, other: Any) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", CASES)
def test_outputs_on_jax_are_those_of_torch(make) -> None:
    case = make()
    before = case.forward(case.params, case.variables, case.inputs)
    state = to_jax(on_torch.take_portable({"": case.net}))
    got = on_jax.give_portable(state, case.weight_map, params=case.params, variables=case.variables, num_updates=3)
    close(case.forward(got.params, got.variables, case.inputs), output(case.net, case.inputs))
    close(case.forward(case.params, case.variables, case.inputs), before)  # what was given stays as it was
    assert jax.tree.structure(got.params) == jax.tree.structure(case.params)


@pytest.mark.parametrize("make", CASES)
def test_outputs_on_torch_are_those_of_jax(make) -> None:
    case = make()
    state = to_torch(on_jax.take_portable(case.params, case.variables))
    on_torch.give_portable(state, case.weight_map, parts={"": case.net}, num_updates=3)
    close(case.forward(case.params, case.variables, case.inputs), output(case.net, case.inputs))
    if make is cnn:
        assert int(case.net[2].num_batches_tracked) == 3


# -- moments ----------------------------------------------------------------------------------------------------------


OPTIMIZERS = {
    "adam": (lambda p: torch.optim.Adam(p, 0.01), lambda: optax.adam(0.01)),
    "adamw": (
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
        lambda: optax.adamw(optax.constant_schedule(0.01), weight_decay=0.1),
    ),
    "radam": (  # the libraries add eps at different places
        lambda p: torch.optim.RAdam(p, 0.01, eps=1e-16),
        lambda: optax.inject_hyperparams(optax.radam)(0.01, eps=1e-16),
    ),
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda: optax.sgd(0.1, momentum=0.9)),
    "nesterov": (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda: optax.chain(optax.clip_by_global_norm(1e9), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    ),
    "plain": (lambda p: torch.optim.SGD(p, 0.1), lambda: optax.sgd(0.1)),
}


def torch_step(case: Case, optimizer: Any) -> None:
    optimizer.zero_grad()
    case.net.eval()
    case.net(torch.from_numpy(case.inputs)).square().mean().backward()
    optimizer.step()


def jax_steps(case: Case, optimizer: Any) -> Any:
    """Return the function that makes a step, from and to parameters and the optimizer's state."""

    @jax.jit
    def step(params: Any, opt_state: Any) -> tuple[Any, Any]:
        grads = jax.grad(lambda p: (case.forward(p, case.variables, case.inputs) ** 2).mean())(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def in_double(case: Case) -> Case:
    """Return the case in float64, where what the libraries round differently is far below what a moment does."""
    inputs = case.inputs if case.inputs.dtype.kind == "i" else case.inputs.astype(np.float64)
    trees = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree) for tree in (case.params, case.variables))
    return Case(case.net.double(), *trees, case.forward, case.weight_map, inputs)


def equal_weights(case: Case, params: Any) -> None:
    here = case.weight_map.to_jax({name: each.numpy() for name, each in on_torch.named_weights({"": case.net}).items()})
    for name, leaf in named_leaves(params).items():
        np.testing.assert_allclose(np.asarray(leaf), here[name], rtol=1e-6, atol=1e-6)


MOVES = [(words, kind) for kind in OPTIMIZERS] + [(cnn, "adamw"), (cnn, "momentum")]


@pytest.mark.parametrize(("make", "kind"), MOVES)
def test_the_next_steps_on_jax_are_those_of_torch(make, kind, caplog) -> None:
    for_torch, for_jax = OPTIMIZERS[kind]
    with jax.enable_x64(True):
        case = in_double(make())
        there, here = for_torch(case.net.parameters()), for_jax()
        for _ in range(7):
            torch_step(case, there)
        state = to_jax(on_torch.take_portable({"": case.net}, there))
        case = case._replace(variables=fill_variables(case, state))
        got = on_jax.give_portable(
            state, case.weight_map,
            params=case.params, variables=case.variables, opt_state=here.init(case.params), num_updates=7,
        )  # fmt: skip
        params, opt_state, step = got.params, got.opt_state, jax_steps(case, here)
        for _ in range(2):
            torch_step(case, there)
            params, opt_state = step(params, opt_state)
            equal_weights(case, params)
    assert not caplog.records


def fill_variables(case: Case, state: Any) -> Any:
    """Return the running statistics, which evaluation does not change, as torch has them."""
    return on_jax.give_portable(
        state, case.weight_map, params=case.params, variables=case.variables, num_updates=0
    ).variables


@pytest.mark.parametrize(("make", "kind"), MOVES)
def test_the_next_steps_on_torch_are_those_of_jax(make, kind, caplog) -> None:
    for_torch, for_jax = OPTIMIZERS[kind]
    with jax.enable_x64(True):
        case = in_double(make())
        there, here = for_jax(), for_torch(case.net.parameters())
        params, opt_state, step = case.params, there.init(case.params), jax_steps(case, there)
        for _ in range(7):
            params, opt_state = step(params, opt_state)
        state = to_torch(on_jax.take_portable(params, case.variables, opt_state))
        on_torch.give_portable(state, case.weight_map, parts={"": case.net}, optimizer=here, num_updates=7)
        for _ in range(2):
            torch_step(case, here)
            params, opt_state = step(params, opt_state)
            equal_weights(case, params)
    assert not caplog.records


def test_what_never_had_a_gradient_on_torch_has_moments_of_zero_on_jax() -> None:
    case = mlp()
    case.net[0].weight.requires_grad_(requires_grad=False)
    there = torch.optim.Adam(case.net.parameters(), 0.01)
    torch_step(case, there)
    state = to_jax(on_torch.take_portable({"": case.net}, there))
    opt_state = jax.tree.map(jnp.ones_like, optax.adam(0.01).init(case.params))
    got = on_jax.give_portable(state, case.weight_map, params=case.params, opt_state=opt_state, num_updates=1)
    assert float(jnp.abs(got.opt_state[0].mu["body"]["kernel"]).max()) == 0
    assert float(jnp.abs(got.opt_state[0].mu["head"]["kernel"]).max()) > 0


PARAMS = {"a": jnp.ones(3), "b": [jnp.ones((2, 2))]}
MASK = {"a": True, "b": [False]}
FOUND = {
    "a mask": (lambda: optax.masked(optax.adam(1.0), MASK), {"first": {"a"}, "second": {"a"}}),
    "a partition": (
        lambda: optax.partition(
            {"x": optax.adam(1.0), "y": optax.sgd(0.1, momentum=0.9)}, {"a": "x", "b": ["y"]}
        ),
        {"first": {"a"}, "second": {"a"}, "momentum": {"b/0"}},
    ),
    "a chain": (
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
        {"momentum": {"a", "b/0"}},
    ),
    "a plateau": (
        lambda: optax.chain(optax.adam(1.0), optax.contrib.reduce_on_plateau()),
        {"first": {"a", "b/0"}, "second": {"a", "b/0"}},
    ),
    "nothing": (lambda: optax.sgd(0.1), {}),
}  # fmt: skip
REFUSED = {
    "several steps": lambda: optax.MultiSteps(optax.adam(1.0), 2),
    "surprise": lambda: optax.adabelief(1.0),
    "a maximum": lambda: optax.amsgrad(1.0),
    "one moment": lambda: optax.lion(1.0),
    "factors": lambda: optax.adafactor(1.0),
    "an average": lambda: optax.chain(optax.ema(0.9), optax.sgd(0.1)),
    "two of a kind": lambda: optax.chain(optax.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize(("make", "expected"), FOUND.values(), ids=FOUND)
def test_moments_are_found_wherever_optax_keeps_them(make, expected) -> None:
    moments = on_jax.take_moments(make().init(PARAMS), PARAMS)
    assert moments.pop("count") == 0
    assert {role: set(each) for role, each in moments.items() if each} == expected


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_other_state_of_optax_is_not_mistaken_for_moments(make, caplog) -> None:
    opt_state = make().init(PARAMS)
    assert on_jax.take_moments(opt_state, PARAMS) is None
    moments = on_jax.take_moments(optax.adam(1.0).init(PARAMS), PARAMS)
    with caplog.at_level(logging.WARNING):
        anew = on_jax.give_moments(opt_state, PARAMS, moments, 5)
    assert [record.getMessage() for record in caplog.records] == [ANEW]
    jax.tree.map(np.testing.assert_array_equal, anew, opt_state)


ANEW = "the optimizer begins anew: its moments are none that the other backend's checkpoint has"


def test_schedules_go_on_also_where_the_optimizer_begins_anew() -> None:
    optimizer = optax.adam(optax.linear_schedule(1.0, 0.0, 10))
    anew = on_jax.give_moments(optimizer.init(PARAMS), PARAMS, None, 5)
    assert (int(anew[0].count), int(anew[1].count)) == (0, 5)
    assert anew[1].count.dtype == jnp.int32
    injected = optax.inject_hyperparams(optax.adam)(optax.linear_schedule(1.0, 0.0, 10))
    assert int(on_jax.give_moments(injected.init(PARAMS), PARAMS, None, 5).count) == 5


def test_a_run_of_no_updates_has_nothing_to_go_on_with(caplog) -> None:
    opt_state = optax.adam(1.0).init(PARAMS)
    assert on_jax.give_moments(opt_state, PARAMS, None, 0) is opt_state
    optimizer = torch.optim.Adam(mlp().net.parameters())
    on_torch.give_moments(optimizer, {}, None, 0)
    assert not caplog.records


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.RMSprop,
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    ],
)
def test_an_optimizer_of_another_kind_begins_anew_on_torch(make, caplog) -> None:
    case = mlp()
    optimizer = make(case.net.parameters())
    state = to_torch(on_jax.take_portable(case.params, None, optax.adam(1.0).init(case.params)))
    with caplog.at_level(logging.WARNING):
        on_torch.give_portable(state, case.weight_map, parts={"": case.net}, optimizer=optimizer, num_updates=4)
    assert [record.getMessage() for record in caplog.records] == [ANEW]
    assert not optimizer.state
    if not isinstance(optimizer, torch.optim.SGD):
        assert on_torch.take_moments(optimizer, {"": case.net}) is None


def test_nadam_knows_how_far_its_momentum_has_grown() -> None:
    case, again = mlp(), mlp()
    optimizer = torch.optim.NAdam(case.net.parameters(), 0.01)
    for _ in range(5):
        torch_step(case, optimizer)
    moments = on_torch.take_moments(optimizer, {"": case.net})
    arrays = {role: {name: each.numpy() for name, each in moments[role].items()} for role in ("first", "second")}
    other = torch.optim.NAdam(again.net.parameters(), 0.01)
    on_torch.give_moments(other, {"": again.net}, {**moments, **arrays}, 5)
    pairs = zip(optimizer.state.values(), other.state.values(), strict=True)
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        for key in mine:
            close(mine[key], theirs[key])


# -- names ------------------------------------------------------------------------------------------------------------


def test_leaves_of_flax_modules_have_the_names_of_layers() -> None:
    linen, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(2)(linen.BatchNorm(use_running_average=True, name="bn")(x))

    made = Net().init(jax.random.key(0), jnp.ones((1, 3)))
    expected = {"Dense_0/kernel", "Dense_0/bias", "bn/scale", "bn/bias", "bn/mean", "bn/var"}
    assert set(named_weights(made["params"], {"batch_stats": made["batch_stats"]})) == expected
    assert set(named_weights(made)) == expected

    class Other(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.bn = nnx.BatchNorm(3, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])

    params, stats, rest = nnx.state(Other(nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...)
    assert set(named_weights(params, stats)) == {
        "layers/0/kernel", "layers/0/bias", "bn/scale", "bn/bias", "bn/mean", "bn/var",
    }  # fmt: skip
    assert set(named_leaves(rest)) == {"layers/1/rngs/count"}  # no random key
    filled = fill(params, {name: np.full(leaf.shape, 2.0) for name, leaf in named_leaves(params).items()})
    assert jax.tree.structure(filled) == jax.tree.structure(params)
    assert {float(leaf.min()) for leaf in jax.tree.leaves(filled)} == {2.0}
    assert set(on_jax.take_moments(optax.adam(1.0).init(params), params)["first"]) == set(named_leaves(params))


def test_an_equinox_module_is_the_same_as_the_torch_module_with_its_names() -> None:
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(5, 3, 7, 1, activation=jnp.tanh, key=jax.random.key(0))
    case = mlp()
    layers = WeightMap({"layers/0": same("0"), "layers/1": same("2")})
    got = on_jax.give_portable(
        to_jax(on_torch.take_portable({"": case.net})), layers, params=module, num_updates=0
    ).params
    close(jax.vmap(got)(case.inputs), output(case.net, case.inputs))
    assert got.activation is module.activation


def test_two_arrays_of_one_name_are_refused() -> None:
    with pytest.raises(CheckpointMismatchError, match=r"two arrays of the model are called 'a/b'; expected a name for"):
        named_leaves({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
    assert list(named_weights({"w": jnp.ones(1)}, {"w": jnp.ones(1), "v": jnp.ones(1)})) == ["w", "v", "variables/w"]


def test_a_tree_is_filled_with_its_own_dtypes_and_nothing_weak_or_shared() -> None:
    host = np.arange(3, dtype=np.float64)
    tree = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.asarray(1.0), "n": np.ones(3), "key": jax.random.key(0), "s": "x"}
    filled = fill(tree, {"a": host, "b": np.float32(4), "n": host, "more": host})
    host[:] = -1
    assert (filled["a"].dtype, filled["a"].tolist(), filled["n"].tolist()) == (jnp.bfloat16, [0, 1, 2], [0, 1, 2])
    assert not filled["b"].weak_type
    assert (filled["key"] is tree["key"], filled["s"]) == (True, "x")
    with pytest.raises(
        CheckpointMismatchError, match=r"do not fit the model: a is \(3,\) here and \(2,\) there; b is missing"
    ):
        fill(tree, {"a": np.ones(2), "n": host})


# -- torch's side -----------------------------------------------------------------------------------------------------


def test_tied_weights_are_one_and_metrics_none() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
            self.head.weight = self.tokens.weight
            self.seen = torchmetrics.MeanMetric()
            self.seen.persistent(mode=True)

    net = Tied()
    assert list(on_torch.named_weights({"": net})) == ["tokens.weight"]
    state = to_torch(on_jax.take_portable({"tokens": {"embedding": jnp.asarray(random(4, 3))}}))
    on_torch.give_portable(state, WeightMap({"tokens": embedding("tokens")}), parts={"": net}, num_updates=1)
    close(net.head.weight.detach(), random(4, 3))
    assert net.head.weight is net.tokens.weight


def test_further_modules_and_raw_parameters_are_carried() -> None:
    parts = {"": nn.Linear(2, 3), "critic": nn.Linear(3, 1, bias=False), "scale": nn.Parameter(torch.ones(2))}
    assert list(on_torch.named_weights(parts)) == ["weight", "bias", "critic.weight", "scale"]
    layers = WeightMap({"net": dense(""), "critic": dense("critic"), "scale": same("scale")})
    tree = {"net": {"kernel": random(2, 3), "bias": random(3)}, "critic": {"kernel": random(3, 1)}, "scale": random(2)}
    tree = jax.tree.map(jnp.asarray, tree)
    on_torch.give_portable(to_torch(on_jax.take_portable(tree)), layers, parts=parts, num_updates=1)
    close(parts["critic"].weight.detach().T, tree["critic"]["kernel"])
    close(parts["scale"].detach(), tree["scale"])
    back = on_jax.give_portable(
        to_jax(on_torch.take_portable(parts)), layers, params=jax.tree.map(jnp.zeros_like, tree), num_updates=1
    )
    jax.tree.map(np.testing.assert_array_equal, back.params, tree)


def test_bfloat16_goes_both_ways_bit_for_bit() -> None:
    layers = WeightMap({"fc": dense("")})
    net = nn.Linear(3, 2, dtype=torch.bfloat16)
    params = {"fc": {"kernel": jnp.zeros((3, 2), jnp.bfloat16), "bias": jnp.zeros(2, jnp.bfloat16)}}
    state = to_jax(on_torch.take_portable({"": net}))
    got = on_jax.give_portable(state, layers, params=params, num_updates=0).params
    assert got["fc"]["kernel"].dtype == jnp.bfloat16
    other = nn.Linear(3, 2, dtype=torch.bfloat16)
    on_torch.give_portable(to_torch(on_jax.take_portable(got)), layers, parts={"": other}, num_updates=0)
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(net.bias, other.bias)


def test_averages_are_carried_with_the_running_statistics_of_the_model() -> None:
    case = cnn()
    average = torch.optim.swa_utils.AveragedModel(case.net)
    jax_average = jax.tree.map(lambda leaf: leaf + 1, case.params)
    state = to_torch(on_jax.take_portable(case.params, case.variables, None, jax_average))
    on_torch.give_portable(state, case.weight_map, parts={"": case.net}, average=average, num_updates=6)
    close(case.forward(jax_average, case.variables, case.inputs), output(average.module, case.inputs))
    close(case.forward(case.params, case.variables, case.inputs), output(case.net, case.inputs))
    assert int(average.n_averaged) == 6
    back = to_jax(on_torch.take_portable({"": case.net}, None, average))
    trees = {"params": case.params, "variables": case.variables, "average": case.params}
    got = on_jax.give_portable(back, case.weight_map, **trees, num_updates=6)
    jax.tree.map(np.testing.assert_array_equal, got.average, jax_average)


def test_an_average_that_the_other_side_had_not_begins_at_the_weights() -> None:
    case = mlp()
    state = to_jax(on_torch.take_portable({"": case.net}))
    got = on_jax.give_portable(state, case.weight_map, params=case.params, average=case.params, num_updates=6)
    jax.tree.map(np.testing.assert_array_equal, got.average, got.params)
    average = torch.optim.swa_utils.AveragedModel(mlp().net)
    state = to_torch(on_jax.take_portable(case.params))
    on_torch.give_portable(state, case.weight_map, parts={"": case.net}, average=average, num_updates=6)
    close(output(average.module, case.inputs), output(case.net, case.inputs))
    assert int(average.n_averaged) == 0


def test_an_average_that_this_side_has_not_is_left_out_aloud(caplog) -> None:
    case = mlp()
    average = torch.optim.swa_utils.AveragedModel(case.net)
    with caplog.at_level(logging.WARNING):
        state = to_jax(on_torch.take_portable({"": case.net}, None, average))
        on_jax.give_portable(state, case.weight_map, params=case.params, num_updates=1)
        state = to_torch(on_jax.take_portable(case.params, average=case.params))
        on_torch.give_portable(state, case.weight_map, parts={"": case.net}, num_updates=1)
    assert ["averaged weights, and they are left out" in each.getMessage() for each in caplog.records] == [True, True]


def test_a_lazy_module_without_a_shape_is_refused_where_weights_are_to_go() -> None:
    parts = {"": nn.LazyLinear(2)}
    assert on_torch.take_portable(parts)["weights"] == {}
    state = to_torch(on_jax.take_portable({"fc": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}))
    with pytest.raises(CheckpointMismatchError, match=r"weight has no shape yet; expected one, to hold it against"):
        on_torch.give_portable(state, WeightMap({"fc": dense("")}), parts=parts, num_updates=1)


def test_a_wrong_map_changes_nothing_on_torch() -> None:
    case = mlp()
    before = output(case.net, case.inputs)
    optimizer = torch.optim.Adam(case.net.parameters())
    params = {**case.params, "head": {"kernel": jnp.ones((7, 4)), "bias": jnp.ones(3)}}
    state = to_torch(on_jax.take_portable(params, None, optax.adam(1.0).init(params)))
    give = functools.partial(on_torch.give_portable, state, optimizer=optimizer, num_updates=2)
    message = r"these jax weights to torch: head/kernel \(7, 4\) becomes 2\.weight \(4, 7\); expected \(3, 7\)"
    with pytest.raises(CheckpointMismatchError, match=message):
        give(case.weight_map, parts={"": case.net})
    np.testing.assert_array_equal(output(case.net, case.inputs), before)
    assert not optimizer.state


def test_a_wrong_map_is_told_on_jax() -> None:
    case = mlp()
    state = to_jax(on_torch.take_portable({"": case.net}))
    with pytest.raises(CheckpointMismatchError, match=r"2\.weight \(3, 7\) is mapped to nothing; also: 2\.bias"):
        on_jax.give_portable(state, WeightMap({"body": dense("0")}), params=case.params, num_updates=1)


def test_an_integer_that_torch_has_no_room_for_is_refused_and_nothing_changes() -> None:
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.ones(2))
    module.register_buffer("count", torch.tensor([1, 2], dtype=torch.int32))
    found = {"count": np.array([0, 2**32 - 1], np.uint32), "weight": np.zeros(2, np.float32)}
    with pytest.raises(CheckpointMismatchError, match=r"count has 4294967295 in the checkpoint and int32 ends at"):
        on_torch.fill({"": module}, found)
    assert module.count.tolist() == [1, 2]
    assert module.weight.tolist() == [1, 1]
    on_torch.fill({"": module}, found | {"count": np.array([0, 7], np.uint32)})
    assert module.count.tolist() == [0, 7]
