"""Trainer: the core's, given torch's parts and flags."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

import attrs
import torch

from parhelion.checkpoint import RemotePath
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.processes import World
from parhelion.training import BackendParts, TrainerOptions, TrainingUnit
from parhelion.training import Trainer as CoreTrainer

from .arrays import Arrays
from .data import loader_for
from .devices import choose_gpus
from .own_processes import OwnProcesses, count_processes
from .placement import Placement
from .randomness import Randomness
from .world import discover_world, telling_what_broke

__all__ = ["Trainer"]


class Trainer(CoreTrainer):
    """Trains, validates and tests a model with torch.

    Args:
        run_name: how the run's checkpoints and logs are named; the model's save name if empty.
        train_unit: what ``total_steps``, ``valid_frequency`` and ``chkpt_frequency`` count: epochs, or updates.
        total_steps: where the run ends; ``math.inf`` for never. 0 trains nothing.
        valid_frequency: units between validations; None for none.
        chkpt_frequency: units between checkpoints; None for a last one only.
        print_frequency: updates between rows of the log; None for none but validations'.
        accumulation_steps: batches per update.
        enable_cudnn_benchmark: let cuDNN try its algorithms and take the fastest.
        enable_deterministic: use deterministic kernels only, so that weights are the same bits again.
        early_stop_cycles: validations without an improvement after which training stops; None or 0 for never.
        use_cpu: train on the CPU although there is a GPU.
        gpus: ids of the GPUs to train on, each by a process that the trainer starts if there are several; None for all
            that are visible. In a process that a launcher has started: the one at its local rank.
        random_seed: an integer in [0, 2**64) that keys initialization and steps; 6691 if None.
        enable_tensorboard: write event files to ``run_path``.
        enable_file_logging: write a log file to ``log_path``.
        enable_progress_bar: show a progress bar where there is a terminal.
        chkpt_root: folder under which checkpoints go, in a folder of the model's name; None for no checkpoints.
        log_path: folder of log files.
        run_path: folder of TensorBoard runs.
        src_root: folder whose modules are imported so that their registrations run.
        import_prefix: what their names begin with.
        print_banner: print versions and facts at the start.
        chkpt_every_iterations: updates between checkpoints, beside ``chkpt_frequency``.
        chkpt_every_seconds: seconds, or a ``datetime.timedelta``, after which the next update saves a checkpoint.
        chkpt_keep_last: how many of the newest checkpoints are kept. What any of the three rules keeps stays, the best
            one always; without a rule all stay.
        chkpt_keep_best: how many of those with the best monitored value are kept.
        chkpt_keep_every: iterations, counted in batches, of which the first checkpoint in each so many is kept.
        chkpt_in_background: write checkpoints while training goes on, which waits for a copy in memory only.
        stop_deadline: seconds, or a timedelta, from a signal on in which the run has to end in order; the process ends
            then in any case. A validation is left for it after a quarter of them, and done by the resumed run. None for
            no end.
        limit_batches: batches after which an epoch and an evaluation end early.
        dry_run: one update and one validation batch, without writing anything.
        nan_guard: stop with an error when a loss is NaN or infinite.
        num_processes: processes that the trainer starts for ``fit`` and ``test``; None for one for each GPU, or none.

    Raises:
        InvalidValueError: (a ValueError) an argument cannot work; the message names it.
    """

    _own: OwnProcesses | None = None

    def __init__(  # noqa: PLR0917 - the reference page fixes the arguments
        self,
        run_name: str = "",
        train_unit: TrainingUnit | str = TrainingUnit.EPOCH,
        total_steps: int | float = 0,  # noqa: PYI041 - as the reference page has it
        valid_frequency: int | None = None,
        chkpt_frequency: int | None = None,
        print_frequency: int | None = None,
        accumulation_steps: int = 1,
        enable_cudnn_benchmark: bool = False,
        enable_deterministic: bool = False,
        early_stop_cycles: int | None = None,
        use_cpu: bool | None = None,
        gpus: list[int] | None = None,
        random_seed: int | None = None,
        enable_tensorboard: bool = False,
        enable_file_logging: bool = False,
        enable_progress_bar: bool = False,
        chkpt_root: Path | RemotePath | str | None = None,
        log_path: Path | str | None = None,
        run_path: Path | str | None = None,
        src_root: Path | str | None = None,
        import_prefix: str = "",
        print_banner: bool = True,
        *,
        chkpt_every_iterations: int | None = None,
        chkpt_every_seconds: float | dt.timedelta | None = None,
        chkpt_keep_last: int | None = None,
        chkpt_keep_best: int | None = None,
        chkpt_keep_every: int | None = None,
        chkpt_in_background: bool = True,
        stop_deadline: float | dt.timedelta | None = 30.0,
        limit_batches: int | None = None,
        dry_run: bool = False,
        nan_guard: bool = True,
        num_processes: int | None = None,
    ) -> None:
        options = TrainerOptions(
            run_name=run_name,
            train_unit=train_unit,
            total_steps=total_steps,
            valid_frequency=valid_frequency,
            chkpt_frequency=chkpt_frequency,
            print_frequency=print_frequency,
            accumulation_steps=accumulation_steps,
            early_stop_cycles=early_stop_cycles,
            random_seed=random_seed,
            enable_tensorboard=enable_tensorboard,
            enable_file_logging=enable_file_logging,
            enable_progress_bar=enable_progress_bar,
            chkpt_root=chkpt_root,
            log_path=log_path,
            run_path=run_path,
            src_root=src_root,
            import_prefix=import_prefix,
            print_banner=print_banner,
            chkpt_every_iterations=chkpt_every_iterations,
            chkpt_every_seconds=chkpt_every_seconds,
            chkpt_keep_last=chkpt_keep_last,
            chkpt_keep_best=chkpt_keep_best,
            chkpt_keep_every=chkpt_keep_every,
            chkpt_in_background=chkpt_in_background,
            stop_deadline=stop_deadline,
            limit_batches=limit_batches,
            dry_run=dry_run,
            nan_guard=nan_guard,
        )
        flags = {"enable_cudnn_benchmark": enable_cudnn_benchmark, "enable_deterministic": enable_deterministic}
        for name, flag in flags.items():
            if not isinstance(flag, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
                raise InvalidTypeError(f"{name} is {flag!r}; expected True or False.")
        if enable_deterministic and enable_cudnn_benchmark:
            raise InvalidValueError(
                "enable_deterministic and enable_cudnn_benchmark are both True; expected one at most, since the "
                "benchmark may take another algorithm each time."
            )
        before = set(vars(self))
        make_parts = partial(_make_parts, use_cpu, gpus, enable_deterministic, enable_cudnn_benchmark)
        parts = make_parts()
        count = count_processes(num_processes, parts.gpu_ids, parts.world.size)
        self._own = None if count == 1 else OwnProcesses(count, make_parts)
        super().__init__(options, attrs.evolve(parts, starter=self._own))
        if self._own is not None:
            self._own.own_names = frozenset(set(vars(self)) - before)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Return how to pickle the trainer, which becomes that of a process that it starts."""
        if self._own is None or not self._own.is_sending:
            return super().__reduce_ex__(protocol)
        return self._own.pack(self)


def _make_parts(use_cpu: bool | None, gpus: list[int] | None, deterministic: bool, benchmark: bool) -> BackendParts:
    """Return torch's parts in this process, which joins others if it has been started with them."""
    gpu_ids = choose_gpus(use_cpu, gpus)
    device = torch.device("cuda", gpu_ids[0]) if gpu_ids else torch.device("cpu")
    world = discover_world(device)
    switches = partial(_switches, device, world, deterministic=deterministic, benchmark=benchmark)
    return _parts(device, gpu_ids, world, switches)


def _parts(
    device: torch.device, gpu_ids: list[int], world: World, switches: Callable[[], AbstractContextManager[None]]
) -> BackendParts:
    """Return torch's parts of the core's trainer."""

    def describe() -> Mapping[str, str]:
        facts = {"backend": f"torch {torch.__version__}"}
        return facts if world.size == 1 else facts | {"processes": str(world.size)}

    return BackendParts(
        name="torch",
        device=device,
        gpu_ids=gpu_ids,
        map_loc=str(device),
        placement=Placement(device),
        randomness=Randomness(device),
        world=world,
        arrays=Arrays(),
        create_dataloader=loader_for,
        switches=switches,
        describe=describe,
    )


@contextmanager
def _switches(device: torch.device, world: World, *, deterministic: bool, benchmark: bool) -> Generator[None]:
    """Set torch's global flags and its current device for the time of a run."""
    cudnn = torch.backends.cudnn
    former = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    if deterministic:
        # cuBLAS reads it when it is first used; without it torch refuses its kernels in this mode.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(mode=True)
        cudnn.deterministic = True
    cudnn.benchmark = benchmark
    try:
        # User code that says "cuda" means this rank's device.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), telling_what_broke(world):
            yield
    finally:
        torch.use_deterministic_algorithms(former[0], warn_only=former[1])
        cudnn.deterministic, cudnn.benchmark = former[2], former[3]
