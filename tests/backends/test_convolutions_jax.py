"""Convolutions inside a loop: the same numbers, in the layout that the CPU has a fast kernel for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("parhelion_jax")

import jax
import jax.numpy as jnp

from parhelion_jax.convolutions import with_channels_last

FAST = ("b01f", "01io", "b01f")


def convolutions(function, *args) -> list[str]:
    """Return the layouts of all convolutions in a program, loops and branches included."""

    def find(program):
        for equation in program.eqns:
            if equation.primitive.name == "conv_general_dilated":
                numbers = equation.params["dimension_numbers"]
                yield tuple(letters(spec, names) for spec, names in zip(numbers, ("bf", "oi", "bf"), strict=True))
            for value in equation.params.values():
                for each in value if isinstance(value, (tuple, list)) else [value]:
                    inner = getattr(each, "jaxpr", each)
                    if hasattr(inner, "eqns"):
                        yield from find(inner)

    return list(find(jax.make_jaxpr(function)(*args).jaxpr))


def letters(spec, names) -> str:
    found = [""] * len(spec)
    for name, axis in zip((*names, *"012"), spec, strict=False):
        found[axis] = name
    return "".join(found)


@st.composite
def cases(draw):
    orders = [draw(st.permutations("NCHW")), draw(st.permutations("OIHW")), draw(st.permutations("NCHW"))]
    groups = draw(st.sampled_from([1, 2]))
    window = {
        "window_strides": draw(st.sampled_from([(1, 1), (2, 1)])),
        "padding": draw(st.sampled_from(["SAME", "VALID", ((1, 2), (0, 1))])),
        "rhs_dilation": draw(st.sampled_from([(1, 1), (2, 1)])),
        "feature_group_count": groups,
    }
    return ["".join(order) for order in orders], window, groups


@settings(max_examples=25, deadline=None)
@given(cases())
def test_every_convolution_and_its_gradients_keep_their_values(case) -> None:
    (left, right, out), window, groups = case
    sizes = {"N": 3, "C": 4, "H": 7, "W": 6, "O": 6, "I": 4 // groups}
    kernel_sizes = {**sizes, "H": 3, "W": 2}
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal([sizes[each] for each in left], np.float32))
    kernel = jnp.asarray(rng.standard_normal([kernel_sizes[each] for each in right], np.float32))

    def loss(images, kernel):
        made = jax.lax.conv_general_dilated(images, kernel, dimension_numbers=(left, right, out), **window)
        return jnp.sin(made).sum(), made

    plain = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    for one, other in zip(
        jax.tree.leaves(jax.jit(plain)(images, kernel)),
        jax.tree.leaves(jax.jit(with_channels_last(plain))(images, kernel)),
        strict=True,
    ):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def network(params, x):
    def block(x, kernel):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        return jax.nn.relu(x)

    x = jax.jit(block)(x, params["first"])
    x = jax.checkpoint(block)(x, params["second"])
    x, _ = jax.lax.scan(lambda x, kernel: (block(x, kernel), None), x, params["loop"])
    x = jax.lax.cond(x.sum() > 0, lambda: block(x, params["second"]), lambda: x)
    return jnp.square(x).mean()


@pytest.fixture
def arguments():
    rng = np.random.default_rng(1)
    params = {
        "first": rng.standard_normal((4, 2, 3, 3), np.float32),
        "second": rng.standard_normal((4, 4, 3, 3), np.float32) * 0.2,
        "loop": rng.standard_normal((3, 4, 4, 3, 3), np.float32) * 0.2,
    }
    return params, rng.standard_normal((2, 2, 5, 5), np.float32)


def test_convolutions_are_found_in_compiled_functions_checkpoints_loops_and_branches(arguments) -> None:
    plain = jax.value_and_grad(network)
    assert set(convolutions(plain, *arguments)) - {FAST}
    changed = with_channels_last(plain)
    found = convolutions(changed, *arguments)
    assert len(found) >= len(convolutions(plain, *arguments))
    assert set(found) == {FAST}
    for one, other in zip(
        jax.tree.leaves(jax.jit(plain)(*arguments)), jax.tree.leaves(jax.jit(changed)(*arguments)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_program_without_convolutions_runs_as_it_is() -> None:
    calls = itertools.count()

    def function(x):
        next(calls)
        return {"y": x + 1, "none": None}

    made = with_channels_last(function)(jnp.ones(2))
    assert made["none"] is None
    np.testing.assert_array_equal(made["y"], 2 * np.ones(2))
    assert next(calls) == 2  # traced, then called
