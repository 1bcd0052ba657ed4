"""What each launcher's environment comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import InvalidValueError
from parhelion.processes import Launched, find_launched
from parhelion.processes._launched import find_first_host

TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "712", "SLURM_STEP_ID": "3", "SLURM_NTASKS": "5", "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "node[03-05,7],gpu1", "SLURM_JOB_NODELIST": "other[1-9]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.9.9.9",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-node-3112@1",
}  # fmt: skip
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def without(environment, *names) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, ("torchrun", 5, 1, 8, 4, "10.0.0.1", 29500)),
        (without(TORCHRUN, "TORCHELASTIC_RUN_ID"), ("environment", 5, 1, 8, 4, "10.0.0.1", 29500)),
        # Kubernetes: one process on each machine.
        (without(TORCHRUN, "TORCHELASTIC_RUN_ID", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
         ("environment", 5, 0, 8, None, "10.0.0.1", 29500)),
        (without(TORCHRUN, "MASTER_ADDR", "MASTER_PORT"), ("torchrun", 5, 1, 8, 4, None, None)),
        (OPEN_MPI, ("openmpi", 1, 1, 4, 2, None, None)),
        ({**OPEN_MPI, "MASTER_ADDR": "a", "MASTER_PORT": "77"}, ("openmpi", 1, 1, 4, 2, "a", 77)),
        (MPICH, ("mpich", 3, 1, 4, 2, None, None)),
        (without(MPICH, "MPI_LOCALNRANKS"), ("mpich", 3, 1, 4, None, None, None)),
        ({**SLURM, "MASTER_ADDR": "a", "MASTER_PORT": "77"}, ("slurm", 2, 0, 5, 2, "a", 77)),
        # What is nearest to the process counts.
        ({**SLURM, **TORCHRUN}, ("torchrun", 5, 1, 8, 4, "10.0.0.1", 29500)),
        ({**SLURM, **OPEN_MPI}, ("openmpi", 1, 1, 4, 2, None, None)),
        ({**SLURM, **MPICH}, ("mpich", 3, 1, 4, 2, None, None)),
    ],
)  # fmt: skip
def test_an_environment_says_who_a_process_is(environment, expected) -> None:
    launcher, rank, local_rank, size, local_size, host, port = expected
    assert find_launched(environment) == Launched(
        launcher=launcher, rank=rank, local_rank=local_rank, size=size, local_size=local_size, host=host, port=port
    )


@pytest.mark.parametrize("more", [{}, {"PMI_RANK": "2", "PMI_SIZE": "5"}, {"SLURM_STEP_NUM_TASKS": ""}])
def test_a_task_of_srun_finds_the_first_node_and_a_port_of_its_job(more) -> None:
    environment = {name: value for name, value in {**SLURM, **more}.items() if value}
    found = find_launched(environment)
    assert found == Launched(
        launcher="slurm", rank=2, local_rank=0, size=5, local_size=2, host="node03", port=found.port
    )
    assert 61440 <= found.port < 65536
    assert find_launched({**environment, "SLURM_PROCID": "0"}).port == found.port
    assert find_launched({**environment, "SLURM_JOB_ID": "713"}).port != found.port
    assert find_launched({**environment, "SLURM_STEP_ID": "4"}).port != found.port


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "1"},
        without(SLURM, "SLURM_STEP_ID"),  # a batch script, which nobody has started several times
        {**SLURM, "SLURM_STEP_ID": str(0xFFFFFFFB)},  # likewise
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_process_alone_has_no_launcher(environment) -> None:
    assert find_launched(environment) is None


def test_processes_of_one_machine_meet_on_its_loopback_device() -> None:
    environment = {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "2"}
    found = find_launched(environment)
    assert found.host == "127.0.0.1"
    assert 61440 <= found.port < 65536
    assert find_launched(without(environment, "PMIX_NAMESPACE")).port is None


HALF_SET = [
    *((without(TORCHRUN, name), name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
    *((without(SLURM, name), name) for name in ("SLURM_PROCID", "SLURM_LOCALID")),
    (without(SLURM, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_NTASKS"),
    *((without(OPEN_MPI, name), name) for name in OPEN_MPI if name.startswith("OMPI")),
    *((without(MPICH, name), name) for name in ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")),
]


@pytest.mark.parametrize(("environment", "name"), HALF_SET)
def test_a_variable_that_is_missing_is_named(environment, name) -> None:
    with pytest.raises(InvalidValueError, match=rf"^{name} is not set; expected it, .*\. Start the program by its lau"):
        find_launched(environment)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"RANK": "x"}, r"RANK is 'x'; expected an integer >= 0"),
        ({"RANK": "-1"}, r"RANK is '-1'; expected an integer >= 0"),
        ({"RANK": "8"}, r"torchrun says rank 8 of 8, local rank 1 of 4; expected ranks below their sizes"),
        ({"LOCAL_RANK": "4"}, r"torchrun says rank 5 of 8, local rank 4 of 4; expected ranks below"),
        ({"RANK": "0"}, r"rank 0 of 8, local rank 1 of 4; expected ranks below their sizes, and no local one above"),
        ({"MASTER_PORT": "0"}, r"MASTER_PORT is 0; expected 1 to 65535"),
        ({"MASTER_PORT": "65536"}, r"MASTER_PORT is 65536; expected 1 to 65535"),
    ],
)
def test_a_value_that_cannot_be_is_named(more, message) -> None:
    with pytest.raises(InvalidValueError, match=message):
        find_launched({**TORCHRUN, **more})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node", "node"),
        ("node03,node04", "node03"),
        ("node[03-05,7]", "node03"),
        ("node[7,03-05],x", "node7"),
        ("rack[1-2]node[10-14,20]", "rack1node10"),
        ("a-b[1-2].net.example,c", "a-b1.net.example"),
        ("gpu-1-[001-128]", "gpu-1-001"),
    ],
)
def test_the_first_of_a_list_of_nodes_is_found(nodes, first) -> None:
    assert find_first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "[", "node[", "node[]", "node[1-2", ",a", "a b"])
def test_what_is_no_list_of_nodes_is_refused(nodes) -> None:
    with pytest.raises(InvalidValueError, match=r"SLURM's list of nodes is .*; expected names such as"):
        find_first_host(nodes)


@given(
    st.lists(
        st.tuples(
            st.text("abcn-", min_size=1),
            st.lists(st.tuples(st.integers(0, 999), st.integers(0, 99)), max_size=3),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_list_of_nodes_begins_with_its_first(groups) -> None:
    written, hosts = [], []
    for name, ranges, width in groups:
        inside = ",".join(
            f"{low:0{width}}-{low + more:0{width}}" if more else f"{low:0{width}}" for low, more in ranges
        )
        written.append(f"{name}[{inside}]" if ranges else name)
        hosts += [f"{name}{low + k:0{width}}" for low, more in ranges for k in range(more + 1)] or [name]
    assert find_first_host(",".join(written)) == hosts[0]
