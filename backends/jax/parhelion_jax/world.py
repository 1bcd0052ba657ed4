"""The processes that train together: how they connect, and which one this is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import jax

from parhelion.errors import InvalidTypeError, InvalidValueError, WorldError
from parhelion.processes import Launched, World, find_launched

from .parting import leave, look_after, open_channel
from .rendezvous import Address, Met, is_listening, listen, report

__all__ = ["World", "connect", "disconnect", "discover_world"]

_NUM_PORTS, _FIRST_PORT = 17, 1024
_NAMES_OF_A_RUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_PORT")
_jax: Any = jax  # it leaves some of it untyped
_worlds: list[World] = []  # of this process: none, or the one in which it is connected


def discover_world() -> World:
    """Return the world of this process.

    Raises:
        WorldError: a launcher has started several processes and they are not connected. Each would train on all the
            data and overwrite the others' checkpoints.
    """
    if jax.distributed.is_initialized():
        if not _worlds:  # the user has called jax's own function
            _worlds.append(_join(_find_local_rank(), None))
        return _worlds[0]
    launched = find_launched(os.environ)
    if launched is not None and launched.size > 1:
        raise WorldError(
            f"there are {launched.size} processes (says {launched.launcher}) and this one is not connected to the "
            "others; expected parhelion_jax.connect() to be called first. Call it before anything else uses jax, or "
            "start the program without a launcher."
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

    Call it in every process before anything else uses jax. Without arguments the launcher has said what they are:
    ``python -m parhelion.launch``, torchrun, SLURM, Open MPI and whatever sets torchrun's variables; else jax is asked
    to find out, as on a TPU pod. A launcher's only process is a world of one; several on one machine with GPUs take one
    each, by their local ranks.

    From then on each process hears at once if another one ends by an exception, or is gone. What waits for others
    raises that, and a process that cannot be interrupted, in a computation that never ends, is ended after 10 s. jax's
    own handler of SIGTERM, which keeps a process from ending, is left out.

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
    launched = find_launched(os.environ) if where is None else None
    if launched is not None and launched.size == 1:
        return World()
    _configure()
    if launched is not None:
        where, num_processes, process_id = place_of(launched, os.environ), launched.size, launched.rank
    if where is None or num_processes is None or process_id is None:
        _connect_launched(timeout)
        return discover_world()
    devices = None if launched is None else own_devices(launched, os.environ)
    met = _connect_at(where, num_processes, process_id, timeout, devices)
    _worlds.append(_join(met.local_rank, where.host))
    return _worlds[0]


def disconnect() -> None:
    """Wait for the other processes, and part from them; without a connection do nothing.

    A program that ends does it by itself.

    Raises:
        WorldError: one of them has failed.
    """
    if jax.distributed.is_initialized():
        leave(discover_world())
    _worlds.clear()


def _join(local_rank: int, host: str | None) -> World:
    world = open_channel(_jax.process_index(), local_rank, _jax.process_count(), host)
    look_after(world)
    return world


def _connect_at(where: Address, num_processes: int, process_id: int, timeout: float, devices: list[int] | None) -> Met:
    deadline = time.monotonic() + timeout
    if process_id == 0:
        met = listen(where, num_processes, timeout)
    else:
        met = report(where, num_processes, process_id, timeout)
        # jax asks again after a second if its coordinator is not there at once.
        is_listening(met.address, max(deadline - time.monotonic(), 1))
    bind = f"{where.bind_host or '[::]'}:{met.address.port}".replace("::1:", "[::1]:")
    jax.distributed.initialize(
        str(met.address),
        num_processes,
        process_id,
        devices,
        initialization_timeout=max(5, int(deadline - time.monotonic())),
        coordinator_bind_address=bind,
        cluster_detection_method="deactivate",
    )
    return met


def place_of(launched: Launched, environ: Mapping[str, str]) -> Address | None:
    """Return where the processes of a launcher meet; None if it does not say.

    The ports behind the one that it names are tried if that is taken, as by torchrun's own store.
    """
    if launched.host is None or launched.port is None:
        return None
    run = " ".join(f"{name}={environ[name]}" for name in _NAMES_OF_A_RUN if name in environ)
    ports = [(launched.port + k - _FIRST_PORT) % (2**16 - _FIRST_PORT) + _FIRST_PORT for k in range(_NUM_PORTS)]
    if launched.launcher == "torchrun":
        ports = ports[1:]
    return Address(launched.host, ports[0], tuple(ports[1:]), run)


def own_devices(launched: Launched, environ: Mapping[str, str]) -> list[int] | None:
    """Return which GPUs a launcher's process takes, None for all that it sees; it says nothing of other devices.

    One of several processes of a machine takes the one of its local rank, as jax itself has it with SLURM and Open MPI,
    unless the launcher shows it one alone, or the user has chosen.
    """
    is_alone = launched.local_size == 1 or (launched.local_size is None and launched.launcher == "environment")
    sees_one = "CUDA_VISIBLE_DEVICES" in environ and "," not in environ["CUDA_VISIBLE_DEVICES"]
    if is_alone or sees_one or "JAX_LOCAL_DEVICE_IDS" in environ:
        return None
    return [launched.local_rank]


def _connect_launched(timeout: float) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=max(1, int(timeout)))
    except (ValueError, RuntimeError) as error:
        raise WorldError(
            f"no launcher says which processes there are ({error}); expected the environment of one that is known. "
            "Start the program with python -m parhelion.launch, or pass address, num_processes and process_id."
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


def _configure() -> None:
    # Only for the CPU; older releases of jax have no collectives there unless asked.
    if _jax.config.jax_cpu_collectives_implementation in {None, "", "none"}:
        _jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself: neither the trainer nor the system could end a process by it.
    if hasattr(_jax.config, "jax_enable_preemption_service"):
        _jax.config.update("jax_enable_preemption_service", False)


def _find_local_rank() -> int:
    launched = find_launched(os.environ)
    return 0 if launched is None else launched.local_rank
