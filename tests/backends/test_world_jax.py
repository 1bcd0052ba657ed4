"""World and connect: processes that find each other, and what is said when they do not."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("parhelion_jax")

import jax

from parhelion.errors import InvalidTypeError, InvalidValueError, WorldError
from parhelion.processes import Launched
from parhelion_jax import world
from parhelion_jax.rendezvous import Address, Met, is_listening, listen, report
from parhelion_jax.world import connect, disconnect, discover_world, own_devices, place_of
from support import jax_child

LAUNCHED = Path(jax_child.__file__).with_name("launched_jax.py")
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
    alone = discover_world()
    assert (alone.rank, alone.local_rank, alone.size) == (0, 0, 1)
    assert alone.gather("mine") == ["mine"]
    alone.barrier()
    disconnect()
    assert discover_world().size == 1


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
OPEN_MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in
            {"RANK": "1", "LOCAL_RANK": "1", "SIZE": "2", "LOCAL_SIZE": "2"}.items()}  # fmt: skip


@pytest.mark.parametrize(("variables", "launcher"), [(TORCHRUN, "environment"), (OPEN_MPI, "openmpi")])
def test_a_launcher_without_a_connection_is_refused(monkeypatch, variables, launcher) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    message = rf"there are 2 processes \(says {launcher}\) and this one is not connected .* parhelion_jax.connect\(\)"
    with pytest.raises(WorldError, match=message):
        discover_world()


def test_a_launchers_only_process_is_a_world_of_one(monkeypatch) -> None:
    for name, value in {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "_check_unused", lambda: None)
    assert connect().size == 1
    assert discover_world().size == 1


def test_where_processes_meet_follows_from_what_the_launcher_says() -> None:
    say = partial(Launched, rank=1, local_rank=1, size=2, host="node")
    environ = {"MASTER_PORT": "29500", "SLURM_JOB_ID": "7", "TORCHELASTIC_RESTART_COUNT": "3", "HOME": "/root"}
    found = place_of(say(launcher="environment", port=29500), environ)
    assert (found.host, found.port, found.spare) == ("node", 29500, tuple(range(29501, 29517)))
    assert found.run == "TORCHELASTIC_RESTART_COUNT=3 SLURM_JOB_ID=7 MASTER_PORT=29500"
    # torchrun's own store has the port that it names.
    assert place_of(say(launcher="torchrun", port=29500), {}).choices[0].port == 29501
    ports = [each.port for each in place_of(say(launcher="slurm", port=65530), {}).choices]
    assert ports[:7] == [*range(65530, 65536), 1024]
    assert place_of(say(launcher="openmpi", host=None), {}) is None


def test_several_processes_of_a_machine_take_one_gpu_each() -> None:
    say = partial(Launched, rank=3, local_rank=1, size=4)
    assert own_devices(say(launcher="torchrun", local_size=2), {}) == [1]
    assert own_devices(say(launcher="slurm"), {"CUDA_VISIBLE_DEVICES": "4,5"}) == [1]
    assert own_devices(say(launcher="slurm"), {"CUDA_VISIBLE_DEVICES": "4"}) is None
    assert own_devices(say(launcher="torchrun", local_size=2), {"JAX_LOCAL_DEVICE_IDS": "0"}) is None
    assert own_devices(Launched(launcher="torchrun", rank=1, local_rank=0, size=2, local_size=1), {}) is None
    assert own_devices(Launched(launcher="environment", rank=1, local_rank=0, size=2), {}) is None


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


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"],
    "parhelion.launch": ["-m", "parhelion.launch", "-n", "2", "--no-prefix"],
}


@pytest.mark.processes
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launchers_processes_connect_without_arguments_and_part_by_themselves(launcher) -> None:
    if launcher == "torchrun":
        pytest.importorskip("torch")
    (output,) = jax_child.run_children([[*LAUNCHERS[launcher], LAUNCHED]], PYTHONWARNINGS="default")
    found = sorted(
        (json.loads(line) for line in output.splitlines() if line.startswith("{")), key=lambda each: each["rank"]
    )
    assert [(each["rank"], each["local_rank"], each["size"]) for each in found] == [(0, 0, 2), (1, 1, 2)]
    pids = [each["pid"] for each in found]
    assert all(each["gathered"] == pids and each["is_same"] for each in found)


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


def hang_up(server: socket.socket) -> None:
    server.accept()[0].close()


def test_processes_meet_at_the_first_port_that_is_free_and_join_no_other_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger, ThreadPoolExecutor() as threads:
        taken, other, mine = stranger.getsockname()[1], jax_child.free_port(), jax_child.free_port()
        threads.submit(hang_up, stranger)
        another = threads.submit(listen, Address("127.0.0.1", other, run="other"), 2, 5)
        assert is_listening(Address("127.0.0.1", other), 5)
        address = Address("127.0.0.1", taken, (other, mine), "mine")
        first = threads.submit(listen, address, 2, 5)
        assert report(address, 2, 1, 5) == Met(address.choices[2], 1)
        assert first.result(10) == Met(address.choices[2], 0)
        assert report(Address("127.0.0.1", other, run="other"), 2, 1, 5).local_rank == 1
        assert another.result(10).local_rank == 0


def test_who_finds_no_free_port_or_nobody_is_told_all_of_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        taken = [each.getsockname()[1] for each in (one, two)]
        message = rf"process 0 cannot listen at 127.0.0.1:{taken[0]} or {taken[1]} \(.*in use\)"
        with pytest.raises(WorldError, match=message):
            listen(Address("127.0.0.1", taken[0], (taken[1],)), 2, 1)
    ports = jax_child.free_port(), jax_child.free_port()
    message = rf"the coordinator at 127.0.0.1:{ports[0]} or {ports[1]} is not reached within 0.1 s"
    with pytest.raises(WorldError, match=message):
        report(Address("127.0.0.1", ports[0], (ports[1],)), 2, 1, 0.1)


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
