"""Which launcher has started this process, and what it says of it: a pure function of the environment."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from parhelion.errors import InvalidValueError

__all__ = ["Launched", "find_first_host", "find_launched"]

_FIRST_PORT: Final = 61440  # above those that Linux gives away by itself
_NUM_PORTS: Final = 4096
_FIRST_PSEUDO_STEP: Final = 0xFFFF_FFF0  # SLURM numbers from there what was not started by srun, as a batch script


@attrs.frozen(kw_only=True)
class Launched:
    """What a launcher says of a process.

    Attributes:
        launcher: "torchrun", "environment" (the variables of torchrun, set by somebody else), "openmpi", "mpich" or
            "slurm".
        rank: this process among all, from 0.
        local_rank: this process among those of its machine, from 0.
        size: how many there are.
        local_size: how many there are on this machine; None if it is not said.
        host, port: where process 0 is to listen for the others; None if it is not said.
    """

    launcher: str
    rank: int
    local_rank: int
    size: int
    local_size: int | None = None
    host: str | None = None
    port: int | None = None


def find_launched(environ: Mapping[str, str]) -> Launched | None:
    """Return what the launcher of this process says, or None if there is none.

    What is nearest to the process counts: ``torchrun`` inside of ``srun`` is torchrun. A script that SLURM runs without
    ``srun`` is one process, however many tasks the job has.

    Args:
        environ: ``os.environ``.

    Raises:
        InvalidValueError: some of a launcher's variables are missing, or have values that cannot be; names them.
    """
    for find in (_find_torchrun, _find_open_mpi, _find_mpich, _find_slurm):
        found = find(environ)
        if found is not None:
            return _check(found)
    return None


def _find_torchrun(environ: Mapping[str, str]) -> Launched | None:
    if "RANK" not in environ and environ.get("WORLD_SIZE", "1") == "1":
        return None
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environ else "environment"
    read = _reader(environ, "as torchrun's variables go together")
    local_size = read("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else None
    # Where one process runs on each machine, as in Kubernetes, nobody says so.
    alone = "LOCAL_RANK" not in environ and local_size in {None, 1}
    host, port = _find_address(environ)
    return Launched(
        launcher=launcher,
        rank=read("RANK"),
        local_rank=0 if alone else read("LOCAL_RANK"),
        size=read("WORLD_SIZE"),
        local_size=local_size,
        host=host,
        port=port,
    )


def _find_open_mpi(environ: Mapping[str, str]) -> Launched | None:
    prefix = "OMPI_COMM_WORLD_"
    if f"{prefix}RANK" not in environ and f"{prefix}SIZE" not in environ:
        return None
    read = _reader(environ, "which mpirun sets with its others")
    size, local_size = read(f"{prefix}SIZE"), read(f"{prefix}LOCAL_SIZE")
    host, port = _find_address(environ)
    if host is None and local_size == size:
        host = "127.0.0.1"
        job = environ.get("PMIX_NAMESPACE", environ.get("OMPI_MCA_ess_base_jobid"))
        port = None if job is None else _choose_port(job)
    return Launched(
        launcher="openmpi",
        rank=read(f"{prefix}RANK"),
        local_rank=read(f"{prefix}LOCAL_RANK"),
        size=size,
        local_size=local_size,
        host=host,
        port=port,
    )


def _find_mpich(environ: Mapping[str, str]) -> Launched | None:
    if "PMI_RANK" not in environ and "PMI_SIZE" not in environ:
        return None
    if "MPI_LOCALRANKID" not in environ and _is_in_slurm_step(environ):
        return None  # srun sets these, too
    read = _reader(environ, "which mpiexec sets with its others")
    host, port = _find_address(environ)
    return Launched(
        launcher="mpich",
        rank=read("PMI_RANK"),
        local_rank=read("MPI_LOCALRANKID"),
        size=read("PMI_SIZE"),
        local_size=read("MPI_LOCALNRANKS") if "MPI_LOCALNRANKS" in environ else None,
        host=host,
        port=port,
    )


def _find_slurm(environ: Mapping[str, str]) -> Launched | None:
    read = _reader(environ, "which srun sets with its others")
    if not _is_in_slurm_step(environ):
        return None
    size = read("SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
    if size == 1:
        return None
    host, port = _find_address(environ)
    if host is None:
        names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        nodes = next((environ[name] for name in names if environ.get(name)), None)
        host = None if nodes is None else find_first_host(nodes)
        job = environ.get("SLURM_JOB_ID", environ.get("SLURM_JOBID"))
        port = None if job is None else _choose_port(f"{job}.{_get_slurm_step(environ)}")
    return Launched(
        launcher="slurm",
        rank=read("SLURM_PROCID"),
        local_rank=read("SLURM_LOCALID"),
        size=size,
        local_size=_count_local_tasks(environ),
        host=host,
        port=port,
    )


def _is_in_slurm_step(environ: Mapping[str, str]) -> bool:
    step = _get_slurm_step(environ)
    return step.isdecimal() and int(step) < _FIRST_PSEUDO_STEP


def _get_slurm_step(environ: Mapping[str, str]) -> str:
    return environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))


def _count_local_tasks(environ: Mapping[str, str]) -> int | None:
    """Return how many tasks this node has, of a list such as ``2(x3),1``: two on each of three nodes, then one."""
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    node = environ.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def find_first_host(nodes: str) -> str:
    """Return the first name of a list of SLURM's, such as ``node[03-05,7],login``: ``node03``.

    Raises:
        InvalidValueError: it has no such form.
    """
    part = r"[^\[\],\s]+|\[[^\[\],\s-]+[^\[\]\s]*\]"
    match = re.match(rf"(?:{part})+(?=,|$)", nodes.strip())
    if match is None:
        raise InvalidValueError(
            f"SLURM's list of nodes is {nodes!r}; expected names such as 'node[03-05,7],login'. Set MASTER_ADDR and "
            "MASTER_PORT to where process 0 is reached."
        )
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", match[0])


def _find_address(environ: Mapping[str, str]) -> tuple[str | None, int | None]:
    names = ("MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not environ.get(name)]
    if len(missing) == len(names):
        return None, None
    read = _reader(environ, "as the other half of process 0's address is")
    if "MASTER_ADDR" in missing:
        raise _missing("MASTER_ADDR", "as the other half of process 0's address is")
    port = read("MASTER_PORT")
    if not 0 < port < 2**16:
        raise InvalidValueError(f"MASTER_PORT is {port}; expected 1 to 65535. Set it to a free port of process 0.")
    return environ["MASTER_ADDR"], port


def _choose_port(job: str) -> int:
    """Return a port that all processes of a job find by themselves."""
    return _FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS


def _reader(environ: Mapping[str, str], why: str) -> Callable[[str], int]:
    def read(name: str) -> int:
        text = environ.get(name, "")
        if not text:
            raise _missing(name, why)
        if not text.strip().isdecimal():
            raise InvalidValueError(
                f"{name} is {text!r}; expected an integer >= 0. Start the program by its launcher, or unset what one "
                "has left behind."
            )
        return int(text)

    return read


def _missing(name: str, why: str) -> InvalidValueError:
    return InvalidValueError(
        f"{name} is not set; expected it, {why}. Start the program by its launcher, or unset what one has left behind."
    )


def _check(found: Launched) -> Launched:
    limit = found.size if found.local_size is None else found.local_size
    if found.rank < found.size and found.local_rank < limit and found.local_rank <= found.rank and limit <= found.size:
        return found
    raise InvalidValueError(
        f"{found.launcher} says rank {found.rank} of {found.size}, local rank {found.local_rank} of "
        f"{'?' if found.local_size is None else found.local_size}; expected ranks below their sizes, and no local one "
        "above its rank. Start the program by its launcher, or unset what one has left behind."
    )
