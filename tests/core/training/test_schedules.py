import copy
import math
import operator
import pickle
import types

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidTypeError, InvalidValueError, UnknownNameError
from parhelion.training import _schedules as schedules
from parhelion.training._schedules import (
    SCHEDULE_REGISTRY,
    Schedule,
    chain,
    constant,
    cosine,
    create_schedule,
    exponential,
    inverse_sqrt,
    linear,
    piecewise,
    polynomial,
    step,
    warmup,
)

values = st.floats(-1e6, 1e6)
positives = st.floats(1e-8, 1e6)
counts = st.integers(1, 10_000)
updates = st.integers(0, 50_000)

falling = st.one_of(
    st.builds(linear, start=values, stop=values, num_updates=counts),
    st.builds(cosine, start=values, num_updates=counts, stop=values),
    st.builds(polynomial, start=values, num_updates=counts, power=st.floats(0.1, 8), stop=values),
    st.builds(exponential, start=positives, stop=positives, num_updates=counts),
)
endless = st.one_of(
    st.builds(constant, values),
    st.builds(step, start=values, every=counts, factor=st.floats(1e-3, 1)),
    st.builds(inverse_sqrt, start=values, timescale=counts),
    st.lists(st.tuples(counts, values), min_size=1, unique_by=operator.itemgetter(0), max_size=5).map(
        lambda pairs: piecewise([value for _, value in pairs], sorted(count for count, _ in pairs)[1:])
    ),
)
simple = falling | endless


def composed(inner):
    warmups = st.builds(warmup, inner, num_updates=st.integers(0, 2000), start=values)
    return warmups | st.builds(chain, st.lists(st.tuples(counts, inner), min_size=1, max_size=3))


any_schedule = simple | composed(simple) | composed(composed(simple))


class Traced:
    """A float32 array whose values cannot be asked for, as under a compiler.

    Division multiplies by the reciprocal and does not round the product, as a fused multiply-add does.
    """

    def __init__(self, array):
        self._array = np.asarray(array)
        assert np.isfinite(self._array).all(), "a branch that is thrown away may not be nan either"

    def __array_namespace__(self):
        names = ("clip", "where", "sin", "sqrt")
        return types.SimpleNamespace(**{name: lift(getattr(np, name)) for name in names})

    def __truediv__(self, other):
        return Traced(np.float64(self._array) * np.float64(np.float32(1) / np.float32(other)))

    def __rtruediv__(self, other):
        return lift(operator.truediv)(other, self)

    __bool__ = __float__ = __int__ = __index__ = __array__ = None


def lift(function):
    def lifted(*args):
        result = function(*[arg._array if isinstance(arg, Traced) else arg for arg in args])
        return Traced(result.astype(np.float32) if result.dtype == np.float64 else result)

    return lifted


for name in ("add", "sub", "mul", "pow", "floordiv"):
    plain = getattr(operator, name)
    setattr(Traced, f"__{name}__", lambda self, other, plain=plain: lift(plain)(self, other))
    setattr(Traced, f"__r{name}__", lambda self, other, plain=plain: lift(plain)(other, self))
Traced.__ge__ = lift(operator.ge)


def scale(value):
    """Return the largest of the floats that a schedule is made of."""
    if isinstance(value, float):
        return abs(value)
    inner = value if isinstance(value, tuple) else attrs.astuple(value, recurse=False) if attrs.has(type(value)) else ()
    return max(map(scale, inner), default=0.0)


class TestEverySchedule:
    @given(any_schedule, st.lists(updates, min_size=1, max_size=20))
    def test_an_array_of_updates_gives_the_scalar_results_bit_for_bit(self, schedule, asked):
        together = schedule(np.array(asked))
        assert together.dtype == np.float64
        assert together.shape == (len(asked),)
        assert together.tolist() == [schedule(update) for update in asked]

    @given(any_schedule, updates)
    def test_a_number_gives_a_finite_python_float_whatever_kind_of_integer_it_is(self, schedule, update):
        value = schedule(update)
        assert type(value) is float
        assert math.isfinite(value)
        assert schedule(np.int64(update)) == value
        assert schedule(np.array(update)) == value
        assert type(schedule(np.array(update))) is float

    @given(any_schedule, st.lists(updates, min_size=1, max_size=20))
    def test_a_traced_array_is_enough(self, schedule, asked):
        traced = schedule(Traced(np.array(asked, np.int32)))
        expected = schedule(np.array(asked))
        assert traced._array.shape == (len(asked),)
        np.testing.assert_allclose(traced._array, expected, rtol=5e-3, atol=1e-4 * scale(schedule) + 1e-37)

    @given(any_schedule, st.integers(-1000, -1))
    def test_before_zero_the_first_value_holds(self, schedule, update):
        assert schedule(update) == schedule(0)

    @given(any_schedule)
    def test_it_is_a_value_that_pickles_copies_compares_and_hashes(self, schedule):
        for same in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):  # noqa: S301 - our own bytes
            assert same == schedule
            assert hash(same) == hash(schedule)
            assert same(17) == schedule(17)

    @given(any_schedule)
    def test_its_repr_is_the_call_that_makes_it(self, schedule):
        assert eval(repr(schedule), vars(schedules)) == schedule  # noqa: S307 - it is our own text

    def test_it_cannot_be_changed(self):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            constant(0.1).value = 0.2

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64, np.float32])
    def test_small_and_unsigned_integers_do_not_wrap_around(self, dtype):
        schedule = chain([(50, warmup(cosine(0.1, 1000), 20)), (1000, step(1, 3, 0.5))])
        asked = [0, 7, 19, 20, 21, 60, 127]
        assert schedule(np.array(asked, dtype)).tolist() == [schedule(update) for update in asked]

    def test_a_matrix_of_updates_keeps_its_shape(self):
        assert warmup(cosine(1, 9), 3)(np.arange(12).reshape(3, 4)).shape == (3, 4)

    def test_what_is_no_number_and_no_array_is_refused(self):
        with pytest.raises(
            InvalidTypeError, match=r"update is '3'; expected a number, or an array .* Pass int\(update\)\."
        ):
            constant(0.1)("3")


class TestSchedulesWithAnEnd:
    @given(falling)
    def test_both_ends_are_exact_and_the_last_value_holds(self, schedule):
        assert schedule(0) == schedule.start
        assert schedule(schedule.num_updates) == schedule.stop
        assert schedule(schedule.num_updates + 1) == schedule.stop
        assert schedule(10**12) == schedule.stop

    @given(falling, updates)
    def test_no_value_lies_outside_the_two_ends(self, schedule, update):
        low, high = sorted((schedule.start, schedule.stop))
        assert low <= schedule(update) <= high

    @given(falling, updates)
    def test_it_goes_one_way(self, schedule, update):
        here, there = schedule(update), schedule(update + 1)
        tolerance = 1e-15 * max(abs(schedule.start), abs(schedule.stop))
        if schedule.start <= schedule.stop:
            assert here <= there + tolerance
        else:
            assert here >= there - tolerance

    @given(st.integers(1, 2000))
    def test_a_traced_division_that_lands_above_one_makes_no_nan(self, num_updates):
        last = polynomial(1.0, num_updates, 0.5, stop=0.25)(Traced(np.array([num_updates], np.int32)))
        assert last._array.tolist() == [0.25]

    def test_rounding_carries_no_value_past_the_end(self):
        almost_there = polynomial(0.000473, 1000, 8, stop=5.1200000000000004e-05)
        assert almost_there.start + (almost_there.stop - almost_there.start) < almost_there.stop
        assert almost_there(999) == almost_there.stop

    def test_the_middles_are_those_of_the_formulas(self):
        assert linear(1, 0, 10)(3) == pytest.approx(0.7)
        assert cosine(1, 10)(5) == pytest.approx(0.5)
        assert cosine(1, 100, stop=0.2)(30) == pytest.approx(0.2 + 0.4 * (1 + math.cos(0.3 * math.pi)))
        assert polynomial(1, 10, 2, stop=0.5)(4) == pytest.approx(0.5 + 0.5 * 0.6**2)
        assert exponential(1, 1e-4, 4)(1) == pytest.approx(0.1)


class TestEndlessSchedules:
    def test_step_multiplies_after_every_so_many_updates(self):
        assert [step(1, 2, 0.5)(update) for update in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]

    def test_a_step_so_late_that_it_underflows_is_zero(self):
        assert step(1, 1, 0.1)(100_000) == 0.0
        assert step(1, 1, 0.1)(np.array([100_000])).tolist() == [0.0]

    def test_piecewise_takes_the_next_value_at_the_boundary(self):
        schedule = piecewise([1, 0.5, 0.25], [2, 4])
        assert [schedule(update) for update in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]

    def test_piecewise_of_one_value_is_constant(self):
        assert piecewise([0.5], [])(np.arange(3)).tolist() == [0.5] * 3

    @given(st.integers(1, 10_000), updates)
    def test_inverse_sqrt_behind_its_warmup_is_the_transformers_schedule(self, timescale, update):
        ours = warmup(inverse_sqrt(1.0, timescale), timescale)
        theirs = math.sqrt(timescale) * min(max(update, 1) ** -0.5, update * timescale**-1.5)
        assert ours(update) == pytest.approx(theirs, rel=1e-12)

    def test_inverse_sqrt_is_half_after_three_timescales(self):
        assert inverse_sqrt(0.3, 100)(300) == pytest.approx(0.15)


class TestWarmup:
    @given(simple, counts, values, updates)
    def test_after_the_line_the_schedule_begins_at_its_own_zero(self, schedule, num_updates, start, update):
        warmed = warmup(schedule, num_updates, start)
        assert warmed(0) == start
        assert warmed(num_updates + update) == schedule(update)

    @given(simple, st.integers(1, 1000), values, st.integers(0, 999))
    def test_on_the_line_no_step_is_longer_than_its_share(self, schedule, num_updates, start, update):
        warmed = warmup(schedule, num_updates, start)
        update = min(update, num_updates - 1)
        rise = abs(warmed(update + 1) - warmed(update))
        whole = abs(schedule(0) - start)
        assert rise == pytest.approx(whole / num_updates, rel=1e-6, abs=1e-9 * max(1, abs(start)))

    @given(simple, updates)
    def test_without_updates_it_is_the_schedule(self, schedule, update):
        assert warmup(schedule, 0)(update) == schedule(update)

    def test_any_function_of_the_update_will_do(self):
        assert warmup(lambda update: 1 / (1 + update), 4)(2) == 0.5
        assert warmup(lambda update: np.float32(0.5) + 0 * update, 4)(2) == 0.25


class TestChain:
    @given(st.lists(st.tuples(counts, simple), min_size=1, max_size=4), updates)
    def test_the_part_that_an_update_falls_into_speaks_at_its_own_update(self, parts, update):
        begin = 0
        for num_updates, schedule in parts:
            if update < begin + num_updates:
                assert chain(parts)(update) == schedule(update - begin)
                return
            begin += num_updates
        assert chain(parts)(update) == parts[-1][1](parts[-1][0])

    @given(st.lists(counts, min_size=2, max_size=5), st.data())
    def test_parts_that_meet_make_a_line_without_a_jump(self, lengths, data):
        points = data.draw(st.lists(values, min_size=len(lengths) + 1, max_size=len(lengths) + 1))
        pairs = zip(lengths, points, points[1:], strict=False)
        schedule = chain([(n, linear(a, b, n)) for n, a, b in pairs])
        steepest = max(abs(b - a) / n for n, a, b in zip(lengths, points, points[1:], strict=False))
        everywhere = schedule(np.arange(min(sum(lengths) + 2, 50_000)))
        assert np.abs(np.diff(everywhere)).max() <= steepest * (1 + 1e-6) + 1e-9

    def test_chains_of_chains_are_flat(self):
        inner = chain([(2, constant(1)), (2, constant(2))])
        nested = chain([(4, inner), (2, constant(3))])
        flat = chain([(2, constant(1)), (2, constant(2)), (2, constant(3))])
        assert nested(np.arange(9)).tolist() == flat(np.arange(9)).tolist()

    def test_restarts_are_a_chain_of_cosines(self):
        restarts = chain([(2, cosine(1, 2)), (4, cosine(1, 4))])
        assert [restarts(update) for update in (0, 2, 6)] == [1, 1, 0]
        assert restarts(4) == pytest.approx(0.5)


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: constant("a"), InvalidTypeError, r"value of constant is 'a'; expected a number\."),
            (lambda: constant(True), InvalidTypeError, r"value of constant is True; expected a number\."),
            (lambda: constant(math.nan), InvalidValueError, r"value of constant is nan; expected a finite"),
            (lambda: linear(0, math.inf, 3), InvalidValueError, r"stop of linear is inf; expected a finite"),
            (
                lambda: cosine(1, 0),
                InvalidValueError,
                r"num_updates of cosine is 0; expected an integer >= 1",
            ),
            (
                lambda: cosine(1, 1e3),
                InvalidTypeError,
                r"num_updates of cosine is 1000\.0; exp",
            ),
            (
                lambda: cosine(1, True),
                InvalidTypeError,
                r"num_updates of cosine is True; exp",
            ),
            (
                lambda: polynomial(1, 9, 0),
                InvalidValueError,
                r"power of polynomial is 0\.0; expected .* > 0",
            ),
            (
                lambda: exponential(0, 1, 9),
                InvalidValueError,
                r"start of exponential is 0\.0; exp.* > 0",
            ),
            (
                lambda: exponential(1e-300, 1e300, 9),
                InvalidValueError,
                r"start and stop of exponential are 1e-300 and 1e\+300; expected a ratio .* Chain two sch",
            ),
            (
                lambda: inverse_sqrt(1, -5),
                InvalidValueError,
                r"timescale of inverse_sqrt is -5; exp",
            ),
            (lambda: step(1, 0, 0.5), InvalidValueError, r"every of step is 0; expected an integer >= 1"),
            (lambda: step(1, 5, 0), InvalidValueError, r"factor of step is 0\.0; expected a number"),
            (
                lambda: step(1, 5, 2),
                InvalidValueError,
                r"factor of step is 2\.0; expected 0 < factor <= 1\. Write exponential",
            ),
            (
                lambda: piecewise(0.1, [5]),
                InvalidTypeError,
                r"an argument of piecewise is 0\.1; expected two lists of numbers",
            ),
            (
                lambda: piecewise([1, "b"], [5]),
                InvalidTypeError,
                r"values\[1\] of piecewise is 'b'; exp",
            ),
            (
                lambda: piecewise([1, 2], [0]),
                InvalidValueError,
                r"boundaries\[0\] of piecewise is 0; exp",
            ),
            (
                lambda: piecewise([1, 2, 3], [5, 5]),
                InvalidValueError,
                r"boundaries of piecewise are \(5, 5\); expected each larger",
            ),
            (
                lambda: piecewise([1, 2], [5, 6]),
                InvalidValueError,
                r"piecewise has 2 values and 2 boundaries; expected one value more",
            ),
            (
                lambda: warmup(0.1, 5),
                InvalidTypeError,
                r"schedule of warmup is 0\.1; expected a schedule .* Write constant\(value\)",
            ),
            (
                lambda: warmup(constant(1), -1),
                InvalidValueError,
                r"num_updates of warmup is -1; expected an integer >= 0",
            ),
            (
                lambda: warmup(lambda _: "x", 5),
                InvalidTypeError,
                r"schedule\(0\) of warmup is 'x'; expected a number",
            ),
            (lambda: chain([]), InvalidValueError, r"parts of chain is empty; expected at least one pair"),
            (
                lambda: chain([constant(1)]),
                InvalidTypeError,
                r"parts of chain is \[constant.*\]; expected pairs \(num_updates, schedule\)",
            ),
            (
                lambda: chain([(0, constant(1))]),
                InvalidValueError,
                r"num_updates of chain part 0 is 0; expected an integer >= 1",
            ),
            (
                lambda: chain([(5, constant(1)), (5, 2.0)]),
                InvalidTypeError,
                r"schedule of chain part 1 is 2\.0; expected a schedule",
            ),
        ],
    )
    def test_a_field_that_cannot_work_is_named_with_its_value(self, make, error, message):
        with pytest.raises(error, match=message):
            make()


class TestRegistry:
    ARGUMENTS = types.MappingProxyType(
        {
            "chain": {"parts": [(5, constant(1))]},
            "constant": {"value": 0.1},
            "cosine": {"start": 0.1, "num_updates": 9},
            "exponential": {"start": 0.1, "stop": 0.01, "num_updates": 9},
            "inverse_sqrt": {"start": 0.1, "timescale": 9},
            "linear": {"start": 0.1, "stop": 0.0, "num_updates": 9},
            "piecewise": {"values": [1, 2], "boundaries": [3]},
            "polynomial": {"start": 0.1, "num_updates": 9, "power": 2},
            "step": {"start": 0.1, "every": 3, "factor": 0.5},
            "warmup": {"schedule": constant(1), "num_updates": 3},
        }
    )

    def test_every_schedule_is_registered_under_the_name_it_is_written_with(self):
        assert SCHEDULE_REGISTRY.names() == sorted(self.ARGUMENTS)
        for name, arguments in self.ARGUMENTS.items():
            schedule = create_schedule(name, **arguments)
            assert isinstance(schedule, Schedule)
            assert schedule == getattr(schedules, name)(**arguments)

    def test_an_unknown_name_is_answered_with_near_ones(self):
        with pytest.raises(UnknownNameError, match=r"schedule name is 'cosin'; .* Did you mean 'cosine'"):
            create_schedule("cosin")
