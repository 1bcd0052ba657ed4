"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from parhelion.checkpoint import (
    ArrayAdapter,
    Checkpoint,
    Place,
    RemotePath,
    Retention,
    checkpoint_name,
    find_last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    register_upgrade,
    remove_leftovers,
    supersede,
    upgrade,
)
from parhelion.errors import CheckpointError, CheckpointMismatchError, InvalidTypeError, InvalidValueError

from ._model import Model
from ._protocols import World
from ._saving import Request
from ._state import TrainingState
from ._stateful import entries
from ._together import act_in_turn, check_agreement, let_first_act

__all__ = [
    "RUN_VERSION",
    "CheckpointFolder",
    "check_facts",
    "find_checkpoint",
    "give_model",
    "give_weights",
    "load_run",
]

_log = logging.getLogger("parhelion")

RUN_VERSION = 2
_PATHS = (str, os.PathLike, RemotePath)


def _name_what_is_pending(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tree of a run from before a validation could be left."""
    return {"pending": False, **tree}


register_upgrade("run", 1, _name_what_is_pending)


def check_facts(saved: Mapping[str, Any], live: Mapping[str, Any], allow_changes: Collection[str]) -> None:
    """Refuse a checkpoint that another experiment wrote.

    Args:
        saved: facts in the checkpoint.
        live: facts of this run.
        allow_changes: names of facts that may differ.

    Raises:
        CheckpointMismatchError: a fact differs; shows both values.
        InvalidTypeError: ``allow_changes`` is one string.
        InvalidValueError: a name in ``allow_changes`` is no fact.
    """
    if isinstance(allow_changes, str):
        raise InvalidTypeError(
            f"allow_changes is {allow_changes!r}; expected a collection of names. "
            f"Write allow_changes=({allow_changes!r},)."
        )
    if unknown := sorted(set(allow_changes) - set(live)):
        raise InvalidValueError(f"allow_changes has {unknown}; expected some of {sorted(live)}.")
    # A data set that offers no fingerprint, now or then, is taken at its length.
    unknown_ones = {name for name in ("data_fingerprint",) if None in (saved.get(name), live.get(name))}
    changed = [
        name
        for name in live
        if name in saved and saved[name] != live[name] and name not in unknown_ones and name not in allow_changes
    ]
    if changed:
        lines = "; ".join(line for name in changed for line in _tell_change(name, saved[name], live[name]))
        raise CheckpointMismatchError(
            f"the checkpoint belongs to another experiment: {lines}. Put the old values back, start anew with "
            f"resume='never', or accept the change with allow_changes={tuple(changed)!r}."
        )


def _tell_change(name: str, saved: Any, live: Any) -> Iterator[str]:
    """Yield both values of a fact; of one that has several, those that differ."""
    if not (isinstance(saved, Mapping) and isinstance(live, Mapping)):
        yield f"{name} is {live!r} and was {saved!r} when it was saved"
        return
    old, new = cast("Mapping[str, Any]", saved), cast("Mapping[str, Any]", live)
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"{name} has {key} {new.get(key)!r} and had {old.get(key)!r} when it was saved"


@attrs.define
class CheckpointFolder:
    """The checkpoints of one model: ``chkpt_root / save_name``.

    Attributes:
        path: the folder.
        run_name: how its checkpoints' names begin.
        retention: which are kept; None for all.
        arrays: this framework's arrays in checkpoints.
        world: the processes that read and write them together.
        versions: the forms of what they hold: of the run, and of what the model gives a version.
    """

    path: Place
    run_name: str
    retention: Retention | None
    arrays: ArrayAdapter | None
    world: World
    versions: Mapping[str, int]

    def find(self, resume: str | Path) -> Checkpoint | None:
        """Return the verified checkpoint that the run goes on from, or None for a fresh run; in all processes at once.

        Args:
            resume: "auto" for the newest good one if there is one, "must" to insist on it, "never" for a fresh run, or
                the path of a checkpoint.

        Raises:
            InvalidValueError: "must", and there is none.
            CheckpointError: the named one is damaged or holds no run, or the newest was written by a newer format.
        """
        # The run's lock is held, so whatever is half made here belongs to nobody.
        let_first_act(self.world, lambda: remove_leftovers(self.path, all_hosts=True), "tidying up")
        if resume == "never":
            return None
        if resume not in ("auto", "must"):
            return act_in_turn(self.world, lambda: self._load(resume), "reading a checkpoint")
        newest = self.newest()
        if newest is None and resume == "must":
            raise InvalidValueError(
                f"resume is 'must' and there is no good checkpoint in {self.path}; expected one. "
                "Use resume='auto' to start anew where there is none."
            )
        return newest

    def make_way(self, resume: str | Path, chosen: Checkpoint | None) -> None:
        """Rename checkpoints that the run which begins now supersedes: the later ones, or all for "never"."""
        if chosen is not None:
            self._set_aside_newer(chosen)
        elif resume == "never":
            self._set_aside_all()

    def newest(self) -> Checkpoint | None:
        """Return the newest good checkpoint, or None."""
        # One that has another folder would find nothing in it but damage.
        last = find_last_checkpoint(self.path)
        check_agreement(self.world, {"the checkpoint to resume from": None if last is None else last.name})
        newest = load_newest(self.path, self.arrays, readers=self.world)
        return None if newest is None else _up_to_date(newest, self.versions)

    def _load(self, path: str | Path) -> Checkpoint:
        share = self.world.rank, self.world.size
        return _up_to_date(load_checkpoint(path, self.arrays, share=share), self.versions)

    def request(
        self, state: TrainingState, tree: Any, *, name: str, metrics: Mapping[str, float], protect: Collection[str]
    ) -> Request:
        """Return what is to be written for a checkpoint of a state.

        Args:
            state: how far the run is.
            tree: everything that a resumed run needs.
            name: the checkpoint's.
            metrics: what the validation at this state has given; empty if there was none.
            protect: names of older ones to keep.
        """
        meta = {
            "run_name": self.run_name,
            "global_iteration": state.global_iteration,
            "global_epoch": state.global_epoch,
            "metrics": dict(metrics),
            "versions": dict(self.versions),
        }
        return Request(
            root=self.path, name=name, meta=meta, tree=tree, retention=self.retention, protect=frozenset(protect)
        )

    def name_for(self, state: TrainingState) -> str:
        """Return the name of the checkpoint of a state."""
        return checkpoint_name(self.run_name, state.global_epoch, state.global_iteration)

    def _set_aside_newer(self, chosen: Checkpoint) -> None:
        # Left in place, a later "auto" would take one of them for the newest of the run that goes on from here.
        for entry in list_checkpoints(self.path):
            if entry.iteration > chosen.meta["global_iteration"]:
                done = supersede(entry.path)
                _log.warning("checkpoint %s is newer than the one resumed from; %s", entry.path.name, done)

    def _set_aside_all(self) -> None:
        # A fresh run beside an old one's checkpoints would resume from those next time.
        found = list_checkpoints(self.path)
        if isinstance(self.path, RemotePath):  # where no folder can be renamed
            for entry in found:
                _log.warning(
                    "resume='never' and there is the checkpoint %s; %s", entry.path.name, supersede(entry.path)
                )
        elif found:
            target = _free(self.path.with_name(self.path.name + ".old"))
            self.path.rename(target)
            _log.warning("resume='never' and %s holds checkpoints; the folder is now %s", self.path, target.name)


def _free(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _up_to_date(checkpoint: Checkpoint, versions: Mapping[str, int]) -> Checkpoint:
    """Return a checkpoint that ``Trainer.fit`` has written, with what it holds in the form of today.

    Raises:
        CheckpointError: something else has written it.
        CheckpointVersionError: something in it is of a newer version, or of one that nothing leads up from.
    """
    if {"state", "model", "facts"} <= set(entries(checkpoint.tree)):
        saved = checkpoint.meta.get("versions", {})
        return attrs.evolve(checkpoint, tree=upgrade(checkpoint.tree, saved, versions))
    raise CheckpointError(
        f"checkpoint {checkpoint.path} holds no run; expected one that Trainer.fit has written. Name another one, or "
        "use another chkpt_root."
    )


def find_checkpoint(folder: CheckpointFolder | None, resume: str | Path) -> Checkpoint | None:
    """Return the checkpoint that a run goes on from, or None for a fresh run; as :meth:`CheckpointFolder.find` does.

    Raises:
        InvalidTypeError: ``resume`` is neither a word nor a path.
        InvalidValueError: there is no folder, and ``resume`` needs one.
    """
    if not isinstance(resume, _PATHS):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
        raise InvalidTypeError(f"resume is {resume!r}; expected 'auto', 'must', 'never' or the path of a checkpoint.")
    if folder is not None:
        return folder.find(resume)
    if resume not in ("auto", "never"):
        raise InvalidValueError(f"resume is {str(resume)!r} and there is no chkpt_root; expected one. Pass chkpt_root.")
    return None


def load_run(path: str | Path, arrays: ArrayAdapter | None, versions: Mapping[str, int]) -> Mapping[str, Any]:
    """Return what a checkpoint of any run holds.

    Raises:
        InvalidTypeError: ``path`` is no path.
        CheckpointError: the checkpoint is damaged, or holds no run.
    """
    if not isinstance(path, _PATHS):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
        raise InvalidTypeError(f"init_from is {path!r}; expected the path of a checkpoint.")
    tree: Mapping[str, Any] = _up_to_date(load_checkpoint(path, arrays), versions).tree
    return tree


def give_model(model: Model, tree: Mapping[str, Any], backend: str, *, fast_init: bool = False) -> None:
    """Give a model its state out of a checkpoint, also of one that another backend wrote.

    Args:
        model: goes on from it.
        tree: what the checkpoint holds.
        backend: the one that runs now.
        fast_init: the model will only be tested.

    Raises:
        CheckpointMismatchError: it is of another model, or nothing says how the other backend's weights map.
    """
    writer = tree.get("backend", backend)
    if writer == backend:
        model.load_state_dict(tree["model"], fast_init=fast_init)
        model.put_attributes(tree["attributes"], fast_init=fast_init)
        return
    _log.info("the checkpoint was written on %s; weights are mapped to %s", writer, backend)
    model.load_portable(tree["portable"], writer, tree["state"].current_iteration)
    model.put_foreign_attributes(tree["attributes"])


def give_weights(model: Model, tree: Mapping[str, Any], backend: str) -> None:
    """Give a model only the weights out of a checkpoint, also of one that another backend wrote.

    Raises:
        CheckpointMismatchError: as for :func:`give_model`.
    """
    writer = tree.get("backend", backend)
    if writer == backend:
        model.load_weights(tree["model"])
        return
    portable = tree["portable"]
    model.load_portable(portable and {**portable, "average": None, "moments": None}, writer, 0)
