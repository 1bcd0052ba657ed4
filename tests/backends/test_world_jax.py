"""World and connect: processes that find each other, and what is said when they do not."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("parhelion_jax")

import jax

from parhelion.errors import InvalidTypeError, InvalidValueError, WorldError
from parhelion_jax.rendezvous import Address, Met, is_listening, listen, report
from parhelion_jax.world import connect, disconnect, discover_world
from support import jax_child

FACTS = Path(jax_child.__file__).with_name("two_process_facts.py")


def here() -> Address:
    return Address("127.0.0.1", jax_child.free_port())


@pytest.mark.processes
@pytest.mark.parametrize("fact", jax_child.list_facts(FACTS), ids=jax_child.words)
def test_in_both_of_two_processes(fact) -> None:
    results = jax_child.run_facts(FACTS, devices=2, processes=2)
    assert not any(each[fact] for each in results), "\n".join(filter(None, (each[fact] for each in results)))


def test_a_process_alone_is_a_world_of_one(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = discover_world()
    assert (world.rank, world.local_rank, world.size) == (0, 0, 1)
    assert world.gather("mine") == ["mine"]
    world.barrier()
    disconnect()
    assert discover_world().size == 1


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_launcher_without_a_connection_is_refused(monkeypatch, name) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(WorldError, match=rf"{name} is 2 and this process is not connected .* parhelion_jax.connect"):
        discover_world()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", 2, None), r"process_id is None; expected all of address, num_processes, process_id, or none"),
        ((None, None, 0), r"address is None; expected all of"),
        (("127.0.0.1:1", 0, 0), r"num_processes is 0; expected 1 or more"),
        (("127.0.0.1:1", 2, 2), r"process_id is 2; expected 0 to 1, as num_processes is 2"),
        (("127.0.0.1:1", 2, -1), r"process_id is -1; expected 0 to 1"),
        (("127.0.0.1", 2, 0), r"address is '127.0.0.1'; expected a host and a port, such as '10.0.0.1:29500'"),
        ((":1234", 2, 0), r"address is ':1234'; expected a host and a port"),
        (("host:0", 2, 0), r"address is 'host:0'; expected a host and a port"),
        (("host:65536", 2, 0), r"address is 'host:65536'; expected a host and a port"),
        (("host:http", 2, 0), r"address is 'host:http'; expected a host and a port"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message) -> None:
    with pytest.raises(InvalidValueError, match=message):
        connect(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", "2", 0), r"num_processes is '2'; expected an integer"),
        (("127.0.0.1:1", 2, True), r"process_id is True; expected an integer"),
        ((1234, 2, 0), r"address is 1234; expected text such as '10.0.0.1:29500'"),
    ],
)
def test_arguments_of_other_types_are_refused(arguments, message) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        connect(*arguments)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_a_timeout_is_a_positive_number_of_seconds(timeout) -> None:
    with pytest.raises(InvalidValueError, match=rf"timeout is {timeout}; expected seconds above 0"):
        connect("127.0.0.1:1", 2, 0, timeout=timeout)
    with pytest.raises(InvalidTypeError, match=r"timeout is '60'; expected seconds"):
        connect("127.0.0.1:1", 2, 0, timeout="60")


def test_jax_must_not_be_in_use_yet() -> None:
    jax.devices()
    with pytest.raises(WorldError, match=r"jax has started its devices already; expected parhelion_jax.connect before"):
        connect("127.0.0.1:1", 2, 0)


@pytest.mark.processes
def test_an_unreachable_coordinator_is_an_error_in_time_and_not_the_end_of_the_process() -> None:
    address = here()
    script = f"""
import time
from parhelion_jax.world import connect
begin = time.monotonic()
for arguments, start in (
    (("{address}", 2, 1), "coordinator"), (("{address}", 2, 0), "processes [1]"), ((), "no launcher")
):
    try:
        connect(*arguments, timeout=0.5)
    except RuntimeError as error:
        assert start in str(error) and (not arguments or "{address}" in str(error)), error
        print(type(error).__name__)
assert time.monotonic() - begin < 5
"""
    (output,) = jax_child.run_children([["-c", script]])
    assert output.split() == ["WorldError"] * 3


def test_who_cannot_reach_the_first_process_is_told_its_address() -> None:
    address, begin = here(), time.monotonic()
    message = (
        rf"the coordinator at {address} is not reached within 0.3 s \(.*refused\); expected process 0 to listen there"
    )
    with pytest.raises(WorldError, match=message):
        report(address, 2, 1, 0.3)
    assert 0.2 < time.monotonic() - begin < 2
    with pytest.raises(WorldError, match=r"the coordinator at no.such.host.invalid:1 is not reached within 0.1 s"):
        report(Address("no.such.host.invalid", 1), 2, 1, 0.1)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
        with pytest.raises(
            WorldError, match=rf"process 0 cannot listen at {address} \(.*in use\); expected a free port"
        ):
            listen(address, 2, 1)


def test_processes_that_never_come_are_named_to_all_that_did() -> None:
    address = here()
    message = rf"processes \[2, 3\] have not reached {address} within 0.5 s; expected all of 4"
    with ThreadPoolExecutor() as threads:
        guest = threads.submit(report, address, 4, 1, 5)
        with pytest.raises(WorldError, match=message):
            listen(address, 4, 0.5)
        with pytest.raises(WorldError, match=message):
            guest.result(10)


@pytest.mark.parametrize(
    ("guests", "message"),
    [
        ([(3, 1), (3, 1)], r"process_id 1 came twice; expected each of 0 to 2 once"),
        ([(2, 1)], r"num_processes is 2 in process 1 and 3 in process 0; expected one number"),
        ([(3, 0)], r"process_id 0 came twice"),
    ],
)
def test_processes_that_do_not_fit_together_are_told_so(guests, message) -> None:
    address = here()
    with ThreadPoolExecutor() as threads:
        told = [threads.submit(report, address, size, rank, 5) for size, rank in guests]
        with pytest.raises(WorldError, match=message):
            listen(address, 3, 5)
        for each in told:
            with pytest.raises(WorldError, match=message):
                each.result(10)


def test_local_ranks_count_processes_of_one_machine(monkeypatch) -> None:
    address, hosts = here(), threading.local()
    monkeypatch.setattr(socket, "gethostname", lambda: getattr(hosts, "name", "a"))

    def come(rank: int) -> int:
        hosts.name = "ab"[rank % 2]
        return report(address, 5, rank, 5)

    with ThreadPoolExecutor() as threads:
        others = list(map(lambda rank: threads.submit(come, rank), (3, 1, 4, 2)))  # noqa: C417 - as threads.map would
        assert listen(address, 5, 5).local_rank == 0
        assert [each.result(10).local_rank for each in others] == [1, 0, 2, 1]


def test_who_says_nothing_sensible_is_left_alone(monkeypatch) -> None:
    address = here()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(listen, address, 2, 5)
        assert is_listening(address, 5)  # connects, and goes
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", json.dumps({"rank": 1}).encode() + b"\n", b"x" * 20_000):
            with socket.create_connection((address.host, address.port)) as connection:
                connection.sendall(nonsense)
        assert report(address, 2, 1, 5) == Met(address, 1)
        assert first.result(10) == Met(address, 0)


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"[]\n", b"{}\n"])
def test_what_answers_in_another_way_is_not_process_0(answer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:
        address = Address("127.0.0.1", server.getsockname()[1])
        guest = threads.submit(report, address, 2, 1, 5)
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)
        with pytest.raises(WorldError, match=rf"what listens at {address} did not answer as process 0 does"):
            guest.result(10)


def test_addresses_of_either_kind_are_written_as_usual() -> None:
    assert str(Address("::1", 5)) == "[::1]:5"
    assert [Address(host, 1).bind_host for host in ("127.0.0.1", "localhost", "::1", "10.0.0.1", "node")] == [
        "127.0.0.1", "localhost", "::1", "", "",
    ]  # fmt: skip
    assert not is_listening(here(), 0.1)
