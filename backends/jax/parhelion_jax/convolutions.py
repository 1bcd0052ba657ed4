"""Convolutions in the layout that XLA's CPU has a fast kernel for, wherever they stand in a program.

XLA brings convolutions into it by itself, but in the outermost computation only. Inside a loop those of a gradient stay
as they are, which takes twenty times as long (https://github.com/jax-ml/jax/issues/12868). Steps are always inside one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

__all__ = ["with_channels_last"]

_jax: Any = jax  # it leaves some of it untyped
# Without narrowing: what is inside of something that is Any is Any.
_is: Callable[[Any, Any], bool] = isinstance
_PRIMITIVE = "conv_general_dilated"
# Their parameters hold functions beside programs, which would have to be changed as well.
_OPAQUE = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


def with_channels_last(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same with every convolution over (batch, spatial, features).

    Args:
        function: of pytrees of arrays; it is traced, and then run from its program.
    """

    def changed(*args: Any) -> Any:
        program, shape = _jax.make_jaxpr(function, return_shape=True)(*args)
        if not _has_convolution(program.jaxpr):
            return function(*args)
        results = _run(program.jaxpr, program.consts, _jax.tree.leaves(args))
        return _jax.tree.unflatten(_jax.tree.structure(shape), results)

    return changed


def _has_convolution(program: Any) -> bool:
    return any(
        equation.primitive.name == _PRIMITIVE or any(_has_convolution(each.jaxpr) for each in _inside(equation))
        for equation in program.eqns
    )


def _inside(equation: Any) -> list[Any]:
    """Return the closed programs in an equation: bodies of loops, branches, functions compiled by themselves."""
    found: list[Any] = []
    for value in equation.params.values():
        for each in value if _is(value, (tuple, list)) else [value]:
            if _is(each, Jaxpr):
                found.append(ClosedJaxpr(each, ()))
            elif _is(each, ClosedJaxpr):
                found.append(each)
    return found


def _run(program: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Run a program equation by equation, as ``jax.core.eval_jaxpr`` does."""
    values: dict[Any, Any] = dict(zip(program.constvars, constants, strict=True))
    values |= zip(program.invars, arguments, strict=True)

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for equation in program.eqns:
        made = _apply(equation, [read(atom) for atom in equation.invars])
        values |= zip(equation.outvars, made, strict=True)
    return [read(atom) for atom in program.outvars]


def _apply(equation: Any, arguments: list[Any]) -> Sequence[Any]:
    primitive = equation.primitive
    if primitive.name == _PRIMITIVE and equation.params["batch_group_count"] == 1:
        return [_convolve(*arguments, **equation.params)]
    parameters = equation.params
    if primitive.name not in _OPAQUE:
        parameters = {name: _changed(value) for name, value in parameters.items()}
    bound = primitive.get_bind_params(parameters)
    functions, rest = bound if _is(bound, tuple) else ((), bound)  # older releases of jax have both
    made = primitive.bind(*functions, *arguments, **rest)
    return made if primitive.multiple_results else [made]


def _changed(value: Any) -> Any:
    if _is(value, (tuple, list)) and any(_is(each, (Jaxpr, ClosedJaxpr)) for each in value):
        return type(value)(map(_changed, value))
    if _is(value, Jaxpr):
        closed = _changed(ClosedJaxpr(value, ())) if not value.constvars else None
        return closed.jaxpr if closed is not None and not closed.consts else value
    if not _is(value, ClosedJaxpr) or not _has_convolution(value.jaxpr):
        return value

    def run(*arguments: Any) -> list[Any]:
        return _run(value.jaxpr, value.consts, arguments)

    shapes = [_jax.ShapeDtypeStruct(each.shape, each.dtype, weak_type=each.weak_type) for each in value.in_avals]
    return _jax.make_jaxpr(run)(*shapes)


def _convolve(left: Any, right: Any, *, dimension_numbers: Any, **rest: Any) -> Any:
    """Return a convolution made over (batch, spatial, features), with the axes in the order that was asked for."""
    of_left, of_right, of_out = dimension_numbers
    # First batch, features, spatial axes; then out and in features, spatial axes; then as the first.
    left = jax.lax.transpose(left, (of_left[0], *of_left[2:], of_left[1]))
    right = jax.lax.transpose(right, (*of_right[2:], of_right[1], of_right[0]))
    count = left.ndim
    spatial = tuple(range(1, count - 1))
    images = (0, count - 1, *spatial)
    numbers = type(dimension_numbers)(images, (count - 1, count - 2, *range(count - 2)), images)
    kept = {name: value for name, value in rest.items() if name not in ("lhs_shape", "rhs_shape")}
    out = _jax.lax.conv_general_dilated_p.bind(left, right, dimension_numbers=numbers, **kept)
    back = [0] * count
    for place, axis in enumerate((of_out[0], *of_out[2:], of_out[1])):
        back[axis] = place
    return jax.lax.transpose(out, back)
