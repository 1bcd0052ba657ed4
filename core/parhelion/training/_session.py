"""What surrounds a fit or a test: everything set up in the documented order, and torn down at the end."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from parhelion.data import DataModule
from parhelion.errors import InvalidTypeError
from parhelion.plugins import Plugin
from parhelion.registry import update_all_registries
from parhelion.seeds import derive

from ._merging import get_merging_world
from ._model import Model
from ._options import TrainerOptions
from ._protocols import BackendParts
from ._together import let_first_act
from ._window import Window

__all__ = ["session"]


@contextmanager
def session(
    trainer: Any,
    model: Model,
    datamodule: DataModule,
    plugins: Mapping[str, Plugin],
    options: TrainerOptions,
    parts: BackendParts,
    *,
    fast_init: bool,
    is_ready: bool,
) -> Generator[Window]:
    """Set up plugins, data and model; yield where the model's values go.

    Args:
        trainer: what the others know as their trainer.
        model: what is trained or tested.
        datamodule: its data; torn down at the end.
        plugins: by id; one may register others while it is configured.
        options: what the user decided.
        parts: what the backend brings.
        fast_init: the model will only be tested.
        is_ready: the model is set up already.

    Raises:
        InvalidTypeError: ``model`` is no model, or ``datamodule`` no data module.
    """
    if not isinstance(model, Model):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
        raise InvalidTypeError(f"model is {model!r}; expected a parhelion.Model.")
    if not isinstance(datamodule, DataModule):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidTypeError(f"datamodule is {datamodule!r}; expected a parhelion.DataModule.")

    def seed(purpose: str) -> None:
        # Each purpose has streams of its own, so that a plugin that draws more changes no split of the data.
        parts.randomness.seed(derive(options.random_seed, "init", purpose))

    window = Window(parts.placement, guard=options.nan_guard, world=get_merging_world(parts))
    datamodule.trainer = trainer
    model.attach(trainer, window)
    # A test or a prediction is no part of a run, so what the user's own code draws goes on where it was.
    with parts.switches(), parts.randomness.aside() if fast_init else nullcontext():
        if options.src_root is not None:
            update_all_registries(options.src_root, import_prefix=options.import_prefix)
        seed("preparation")
        let_first_act(parts.world, datamodule.prepare_data, "prepare_data")
        for plugin in list(plugins.values()):
            plugin.configure_trainer(trainer)
        for plugin in list(plugins.values()):
            plugin.configure_model(model)
        seed("plugins")
        for plugin in list(plugins.values()):
            plugin.setup()
        try:
            seed("data")
            datamodule.setup()
            if not is_ready:
                seed("model")
                model.validated = {}
                model.start_setup()
                model.setup(fast_init)
                model.finish_setup(fast_init)
            model.train()
            yield window
        finally:
            datamodule.teardown()
