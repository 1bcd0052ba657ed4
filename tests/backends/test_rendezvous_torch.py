"""Processes that are started again meet each other in a store that keeps what those before them have left."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("torch")

from torch.distributed import HashStore

from parhelion.errors import WorldError
from parhelion_torch.rendezvous import agree


def meet(store, ranks, size, seconds=20.0):
    """Return the word of each rank, None for one that has given up."""
    words = {}

    def run(rank):
        try:
            words[rank] = agree(store, rank, size, seconds)
        except WorldError:
            words[rank] = None

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return words


def test_each_start_has_one_word_for_all_and_another_one_than_the_last() -> None:
    store = HashStore()
    words = [meet(store, range(3), 3) for _ in range(4)]
    assert all(len({*each.values()}) == 1 for each in words)
    assert len({each[0] for each in words}) == 4


@pytest.mark.parametrize("there", [[0], [1, 2], [0, 2]])
def test_what_a_start_that_was_not_complete_has_left_is_met_by_nobody(there) -> None:
    store = HashStore()
    meet(store, range(3), 3)
    assert {*meet(store, there, 3, 0.3).values()} == {None}
    (word,) = {*meet(store, range(3), 3).values()}
    assert word is not None


def test_who_comes_late_is_waited_for() -> None:
    store, words = HashStore(), {}
    meet(store, range(2), 2)
    first = threading.Thread(target=lambda: words.update(meet(store, [0], 2)))
    first.start()
    while not store.check(["parhelion/call"]):
        pass
    words |= meet(store, [1], 2)
    first.join()
    assert words[0] == words[1] is not None


def test_one_whose_others_do_not_come_says_so() -> None:
    with pytest.raises(WorldError, match=r"process 1 of 2 has not met all others in the store of torchrun"):
        agree(HashStore(), 1, 2, 0.1)
