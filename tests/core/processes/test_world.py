"""What processes that train together say to each other, and what becomes of all when something becomes of one."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from parhelion.errors import InvalidValueError, WorldError
from parhelion.processes import World, open_world
from support import ranks
from support.ranks import start_ranks

FACTS = Path(ranks.__file__).with_name("world_facts.py")
FAILURES = Path(ranks.__file__).with_name("world_failures.py")
ROUNDS = Path(ranks.__file__).with_name("meeting_rounds.py")


@pytest.fixture(scope="module")
def facts() -> list[dict]:
    with start_ranks(3, FACTS) as running:
        assert running.end(60) == [0, 0, 0], running.everything()
        return [json.loads(running.output(rank).splitlines()[-1]) for rank in range(3)]


def column(facts, name) -> list:
    return [each[name] for each in facts]


def test_each_process_knows_who_it_is(facts) -> None:
    assert column(facts, "numbers") == [[0, 0, 3], [1, 1, 3], [2, 2, 3]]


def test_values_are_gathered_by_rank(facts) -> None:
    assert column(facts, "gathered") == [[{"rank": rank, "text": "x" * rank} for rank in range(3)]] * 3


def test_only_the_first_gets_what_is_gathered_to_it(facts) -> None:
    assert column(facts, "first") == [[0, 1, 2], [], []]


def test_values_larger_than_any_buffer_are_gathered(facts) -> None:
    assert column(facts, "large") == [[20_000_000, 40_000_000, 60_000_000]] * 3


def test_a_barrier_waits_for_the_last(facts) -> None:
    assert column(facts, "barrier") == [True] * 3


def test_threads_behind_the_loop_do_not_get_in_its_way(facts) -> None:
    before = sorted(f"before {turn}" for turn in range(20))
    behind = sorted(f"behind {turn}" for turn in range(20))
    assert column(facts, "threads") == [[before, behind, [1] * 20, [1] * 20]] * 3


def test_topics_are_apart_whatever_order_threads_run_in(facts) -> None:
    assert column(facts, "topics") == [[["a"] * 3, ["b"] * 3]] * 3


def test_a_second_thread_at_one_topic_is_refused(facts) -> None:
    first, *others = column(facts, "same topic")
    assert first == (
        "gather is called while another thread of this process waits in a call of topic 'one'; expected one at a time. "
        "Give each thread that calls a topic of its own, the same in all processes. [['behind', 'behind', 'behind']]"
    )
    assert others == [str(["behind"] * 3)] * 2


def test_what_cannot_be_pickled_is_refused_where_it_is_given(facts) -> None:
    assert column(facts, "unpicklable") == ["cannot pickle '_thread.lock' object"] * 3


def test_signal_handlers_run_and_ask_and_raise_while_others_are_waited_for(facts) -> None:
    heard = ["signal 0", "signal 1"]
    assert column(facts, "interrupted") == [[False, True, heard], [True, True, heard], [False, True, heard]]


def test_a_fork_is_no_part_of_the_world(facts) -> None:
    for text, gathered in column(facts, "fork"):
        assert text.startswith("this process was forked from one of a world and is none of it; expected calls from")
        assert gathered == [0, 1, 2]


def test_a_closed_world_says_so(facts) -> None:
    text = (
        "this world is closed; expected calls before close() only. Close it when nothing is left to be done together."
    )
    assert column(facts, "closed") == [[text, text, None]] * 3
    assert column(facts, "failure") == [None] * 3


@pytest.mark.processes
def test_hundreds_of_signals_to_any_rank_are_heard_in_front_of_the_same_unit() -> None:
    with start_ranks(3, ROUNDS, 200) as running:
        assert running.end(120) == [0, 0, 0], running.everything()[-3000:]
        logs = [running.output(rank) for rank in range(3)]
    assert logs[0] == logs[1] == logs[2]
    assert len(re.findall(r"^heard .*\bstop\b", logs[0], re.MULTILINE)) == 200


def run_failure(case, expected, *, size=3, seconds=30) -> list[str]:
    with start_ranks(size, FAILURES, case) as running:
        statuses = running.end(seconds)
        outputs = [running.output(rank) for rank in range(size)]
        assert statuses == expected, running.everything()
    return outputs


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_by_the_others_that_wait_for_it(victim) -> None:
    """They wait in a gather and in front of a unit."""
    outputs = run_failure(f"kill-{victim}", [-signal.SIGKILL if rank == victim else 0 for rank in range(3)])
    for rank in {0, 1, 2} - {victim}:
        pattern = rf"process {victim} \(host \S+, pid \d+\) is gone without a word; expected every process to part in"
        assert len(re.findall(pattern, outputs[rank])) == 3  # of gather, of enter, of failure


@pytest.mark.parametrize("victim", [0, 2])
def test_an_exception_reaches_all_with_its_traceback(victim) -> None:
    outputs = run_failure(f"raise-{victim}", [1 if rank == victim else 0 for rank in range(3)])
    for rank in {0, 1, 2} - {victim}:
        assert f"process {victim} (host" in outputs[rank]
        assert "failed:\nTraceback" in outputs[rank]
        assert 'raise LookupError("the reason")' in outputs[rank]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_waits_where_nothing_can_be_raised_is_ended(victim) -> None:
    """As in a collective operation of a framework, on the one that has failed."""
    outputs = run_failure(f"stuck-{victim}", [1, 1, 1])
    for rank in {0, 1, 2} - {victim}:
        assert (
            f"process {rank} ends, as another one failed and this one has not ended within 0.3 s: process {victim}"
            in outputs[rank]
        )
        assert "LookupError: the reason" in outputs[rank]
        assert "logged: CRITICAL" in outputs[rank]


def test_the_grace_is_over_with_the_world() -> None:
    outputs = run_failure("closed-in-time", [0, 1, 0])
    assert all("lived on" in outputs[rank] for rank in (0, 2))


def test_processes_that_do_different_things_are_told_so() -> None:
    outputs = run_failure("mismatch", [0, 0, 0])
    for output in outputs:
        assert re.search(
            r"is at (barrier|gather) where process [\d, ]+ is at (gather|barrier) \(call 1 of topic 'main'\); expected "
            r"all processes to do the same",
            output,
        )


def test_one_that_has_closed_its_world_is_not_waited_for() -> None:
    outputs = run_failure("parted", [0, 0, 0])
    text = (
        r"process 2 \(host \S+, pid \d+\) has closed its world while processes \[[01, ]+\] are at gather; expected all "
        r"to do the same, or none\."
    )
    assert re.search(text, outputs[0])
    # Or the first one, having heard this, has closed its own.
    assert re.search(rf"{text}|process 0 \(host \S+, pid \d+\) has closed its world; expected all", outputs[1])
    assert all("the failure is None" in outputs[rank] for rank in (0, 1))


def test_the_first_waits_for_all_at_the_end_and_the_others_for_nobody() -> None:
    outputs = run_failure("late", [0, 0, 0])
    assert "closed after the last" in outputs[0]
    assert "closed at once" in outputs[1]


def test_the_first_may_leave_before_the_others() -> None:
    outputs = run_failure("impatient", [0, 0, 0])
    for rank in (1, 2):
        assert re.search(
            r"process 0 \(host \S+, pid \d+\) has closed its world; expected all processes to", outputs[rank]
        )
        assert "the failure is None" in outputs[rank]


def test_what_is_decided_is_heard_also_by_those_that_come_to_it_when_the_first_has_left() -> None:
    outputs = run_failure("late-to-hear", [0, 0, 0])
    assert outputs[0].startswith("heard stop in front of unit ")
    assert outputs[0] == outputs[1] == outputs[2]


def test_one_that_does_not_come_is_missed_by_all() -> None:
    outputs = run_failure("missing", [0, 0, 0])
    assert "processes [2] have not come within 1 s; expected all. See why they have not, or allow a" in outputs[0]
    assert "processes [2] have not come within 1 s" in outputs[1]


def test_another_size_in_one_process_is_refused() -> None:
    outputs = run_failure("sizes", [0, 0, 0])
    assert all("takes part in 4 processes, and process 0 in 3; expected the same size in all." in o for o in outputs)


def test_strangers_are_not_let_in_and_keep_nobody() -> None:
    run_failure("strangers", [0, 0, 0])


@pytest.mark.parametrize("case", ["deadline", "deadline-alone"])
def test_a_deadline_ends_a_process_that_is_stuck(case) -> None:
    outputs = run_failure(case, [75], size=1)
    assert "process 0 ends with status 75: no checkpoint was written in 0.2 s" in outputs[0]
    assert "logged: CRITICAL" in outputs[0]


def test_a_deadline_that_is_met_ends_nothing() -> None:
    assert run_failure("deadline-met", [0], size=1) == ["went on\n"]


def test_a_world_of_one_needs_nobody() -> None:
    world = open_world(0, 0, 1, lambda value: pytest.fail("there is nobody to share with"))
    assert (world.rank, world.local_rank, world.size) == (0, 0, 1)
    assert world.gather(5) == world.gather_to_first(5) == world.about("x").gather(5) == [5]
    world.fail("text")
    world.barrier()
    world.close()
    assert world.failure is None
    assert world != World()


@pytest.mark.parametrize("numbers", [(2, 0, 2), (-1, 0, 2), (0, 1, 2), (0, 0, 0)])
def test_numbers_that_do_not_fit_are_refused(numbers) -> None:
    with pytest.raises(InvalidValueError, match=r"rank is .*; expected 0 <= local_rank <= rank < size"):
        open_world(*numbers, lambda value: [value])


def test_what_the_first_could_not_do_is_an_error_in_all(monkeypatch) -> None:
    with pytest.raises(WorldError, match="process 0 cannot listen"):
        open_world(1, 1, 2, lambda value: ["process 0 cannot listen", value])
    with pytest.raises(WorldError, match=r"process 0 shared 7; expected what its open_world gives to share"):
        open_world(1, 1, 2, lambda value: [7, value])
    shared = []
    monkeypatch.setattr("socket.create_server", lambda *_, **__: Path("/no/such/device").read_text())
    with pytest.raises(WorldError, match=r"^process 0 cannot listen at '127\.0\.0\.1' \(.*\); expected a name or add"):
        open_world(0, 0, 2, lambda value: shared.append(value) or [value], host="127.0.0.1")
    assert shared[0].startswith("process 0 cannot listen")
