"""Who is left, and what is told at once: for backends that end with others in their own way."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from parhelion.processes import World, open_world

SECONDS = 20


class Board:
    """Where the ranks of one process share what they have."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.all_there = threading.Barrier(size)

    def share_of(self, rank: int) -> Callable[[Any], list[Any]]:
        def share(value: Any) -> list[Any]:
            self.values[rank] = value
            self.all_there.wait(SECONDS)
            return self.values

        return share


@pytest.fixture
def heard() -> list[queue.SimpleQueue[str]]:
    return [queue.SimpleQueue() for _ in range(3)]


@pytest.fixture
def worlds(heard) -> Iterator[list[World]]:
    """Three worlds of this process; none ends it."""
    board = Board(3)

    def open_one(rank: int) -> World:
        return open_world(
            rank, rank, 3, board.share_of(rank), host="127.0.0.1", grace=10 * SECONDS, on_failure=heard[rank].put
        )

    with ThreadPoolExecutor() as threads:
        opened = [*threads.map(open_one, range(3))]
    yield opened
    for world in reversed(opened):
        world.close(timeout=1)


def wait_for(has_come: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not has_come() and time.monotonic() < deadline:
        time.sleep(0.005)
    return has_come()


def test_the_first_is_alone_once_all_others_have_parted(worlds) -> None:
    assert not worlds[0].is_alone
    worlds[1].close()
    assert not worlds[0].is_alone
    worlds[2].close()
    assert wait_for(lambda: worlds[0].is_alone)


def test_nobody_needs_another_one_than_the_first(worlds) -> None:
    assert worlds[1].is_alone
    assert World().is_alone


def test_others_hear_at_once_what_one_has_failed_with_and_it_does_not_hear_itself(worlds, heard) -> None:
    worlds[1].fail("ValueError: the reason")
    for rank in (0, 2):
        told = heard[rank].get(timeout=SECONDS)
        assert told.startswith("process 1 (")
        assert told.endswith("ValueError: the reason")
    assert heard[1].empty()
