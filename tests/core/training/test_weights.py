"""Weights across backends: what goes there and back is what it was, and a wrong map says where it is wrong."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parhelion as ph
from parhelion.errors import CheckpointMismatchError, InvalidTypeError, InvalidValueError
from parhelion.training._weights import WeightMap, conv, custom, dense, embedding, norm, same

sizes = st.integers(0, 4)
dtypes = st.sampled_from([np.float32, np.float16, np.float64, np.complex64, np.int8])


def flip(array):
    return array[::-1]


@st.composite
def layers(draw):
    """Draw a layer at the torch name "net.it", and torch's shapes of its arrays by name."""
    kind = draw(st.sampled_from([dense, conv, norm, embedding, same, custom, "flattened"]))
    num_out, num_in = draw(sizes), draw(sizes)
    places = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    biases = {"net.it.bias": (num_out,)} if draw(st.booleans()) else {}
    flat = (num_in + 1, *places)
    running = {"net.it.running_mean": (num_out,), "net.it.running_var": (num_out,)} if draw(st.booleans()) else {}
    return {
        dense: (dense("net.it"), {"net.it.weight": (num_out, num_in), **biases}),
        "flattened": (dense("net.it", flattened=flat), {"net.it.weight": (num_out, math.prod(flat)), **biases}),
        conv: (conv("net.it"), {"net.it.weight": (num_out, num_in, *places), **biases}),
        norm: (norm("net.it"), {"net.it.weight": (num_out,), **biases, **running}),
        embedding: (embedding("net.it"), {"net.it.weight": (num_in, num_out)}),
        same: (same("net"), {"net": (2,), "net.it.0.weight": (num_out, *places), "net.it.b": ()}),
        custom: (custom("net.it", to_jax=flip, to_torch=flip), {"net.it": (num_out, num_in)}),
    }[kind]


def bits(named):
    return {name: (value.shape, value.dtype, value.tobytes()) for name, value in named.items()}


@given(layers(), dtypes, st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_what_goes_to_jax_and_back_is_the_same_bits(drawn, dtype, seed, num_updates) -> None:
    layer, shapes = drawn
    rng = np.random.default_rng(seed)
    named = {}
    for name, shape in shapes.items():
        raw = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
        named[name] = raw.view(dtype).reshape(shape)
    if "net.it.running_var" in named:
        named["net.it.num_batches_tracked"] = np.array(num_updates)
    weight_map = WeightMap({"deep/layer": layer})
    there = weight_map.to_jax(named)
    assert not any("." in name or "num_batches" in name for name in there)
    assert bits(weight_map.to_torch(there, num_updates=num_updates)) == bits(named)
    assert bits(weight_map.to_torch(there, num_updates=num_updates, like=named)) == bits(named)
    assert bits(weight_map.to_jax(named, like=there)) == bits(there)


def test_a_dense_layer_is_transposed() -> None:
    weight = np.arange(6).reshape(2, 3)
    there = WeightMap({"head": dense("fc")}).to_jax({"fc.weight": weight, "fc.bias": np.ones(2)})
    assert list(there) == ["head/kernel", "head/bias"]
    assert there["head/kernel"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_dense_layer_behind_a_flatten_has_its_inputs_in_the_other_order() -> None:
    channels, height, width = 3, 2, 4
    image = np.random.default_rng(0).random((channels, height, width))
    weight = np.random.default_rng(1).random((5, image.size))
    there = WeightMap({"": dense("", flattened=(channels, height, width))}).to_jax({"weight": weight})
    last = image.transpose(1, 2, 0)
    np.testing.assert_allclose(last.reshape(-1) @ there["kernel"], weight @ image.reshape(-1), rtol=1e-12)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
def test_a_convolution_has_its_channels_last(num_axes) -> None:
    spatial = (5, 6, 7)[:num_axes]
    weight = np.arange(4 * 3 * math.prod(spatial)).reshape(4, 3, *spatial)
    there = WeightMap({"c": conv("c")}).to_jax({"c.weight": weight})["c/kernel"]
    assert there.shape == (*spatial, 3, 4)
    index = tuple(size - 1 for size in spatial)
    assert there[(*index, 2, 1)] == weight[(1, 2, *index)]


def test_names_of_leaves_can_be_given_on_both_sides() -> None:
    weight_map = WeightMap(
        {
            "a": dense("x", kernel="w", bias="b", torch_weight="W", torch_bias="B"),
            "c": conv("y", kernel="w", torch_weight="W"),
            "n": norm("n", scale="gamma", mean="mu", var="sigma", torch_mean="m", torch_var="v"),
            "e": embedding("e", embedding="table", torch_weight="rows"),
        }
    )
    named = {"x.W": np.ones((2, 3)), "x.B": np.ones(2), "y.W": np.ones((1, 2, 3)), "n.weight": np.ones(1)}
    named |= {"n.m": np.ones(1), "n.v": np.ones(1), "e.rows": np.ones((2, 2))}
    there = weight_map.to_jax(named)
    assert list(there) == ["a/w", "a/b", "c/w", "n/gamma", "n/mu", "n/sigma", "e/table"]
    assert set(weight_map.to_torch(there)) == {*named, "n.num_batches_tracked"}


def test_same_takes_a_whole_model_or_one_parameter() -> None:
    named = {"layers.0.weight": np.ones((2, 3)), "scale": np.ones(())}
    assert list(WeightMap({"": same("")}).to_jax(named)) == ["layers/0/weight", "scale"]
    one = WeightMap({"mlp/s": same("scale"), "mlp": same("layers")}).to_jax(named)
    assert list(one) == ["mlp/s", "mlp/0/weight"]


def test_same_lets_axes_of_size_one_differ() -> None:
    weight_map = WeightMap({"c": same("c")})
    there = weight_map.to_jax({"c.bias": np.arange(3)}, like={"c/bias": np.zeros((3, 1, 1))})
    assert there["c/bias"].shape == (3, 1, 1)
    assert weight_map.to_torch(there, like={"c.bias": np.zeros(3)})["c.bias"].tolist() == [0, 1, 2]


def test_a_count_of_batches_is_made_where_torch_keeps_one() -> None:
    weight_map = WeightMap({"n": norm("n"), "l": norm("l")})
    there = {"n/mean": np.ones(2), "n/var": np.ones(2), "l/scale": np.ones(2)}
    here = weight_map.to_torch(there, num_updates=7)
    assert "l.num_batches_tracked" not in here
    assert (here["n.num_batches_tracked"].dtype, int(here["n.num_batches_tracked"])) == (np.int64, 7)
    like = {name: np.zeros(2) for name in ("l.weight", "n.running_mean", "n.running_var")}
    assert set(weight_map.to_torch(there, like=like)) == set(like)


def test_moments_may_be_there_for_some_only() -> None:
    weight_map = WeightMap({"a": dense("a"), "n": norm("n")})
    like = {"a/kernel": np.zeros((3, 2)), "a/bias": np.zeros(2), "n/scale": np.zeros(1), "n/mean": np.zeros(1)}
    assert list(weight_map.to_jax({"a.bias": np.ones(2)}, like=like, partial=True)) == ["a/bias"]
    assert list(weight_map.to_torch({"n/scale": np.ones(1)}, partial=True)) == ["n.weight"]
    assert weight_map.to_torch({}, partial=True) == {}


def test_what_one_side_alone_has_is_left_alone() -> None:
    weight_map = WeightMap({"a": dense("a")}, torch_only=["mask", "pos"], jax_only=["rngs"])
    there = weight_map.to_jax(
        {"a.bias": np.ones(2), "mask": np.ones(9), "pos.table": np.ones(3)},
        like={"a/bias": np.zeros(2), "rngs/count": np.zeros(())},
    )
    assert list(there) == ["a/bias"]
    with pytest.raises(CheckpointMismatchError, match=r"masked \(1,\) is mapped to nothing"):
        weight_map.to_jax({"a.bias": np.ones(2), "masked": np.ones(1)})


NAMED = {"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2)}
WRONG = {
    "another shape": (
        {"fc": dense("fc")},
        {"fc/kernel": np.zeros((4, 2)), "fc/bias": np.zeros(2)},
        r"fc\.weight \(2, 3\) becomes fc/kernel \(3, 2\); expected \(4, 2\)\. Expected each array of both sides once",
    ),
    "mapped to nothing": (
        {"fc": dense("fc", torch_bias="b")},
        None,
        r"weight_map does not take these torch weights to jax: fc\.bias \(2,\) is mapped to nothing\. Expected",
    ),
    "missing": (
        {"fc": dense("fc")},
        {"fc/kernel": np.zeros((3, 2)), "fc/bias": np.zeros(2), "head/kernel": np.zeros((2, 1))},
        r"head/kernel \(2, 1\) is given nothing",
    ),
    "no such target": (
        {"fc": dense("fc")},
        {"fc/kernel": np.zeros((3, 2))},
        r"fc\.bias \(2,\) becomes fc/bias \(2,\), which is not there",
    ),
    "mapped twice": (
        {"fc": dense("fc"), "all": same("fc")},
        None,
        r"fc\.weight is mapped twice, by 'fc' and by 'all'; also: fc\.bias is mapped twice",
    ),
    "given twice": (
        {"fc": dense("fc"), "fc/bias": custom("fc.weight", to_jax=flip, to_torch=flip)},
        None,
        r"fc\.weight is mapped twice",
    ),
    "no such source": ({"fc": dense("fc"), "x": conv("y")}, None, r"'x' finds no y\.weight or y\.bias"),
    "another kind": (
        {"fc": conv("fc")},
        None,
        r"fc\.weight \(2, 3\) is not what conv takes \(it has 2 axes instead of 3 to 5\)",
    ),
    "another flatten": (
        {"fc": dense("fc", flattened=(2, 2))},
        None,
        r"fc\.weight \(2, 3\) is not what dense takes \(cannot reshape",
    ),
}


@pytest.mark.parametrize(("mapped", "like", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_map_says_where_it_is_wrong(mapped, like, message) -> None:
    with pytest.raises(CheckpointMismatchError, match=message):
        WeightMap(mapped).to_jax(NAMED, like=like)


def test_two_arrays_cannot_become_one() -> None:
    weight_map = WeightMap({"a/kernel": same("x"), "a": dense("y")})
    with pytest.raises(CheckpointMismatchError, match=r"a/kernel is given twice, by x and by y\.weight"):
        weight_map.to_jax({"x": np.ones(2), "y.weight": np.ones((2, 2))})


def test_the_first_difference_comes_in_full_and_a_long_rest_is_counted() -> None:
    named = {f"p{index}": np.ones(index) for index in range(14)}
    with pytest.raises(CheckpointMismatchError, match=r"jax: p0 \(0,\) is .*; also: p1 \(1,\) .*; and 3 more\. Exp"):
        WeightMap({}).to_jax(named)


def test_the_way_back_is_checked_too() -> None:
    with pytest.raises(CheckpointMismatchError, match=r"these jax weights to torch: fc/kernel \(3, 2\) becomes fc\."):
        WeightMap({"fc": dense("fc")}).to_torch({"fc/kernel": np.ones((3, 2))}, like={"fc.weight": np.ones((2, 4))})


@pytest.mark.parametrize("flattened", [(3,), (0, 2), 7, ("a", "b")])
def test_a_flattened_that_is_no_shape_is_refused(flattened) -> None:
    with pytest.raises(InvalidValueError, match=r"flattened of dense is .*; expected the shape that torch flattens"):
        dense("fc", flattened=flattened)


@pytest.mark.parametrize("make", [lambda: dense(3), lambda: same(None), lambda: norm("n", mean=1)])
def test_a_name_that_is_none_is_refused(make) -> None:
    with pytest.raises(InvalidTypeError, match=r"a name given to \w+ is .*; expected a string, such as 'fc1'"):
        make()


def test_a_map_of_something_else_is_refused() -> None:
    for layers in ({"fc": "fc"}, {3: dense("fc")}, [dense("fc")]):
        with pytest.raises(InvalidTypeError, match=r"expected a name in JAX for each layer of torch, such as"):
            WeightMap(layers)
    with pytest.raises(InvalidTypeError, match=r"torch_only of weight_map is 'mask'; expected a list of names"):
        WeightMap({}, torch_only="mask")
    with pytest.raises(InvalidTypeError, match=r"to_torch of custom is 3; expected a function"):
        custom("w", to_jax=flip, to_torch=3)


def test_a_map_can_be_pickled_and_is_found_at_the_front_door() -> None:
    weight_map = ph.weights.WeightMap({"fc": ph.weights.dense("fc", flattened=(1, 2)), "c": ph.weights.conv("c")})
    copy = pickle.loads(pickle.dumps(weight_map))  # noqa: S301 - our own bytes
    named = {"fc.weight": np.ones((3, 2)), "c.weight": np.ones((1, 1, 1))}
    assert bits(copy.to_jax(named)) == bits(weight_map.to_jax(named))
