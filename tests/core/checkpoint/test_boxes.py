"""Whether boxes tile an array, and what is wrong if they do not."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.checkpoint._boxes import find_fault, overlap_of, show_box, volume_of


@st.composite
def shapes_and_boxes(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    edges = [
        st.tuples(st.integers(0, size - 1), st.integers(1, size)).filter(lambda edge: edge[0] < edge[1])
        for size in shape
    ]
    return shape, draw(st.lists(st.tuples(*edges), max_size=5))


def count(shape, boxes):
    seen = np.zeros(shape, int)
    for box in boxes:
        seen[tuple(slice(*edge) for edge in box)] += 1
    return seen


@given(shapes_and_boxes())
def test_a_fault_is_found_exactly_where_counting_the_elements_finds_one(drawn):
    shape, boxes = drawn
    seen = count(shape, boxes)
    fault = find_fault(shape, boxes)
    assert (fault is None) == (seen == 1).all()
    if fault is not None:
        kind = "two parts have " if (seen > 1).any() else "no part has "
        assert fault.startswith(kind)
        box = eval(f"np.s_{fault.removeprefix(kind)}")  # noqa: S307 - our own text, an index
        assert (seen[box] > 1).all() if "two" in kind else (seen[box] == 0).all()


@given(shapes_and_boxes())
def test_overlaps_are_those_of_the_elements(drawn):
    shape, boxes = drawn
    for one, other in itertools.combinations(boxes, 2):
        both = overlap_of(one, other)
        common = (count(shape, [one, other]) == 2).sum()
        assert common == (0 if both is None else volume_of(both))


def test_boxes_outside_of_the_array_or_of_another_rank_are_told():
    assert find_fault((4,), [((2, 5),)]) == "the part [2:5] does not lie within [0:4]"
    assert find_fault((4,), [((0, 4), (0, 1))]) == "the part [0:4, 0:1] does not lie within [0:4]"
    assert find_fault((4,), [((3, 3),)]) == "the part [3:3] does not lie within [0:4]"


def test_a_scalar_needs_one_part_and_an_empty_array_none():
    assert find_fault((), [()]) is None
    assert find_fault((), []) == "no part has []"
    assert find_fault((), [(), ()]) == "two parts have []"
    assert find_fault((0, 3), []) is None


@pytest.mark.parametrize("grid", [(4096, 1), (1, 4096), (64, 64)])
def test_grids_of_thousands_of_processes_tile_an_array(grid):
    rows, columns = grid
    boxes = [((row * 3, row * 3 + 3), (column * 5, column * 5 + 5)) for row in range(rows) for column in range(columns)]
    assert find_fault((rows * 3, columns * 5), boxes[::-1]) is None
    assert find_fault((rows * 3, columns * 5), boxes[1:]) == f"no part has {show_box(boxes[0])}"
    assert find_fault((rows * 3, columns * 5), [*boxes, boxes[7]]) == f"two parts have {show_box(boxes[7])}"
