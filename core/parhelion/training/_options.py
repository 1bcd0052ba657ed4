"""The arguments of a trainer, checked once for every backend."""

from __future__ import annotations

import datetime as dt
import math
import os
from pathlib import Path
from typing import Any, Literal

import attrs

from parhelion.checkpoint import Place, RemotePath, Retention, as_place
from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.seeds import check_seed, get_default_seed

from ._plan import Plan
from ._state import TrainingUnit

__all__ = ["TrainerOptions"]


def _place(value: str | os.PathLike[str] | RemotePath | None) -> Place | None:
    # Anything else comes to the check that follows as it is.
    return as_place(value) if isinstance(value, (str, Path, RemotePath)) else _path(value)


def _path(value: str | os.PathLike[str] | None) -> Path | None:
    # Anything else comes to the check that follows as it is.
    return Path(value) if isinstance(value, (str, os.PathLike)) else value


def _check_folder(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is None or isinstance(value, RemotePath):
        return
    if not isinstance(value, Path):
        raise InvalidTypeError(f"{attribute.name} is {value!r}; expected the path of a folder, or None.")
    if value.exists() and not value.is_dir():
        raise InvalidValueError(
            f"{attribute.name} is {str(value)!r}, a file; expected a folder, which may not exist yet."
        )


def _check_text(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{attribute.name} is {value!r}; expected a string.")


def _check_flag(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidTypeError(f"{attribute.name} is {value!r}; expected True or False.")


def _check_limit(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidValueError(f"{attribute.name} is {value!r}; expected an integer >= 1, or None for no limit.")


def _check_seconds(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):
        raise InvalidValueError(f"{attribute.name} is {value!r}; expected seconds > 0, or None for no deadline.")


def _seconds(value: float | dt.timedelta | None) -> float | None:
    return value.total_seconds() if isinstance(value, dt.timedelta) else value


def _seed(value: int | None) -> int:
    return get_default_seed() if value is None else check_seed(value)


@attrs.frozen(kw_only=True)
class TrainerOptions:
    """What a user decides about a trainer; see the backend's ``Trainer`` for each argument."""

    run_name: str = attrs.field(default="", validator=_check_text)
    train_unit: TrainingUnit | str = TrainingUnit.EPOCH
    total_steps: int | float = 0
    valid_frequency: int | None = None
    chkpt_frequency: int | None = None
    print_frequency: int | None = None
    accumulation_steps: int = 1
    early_stop_cycles: int | None = None
    random_seed: int = attrs.field(default=None, converter=_seed)
    enable_tensorboard: bool = attrs.field(default=False, validator=_check_flag)
    enable_file_logging: bool = attrs.field(default=False, validator=_check_flag)
    enable_progress_bar: bool = attrs.field(default=False, validator=_check_flag)
    chkpt_root: Place | None = attrs.field(default=None, converter=_place, validator=_check_folder)
    log_path: Path | None = attrs.field(default=None, converter=_path, validator=_check_folder)
    run_path: Path | None = attrs.field(default=None, converter=_path, validator=_check_folder)
    src_root: Path | None = attrs.field(default=None, converter=_path, validator=_check_folder)
    import_prefix: str = attrs.field(default="", validator=_check_text)
    print_banner: bool = attrs.field(default=True, validator=_check_flag)
    chkpt_every_iterations: int | None = None
    chkpt_every_seconds: float | None = attrs.field(default=None, converter=_seconds)
    chkpt_keep_last: int | None = attrs.field(default=None, validator=_check_limit)
    chkpt_keep_best: int | None = attrs.field(default=None, validator=_check_limit)
    chkpt_keep_every: int | None = attrs.field(default=None, validator=_check_limit)
    chkpt_in_background: bool = attrs.field(default=True, validator=_check_flag)
    stop_deadline: float | None = attrs.field(default=30.0, converter=_seconds, validator=_check_seconds)
    limit_batches: int | None = attrs.field(default=None, validator=_check_limit)
    dry_run: bool = attrs.field(default=False, validator=_check_flag)
    nan_guard: bool = attrs.field(default=True, validator=_check_flag)

    def __attrs_post_init__(self) -> None:
        if "/" in self.run_name or self.run_name.startswith("."):
            raise InvalidValueError(
                f"run_name is {self.run_name!r}; expected a name that can begin a folder's: no '/', no leading '.'."
            )
        self.plan()  # checks everything that it takes
        if self.src_root is not None and not self.src_root.is_dir():
            raise InvalidValueError(f"src_root is {str(self.src_root)!r}; expected an existing folder of modules.")
        if self.enable_tensorboard and self.run_path is None:
            raise InvalidValueError(
                "enable_tensorboard is True and run_path is None; expected a folder for event files."
            )
        if self.enable_file_logging and self.log_path is None:
            raise InvalidValueError(
                "enable_file_logging is True and log_path is None; expected a folder for log files."
            )

    def plan(self) -> Plan:
        """Return the plan that these options describe."""
        if self.dry_run:
            return Plan(
                unit=self.train_unit,
                total_steps=1,
                accumulation_steps=self.accumulation_steps,
                valid_frequency=None if self.valid_frequency is None else 1,
                print_frequency=1,
            )
        return Plan(
            unit=self.train_unit,
            total_steps=self.total_steps,
            accumulation_steps=self.accumulation_steps,
            valid_frequency=self.valid_frequency,
            chkpt_frequency=self.chkpt_frequency,
            print_frequency=self.print_frequency,
            chkpt_every_iterations=self.chkpt_every_iterations,
            chkpt_every_seconds=self.chkpt_every_seconds,
            early_stop_cycles=self.early_stop_cycles,
        )

    def retention(self, monitor: str | None, mode: Literal["min", "max"]) -> Retention | None:
        """Return which checkpoints of a model stay, None for all.

        Args:
            monitor: the model's monitored value.
            mode: whether the least or the greatest is best.

        Raises:
            InvalidValueError: the best are to be kept, and the model monitors nothing.
        """
        if self.chkpt_keep_best is not None and monitor is None:
            raise InvalidValueError(
                f"chkpt_keep_best is {self.chkpt_keep_best} and the model monitors no value; expected one to tell the "
                'best by. Pass monitor="valid_loss" to the model.'
            )
        rules = (self.chkpt_keep_last, self.chkpt_keep_best, self.chkpt_keep_every)
        if all(rule is None for rule in rules):
            return None
        return Retention(*rules[:2], metric=monitor, mode=mode, every_iterations=rules[2])

    def batch_limit(self) -> int | None:
        """Return after how many batches an epoch or an evaluation ends early, or None."""
        return self.accumulation_steps if self.dry_run else self.limit_batches

    def keeps_files(self) -> bool:
        """Return whether the run writes anything; a dry run does not."""
        return not self.dry_run
