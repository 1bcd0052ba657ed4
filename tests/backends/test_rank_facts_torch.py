"""What holds in each of two ranks of torch, and how these end."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import numpy as np

from parhelion_torch.sharded import local_box
from support import torch_launch

FACTS = Path(torch_launch.__file__).with_name("torch_rank_facts.py")
ENDING = FACTS.with_name("torch_ending.py")
NAMES = [line[4 : line.index("(")] for line in FACTS.read_text().splitlines() if line.startswith("def fact_")]

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> list[dict[str, str | None]]:
    folder = tmp_path_factory.mktemp("facts")
    torch_launch.run_ranks(2, FACTS, folder, seconds=200)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.removeprefix("fact_").replace("_", " "))
def test_in_both_of_two_ranks(facts, name) -> None:
    assert not any(each[name] for each in facts), "\n".join(filter(None, (each[name] for each in facts)))


@pytest.mark.parametrize("kind", ["spread", "replicated"])
@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.endurance)])
def test_runs_under_torchrun_end_cleanly_whatever_the_script_still_holds(kind, count, request) -> None:
    if count > 1 and "endurance" not in request.config.option.markexpr:
        pytest.skip("takes minutes; run with -m endurance")
    for _ in range(count):
        ended = torch_launch.run_torchrun(2, ENDING, kind, seconds=200)
        assert "terminate called" not in ended.text
        assert "Traceback" not in ended.text
        assert sorted(line for line in ended.text.splitlines() if line.startswith("done")) == ["done 0", "done 1"]


def test_a_group_that_the_user_has_made_is_used_and_left_to_the_user() -> None:
    for ended in torch_launch.run_ranks(2, ENDING, "users", seconds=100):
        assert "is still there True" in ended.text


def test_an_error_on_one_rank_ends_all() -> None:
    first, second = torch_launch.run_ranks(2, ENDING, "fails", seconds=100, check=False)
    assert (first.status, second.status) == (1, 1)
    # The first waits in a collective, and says whose error it was that ended it.
    assert "WorldError: " in first.text
    assert "process 1 (host" in first.text
    for text in (first.text, second.text):
        assert "RuntimeError: out of luck" in text


# -- boxes ------------------------------------------------------------------------------------------------------------


@st.composite
def spreads(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], list[Any]]:
    """Return the shape of a tensor, the shape of a mesh, and how the one is spread over the other."""
    from torch.distributed.tensor import Replicate, Shard

    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    mesh = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    axes = st.integers(0, len(shape) - 1)
    placements = [draw(st.one_of(st.just(Replicate()), st.builds(Shard, axes))) for _ in mesh]
    return shape, mesh, placements


@given(spreads())
def test_parts_make_up_the_whole_and_each_element_is_written_once(spread) -> None:
    from parhelion_torch.sharded import writes_part

    shape, mesh, placements = spread
    written = np.zeros(shape, int)
    for coordinate in np.ndindex(mesh):
        here = SimpleNamespace(shape=mesh, get_coordinate=lambda place=coordinate: list(place))
        tensor: Any = SimpleNamespace(shape=shape, ndim=len(shape), device_mesh=here, placements=placements)
        start, size = local_box(tensor, "x")
        box = tuple(slice(begin, begin + length) for begin, length in zip(start, size, strict=True))
        assert np.zeros(shape)[box].shape == size
        written[box] += writes_part(tensor)
    assert (written == 1).all()


@given(spreads())
def test_parts_are_those_of_torch(spread) -> None:
    utils = pytest.importorskip("torch.distributed.tensor._utils")
    if not hasattr(utils, "_compute_local_shape_and_global_offset"):
        pytest.skip("another release of torch")
    shape, mesh, placements = spread
    for coordinate in np.ndindex(mesh):
        here = SimpleNamespace(shape=mesh, get_coordinate=lambda place=coordinate: list(place))
        tensor: Any = SimpleNamespace(shape=shape, ndim=len(shape), device_mesh=here, placements=placements)
        start, size = local_box(tensor, "x")
        theirs = utils._compute_local_shape_and_global_offset(shape, mesh, lambda n, c=coordinate: c[n], placements)
        assert size == tuple(theirs[0])
        if 0 not in size:
            assert start == tuple(theirs[1])
