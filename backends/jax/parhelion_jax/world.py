"""The processes that train together: how they connect, and which one this is."""

from __future__ import annotations

import os
import pickle
import time
from typing import Any

import jax
import numpy as np

from parhelion import processes
from parhelion.errors import InvalidTypeError, InvalidValueError, WorldError

from .rendezvous import Address, is_listening, listen, report

__all__ = ["World", "connect", "disconnect", "discover_world"]

_LAUNCHED_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
_LAUNCHED_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_jax: Any = jax  # it leaves some of it untyped
_local_rank: dict[str, int] = {}  # jax has one connection per process and does not know it


class World(processes.World):
    """The processes that train together, which jax has connected."""

    def barrier(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            from jax.experimental.multihost_utils import sync_global_devices  # noqa: PLC0415 - as below

            sync_global_devices("parhelion")

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gives here, by rank; whatever can be pickled."""
        if self.size == 1:
            return [value]
        content = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = _gather_arrays(np.int32(content.size))
        # Rounded up, since each length is compiled.
        padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
        padded[: content.size] = content
        contents = _gather_arrays(padded)
        return [
            pickle.loads(each[:size].tobytes())  # noqa: S301 - it comes from this very program, in another process
            for each, size in zip(contents, sizes, strict=True)
        ]

    def gather_to_first(self, value: Any) -> list[Any]:
        """Return what :meth:`gather` does in the first process, and an empty list in the others."""
        gathered = self.gather(value)
        return gathered if self.rank == 0 else []


def _gather_arrays(array: Any) -> Any:
    from jax.experimental.multihost_utils import process_allgather  # noqa: PLC0415 - most runs have one process

    return np.asarray(process_allgather(array)).reshape(_jax.process_count(), *array.shape)


def discover_world() -> World:
    """Return the world of this process.

    Raises:
        WorldError: a launcher has started several processes and they are not connected. Each would train on all the
            data and overwrite the others' checkpoints.
    """
    if jax.distributed.is_initialized():
        return World(_jax.process_index(), _find_local_rank(), _jax.process_count())
    for name in _LAUNCHED_SIZES:
        size = os.environ.get(name, "1")
        if size != "1":
            raise WorldError(
                f"{name} is {size} and this process is not connected to others; expected parhelion_jax.connect to be "
                "called first. Call it before anything else uses jax, or start the program without a launcher."
            )
    return World()


def connect(
    address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 60.0,
) -> World:
    """Connect this process to the others that train with it, and return their world.

    Call it in every process before anything else uses jax. Without arguments it is asked of the launcher (SLURM, Open
    MPI, a TPU pod) what they are.

    Args:
        address: "host:port" at which process 0 can be reached by all; a free port of its machine.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        timeout: seconds to wait for the others.

    Raises:
        InvalidTypeError: an argument has a type that cannot work.
        InvalidValueError: an argument has a value that cannot work, or only some are given.
        WorldError: jax is in use already, the address is not reached or the port is taken, a process does not come in
            time, or two do not fit together.
    """
    _check_timeout(timeout)
    where = _check_arguments(address, num_processes, process_id)
    _check_unused()
    _use_gloo()
    deadline = time.monotonic() + timeout
    if where is None or num_processes is None or process_id is None:
        _connect_launched(timeout)
        return discover_world()
    if process_id == 0:
        _local_rank["local_rank"] = listen(where, num_processes, timeout)
    else:
        _local_rank["local_rank"] = report(where, num_processes, process_id, timeout)
        # jax asks again after a second if its coordinator is not there at once.
        is_listening(where, max(deadline - time.monotonic(), 1))
    bind = f"{where.bind_host or '[::]'}:{where.port}".replace("::1:", "[::1]:")
    jax.distributed.initialize(
        str(where),
        num_processes,
        process_id,
        initialization_timeout=max(5, int(deadline - time.monotonic())),
        coordinator_bind_address=bind,
        cluster_detection_method="deactivate",
    )
    return discover_world()


def disconnect() -> None:
    """Wait for the other processes, and part from them; without a connection do nothing."""
    if jax.distributed.is_initialized():
        discover_world().barrier()
        _jax.distributed.shutdown()
        _local_rank.clear()


def _connect_launched(timeout: float) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=max(1, int(timeout)))
    except (ValueError, RuntimeError) as error:
        raise WorldError(
            f"no launcher says which processes there are ({error}); expected the environment of one that jax knows. "
            "Pass address, num_processes and process_id."
        ) from error


def _check_arguments(address: Any, num_processes: Any, process_id: Any) -> Address | None:
    given = {"address": address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise InvalidValueError(
            f"{missing[0]} is None; expected all of {', '.join(given)}, or none of them. Pass {missing[0]}, too."
        )
    for name, value in (("num_processes", num_processes), ("process_id", process_id)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(f"{name} is {value!r}; expected an integer.")
    if num_processes < 1:
        raise InvalidValueError(f"num_processes is {num_processes}; expected 1 or more.")
    if not 0 <= process_id < num_processes:
        raise InvalidValueError(
            f"process_id is {process_id}; expected 0 to {num_processes - 1}, as num_processes is {num_processes}."
        )
    return _to_address(address)


def _to_address(address: Any) -> Address:
    if not isinstance(address, str):
        raise InvalidTypeError(f"address is {address!r}; expected text such as '10.0.0.1:29500'.")
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InvalidValueError(f"address is {address!r}; expected a host and a port, such as '10.0.0.1:29500'.")
    return Address(host, int(port))


def _check_timeout(timeout: Any) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidTypeError(f"timeout is {timeout!r}; expected seconds.")
    if not 0 < timeout < float("inf"):
        raise InvalidValueError(f"timeout is {timeout}; expected seconds above 0.")


def _check_unused() -> None:
    if jax.distributed.is_initialized():
        raise WorldError(
            "this process is connected already; expected one call. Call parhelion_jax.disconnect() at the end only."
        )
    # No public function says it, and asking for anything public would start what must not be started.
    from jax._src.xla_bridge import backends_are_initialized  # noqa: PLC0415 - a private name, needed here only

    if backends_are_initialized():
        raise WorldError(
            "jax has started its devices already; expected parhelion_jax.connect before anything else uses jax. "
            "Call it at the head of the program: making an array or asking for devices is use, too."
        )


def _use_gloo() -> None:
    # Only for the CPU; older releases of jax have no collectives there unless asked.
    if _jax.config.jax_cpu_collectives_implementation in {None, "", "none"}:
        _jax.config.update("jax_cpu_collectives_implementation", "gloo")


def _find_local_rank() -> int:
    launched = next((os.environ[name] for name in _LAUNCHED_LOCAL_RANKS if name in os.environ), "0")
    return _local_rank.get("local_rank", int(launched))
