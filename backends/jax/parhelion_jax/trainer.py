"""Trainer: the core's, given jax's parts and flags."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from parhelion.checkpoint import RemotePath
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.training import BackendParts, TrainerOptions, TrainingUnit
from parhelion.training import Trainer as CoreTrainer

from .arrays import Arrays
from .data import loader_for
from .mesh import Device, choose_mesh
from .placement import Placement
from .randomness import Randomness
from .world import discover_world

__all__ = ["Trainer"]

_jax: Any = jax  # it leaves some of it untyped


class Trainer(CoreTrainer):
    """Trains, validates and tests a model with jax.

    Args:
        run_name: how the run's checkpoints and logs are named; the model's save name if empty.
        train_unit: what ``total_steps``, ``valid_frequency`` and ``chkpt_frequency`` count: epochs, or updates.
        total_steps: where the run ends; ``math.inf`` for never. 0 trains nothing.
        valid_frequency: units between validations; None for none.
        chkpt_frequency: units between checkpoints; None for a last one only.
        print_frequency: updates between rows of the log; None for none but validations'.
        accumulation_steps: batches per update.
        enable_cudnn_benchmark: means nothing here, so True is refused.
        enable_deterministic: insist on deterministic kernels, so that weights are the same bits again.
        early_stop_cycles: validations without an improvement after which training stops; None or 0 for never.
        use_cpu: train on the CPU although there are other devices.
        gpus: ids of the devices to train on, of whatever platform jax runs on; None for all.
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
        mesh: devices of your own choice and order; batches are split over its axis "data", or its only one. In place of
            ``use_cpu`` and ``gpus``.
        steps_per_execution: the most iterations that are trained in one compiled call, between the points where
            something is due. Samples, keys, rows and weights are the same for any number. Hooks of batches come behind
            the call, in order, and see the model as it is then; a request to stop takes effect at a call's end. For a
            LossModel.

    Raises:
        InvalidValueError: (a ValueError) an argument cannot work; the message names it.
    """

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
        mesh: Mesh | None = None,
        steps_per_execution: int = 1,
    ) -> None:
        if isinstance(random_seed, jax.Array):
            raise InvalidTypeError(
                f"random_seed is a jax array of {random_seed.dtype}; expected an integer from 0 to 2**64 - 1. Keys are "
                "made from it: a loss gets one for each step, and setup takes others from self.key('params')."
            )
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
        placement = Placement(choose_mesh(mesh, use_cpu=use_cpu, gpus=gpus))
        _check_flags(enable_cudnn_benchmark, enable_deterministic, _devices(placement)[0].platform)
        steps: Any = steps_per_execution
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InvalidValueError(
                f"steps_per_execution is {steps!r}; expected an integer >= 1. 1 trains step by step."
            )
        super().__init__(options, _parts(placement, steps))


def _check_flags(benchmark: Any, deterministic: Any, platform: str) -> None:
    for name, flag in {"enable_cudnn_benchmark": benchmark, "enable_deterministic": deterministic}.items():
        if not isinstance(flag, bool):
            raise InvalidTypeError(f"{name} is {flag!r}; expected True or False.")
    if benchmark:
        raise InvalidValueError(
            "enable_cudnn_benchmark is True; expected False on jax, where XLA chooses kernels when it compiles. Leave "
            "it out."
        )
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and platform == "gpu" and "--xla_gpu_deterministic_ops=true" not in flags:
        raise InvalidValueError(
            f"enable_deterministic is True and XLA_FLAGS is {flags!r}; expected --xla_gpu_deterministic_ops=true in "
            "it, which XLA reads once. Set it in the environment, before jax starts."
        )


def _devices(placement: Placement) -> list[Device]:
    """Return this process's devices, in the mesh's order."""
    every: list[Device] = placement.mesh.devices.flatten().tolist()
    return [device for device in every if device.process_index == _jax.process_index()]


def _parts(placement: Placement, steps_per_execution: int) -> BackendParts:
    """Return jax's parts of the core's trainer."""
    devices = _devices(placement)
    platform = devices[0].platform

    def describe() -> Mapping[str, str]:
        return {"backend": f"jax {jax.__version__}", "devices": f"{placement.mesh.size} x {platform}"}

    def switches() -> AbstractContextManager[Any]:
        # What user code makes without saying where belongs beside the run's own arrays.
        context: Any = jax.default_device(devices[0])
        return cast("AbstractContextManager[Any]", context)

    return BackendParts(
        name="jax",
        device=devices[0],
        gpu_ids=[] if platform == "cpu" else [device.id for device in devices],
        placement=placement,
        randomness=Randomness(),
        world=discover_world(),
        arrays=Arrays(),
        create_dataloader=partial(loader_for, num_shards=placement.num_shards),
        switches=switches,
        steps_per_execution=steps_per_execution,
        computes_as_one=True,
        describe=describe,
    )
