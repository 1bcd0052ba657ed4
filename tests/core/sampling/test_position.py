import attrs
import numpy as np
import pytest

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.sampling import Position


def test_a_position_is_a_value_ordered_by_epoch_then_offset():
    assert Position() == Position(0, 0)
    assert Position(1, 0) > Position(0, 10**15)
    assert Position(1, 3) < Position(1, 4)
    assert len({Position(1, 2), Position(1, 2)}) == 1


def test_a_position_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Position(1, 2).offset = 3
    assert not hasattr(Position(1, 2), "__dict__")


def test_numpy_integers_become_plain_ones():
    position = Position(np.int64(1), np.uint32(2))
    assert position == Position(1, 2)
    assert type(position.epoch) is type(position.offset) is int


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (-1, 0),
            InvalidValueError,
            r"epoch of a position is -1; expected an integer >= 0\. The first epoch is 0\.",
        ),
        (
            (0, -2),
            InvalidValueError,
            r"offset of a position is -2; expected an integer >= 0\. It counts samples",
        ),
        ((0, 1.0), InvalidTypeError, r"offset of a position is 1\.0; expected an integer >= 0"),
        ((True, 0), InvalidTypeError, r"epoch of a position is True; expected an integer >= 0"),
    ],
)
def test_what_is_no_position_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Position(*arguments)
