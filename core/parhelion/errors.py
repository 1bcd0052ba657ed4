"""Every error that the package raises on purpose.

::

    ParhelionError
    ├── InvalidValueError          (ValueError)   an argument's value
    ├── InvalidTypeError           (TypeError)    an argument's type
    ├── RegistryError
    │   ├── UnknownNameError       (KeyError)     no such name; near matches are listed
    │   └── DuplicateNameError     (ValueError)   the name is taken
    ├── SampleScopeError           (RuntimeError) a record's generator was asked for outside a fetch
    ├── PluginError
    │   ├── DuplicatePluginError   (KeyError)     a second plugin with one id
    │   └── PluginConflictError    (ValueError)   two plugins claim one unique override
    ├── DataError
    │   ├── RecordError                           a dataset failed; names the sample index
    │   ├── CollateError           (TypeError)    records do not fit together; names index and field
    │   └── WorkerError            (RuntimeError) a loader's worker process failed, as a process
    ├── CheckpointError
    │   ├── UnsavableValueError    (TypeError)    a value has no place in a checkpoint; names its path
    │   ├── DamagedCheckpointError                bytes are missing or not those that were written
    │   ├── CheckpointVersionError                written by a newer format
    │   └── CheckpointMismatchError (ValueError)  sound, but of another experiment
    ├── NonFiniteLossError         (ArithmeticError)  NaN or inf; names the first bad iteration
    ├── ResumeError                (AssertionError)   a run started again differs from one never stopped
    ├── ContractError              (AssertionError)   a backend does not do what the core asks of it
    ├── BackendNotFoundError       (ImportError)  no backend can be loaded by that name
    ├── WorldError                 (RuntimeError) processes do not find each other
    └── MissingExtraError          (ImportError)  an optional dependency is not installed

A message says what is wrong with this value, what is allowed, and one way out.
"""

from __future__ import annotations

__all__ = [
    "BackendNotFoundError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointVersionError",
    "CollateError",
    "ContractError",
    "DamagedCheckpointError",
    "DataError",
    "DuplicateNameError",
    "DuplicatePluginError",
    "InvalidTypeError",
    "InvalidValueError",
    "MissingExtraError",
    "NonFiniteLossError",
    "ParhelionError",
    "PluginConflictError",
    "PluginError",
    "RecordError",
    "RegistryError",
    "ResumeError",
    "SampleScopeError",
    "UnknownNameError",
    "UnsavableValueError",
    "WorkerError",
    "WorldError",
]


class ParhelionError(Exception):
    """What every error of this package derives from."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; a designed message must stay readable.
        return str(self.args[0]) if self.args else ""


class InvalidValueError(ParhelionError, ValueError):
    """An argument has the right type and a value that cannot work."""


class InvalidTypeError(ParhelionError, TypeError):
    """An argument has a type that cannot work."""


class RegistryError(ParhelionError):
    """A registry was asked for, or given, a name it cannot serve."""


class UnknownNameError(RegistryError, KeyError):
    """No entry has that name."""


class DuplicateNameError(RegistryError, ValueError):
    """The name already belongs to another entry."""


class SampleScopeError(ParhelionError, RuntimeError):
    """A record's random generator was asked for where no record is being fetched."""


class PluginError(ParhelionError):
    """A plugin cannot be attached."""


class DuplicatePluginError(PluginError, KeyError):
    """Another plugin already has that id."""


class PluginConflictError(PluginError, ValueError):
    """Two plugins claim an override that must stay unique."""


class DataError(ParhelionError):
    """Something on the way from indices to a batch failed."""


class RecordError(DataError):
    """A dataset raised while it was asked for records; the original is chained."""


class CollateError(DataError, TypeError):
    """Records of one batch do not fit together."""


class WorkerError(DataError, RuntimeError):
    """A worker process of a loader died, hung or could not start, or what it sent cannot be had here."""


class CheckpointError(ParhelionError):
    """Something about a checkpoint is wrong."""


class UnsavableValueError(CheckpointError, TypeError):
    """A value in the state has no representation in a checkpoint."""


class DamagedCheckpointError(CheckpointError):
    """Parts of a checkpoint are missing, or are not the bytes that were written."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint was written by a newer format than this release reads."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A sound checkpoint belongs to another experiment."""


class NonFiniteLossError(ParhelionError, ArithmeticError):
    """A loss became NaN or infinite."""


class ResumeError(ParhelionError, AssertionError):
    """A run that was stopped and started again was given something else than one that never stopped."""


class ContractError(ParhelionError, AssertionError):
    """A backend does not do what the core asks of every backend."""


class BackendNotFoundError(ParhelionError, ImportError):
    """No backend can be loaded by that name, or none was chosen where there are several."""


class WorldError(ParhelionError, RuntimeError):
    """The processes that train together do not find each other, or one of them has failed or is gone."""


class MissingExtraError(ParhelionError, ImportError):
    """A part of the package needs a library that comes with one of its extras."""
