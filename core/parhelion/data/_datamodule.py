"""The data of an experiment in one place: prepared once, set up on every rank, loaded by split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from parhelion.errors import DataError, InvalidTypeError
from parhelion.sampling import ResumableSamplerType

from ._loader import open_loader
from ._params import DataLoaderParams, Dataset, DatasetSplit

__all__ = ["DataModule", "LoaderCreator"]


class LoaderCreator(Protocol):
    """What a data module asks of its trainer."""

    @property
    def is_distributed(self) -> bool:
        """Whether several ranks share the data."""
        ...

    def create_dataloader(
        self, dataset: Any, split: DatasetSplit, params: DataLoaderParams
    ) -> tuple[Any, ResumableSamplerType]:
        """Return this backend's loader of the dataset, and the sampler that says which records come when."""
        ...


class DataModule(ABC):
    """The data sets of an experiment.

    A subclass makes them in :meth:`setup` and assigns what ``_create_dataset`` returns to ``_train_dataset``,
    ``_valid_dataset`` and ``_test_dataset``, as far as it has them::

        class Digits(DataModule):
            def setup(self):
                self._train_dataset = self._create_dataset(Records(train=True), DataLoaderParams(shuffle=True))
                self._valid_dataset = self._create_dataset(Records(train=False), {"batch_size": 64})
    """

    # On the class, so that a subclass may leave super().__init__() out.
    _trainer: LoaderCreator | None = None
    _train_dataset: Dataset | None = None
    _valid_dataset: Dataset | None = None
    _test_dataset: Dataset | None = None

    def prepare_data(self) -> None:
        """Download and convert what :meth:`setup` needs; one process alone runs it: keep nothing in self."""

    @abstractmethod
    def setup(self) -> None:
        """Make the data sets; runs in every process."""

    def teardown(self) -> None:
        """Release what :meth:`setup` took; runs once training or testing is over."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this object; nothing, unless overridden."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` returned back in; it is called after :meth:`setup`."""

    @property
    def trainer(self) -> LoaderCreator:
        """The trainer that runs this data module.

        Raises:
            DataError: there is none.
        """
        if self._trainer is None:
            raise DataError(
                f"trainer of {type(self).__name__} is None; expected the one that runs it. It is there once "
                "a trainer has been given this data module, from prepare_data on; or assign one."
            )
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: LoaderCreator | None) -> None:
        self._trainer = trainer

    @property
    def is_distributed(self) -> bool:
        """Whether several ranks share the data."""
        return self._trainer is not None and self._trainer.is_distributed

    @property
    def train_dataset(self) -> Any | None:
        """The training data set, if there is one."""
        return None if self._train_dataset is None else self._train_dataset.dataset

    @property
    def train_params(self) -> DataLoaderParams | None:
        """How the training data set is loaded, if there is one."""
        return None if self._train_dataset is None else self._train_dataset.params

    @property
    def train_fingerprint(self) -> str | None:
        """What tells the content of the training data set from another's, if it offers that.

        It is the data set's attribute or method ``fingerprint``, or what Hugging Face's keep under ``_fingerprint``.
        """
        dataset = self.train_dataset
        found = getattr(dataset, "fingerprint", None)
        if found is None:
            found = getattr(dataset, "_fingerprint", None)
        value = found() if callable(found) else found
        return None if value is None else str(value)

    @property
    def valid_dataset(self) -> Any | None:
        """The validation data set, if there is one."""
        return None if self._valid_dataset is None else self._valid_dataset.dataset

    @property
    def test_dataset(self) -> Any | None:
        """The test data set, if there is one."""
        return None if self._test_dataset is None else self._test_dataset.dataset

    def train_dataloader(self) -> tuple[Any, ResumableSamplerType] | None:
        """Return the loader and the sampler of the training split, or None if there is no such split."""
        return self._create_dataloader(self._train_dataset, DatasetSplit.TRAIN)

    def valid_dataloader(self) -> tuple[Any, ResumableSamplerType] | None:
        """Return the loader and the sampler of the validation split, or None if there is no such split."""
        return self._create_dataloader(self._valid_dataset, DatasetSplit.VALID)

    def test_dataloader(self) -> tuple[Any, ResumableSamplerType] | None:
        """Return the loader and the sampler of the test split, or None if there is no such split."""
        return self._create_dataloader(self._test_dataset, DatasetSplit.TEST)

    def _create_dataset(self, dataset: Any, params: DataLoaderParams | Mapping[str, Any]) -> Dataset:
        """Return the dataset with a copy of its params, so that one object may serve several splits.

        Raises:
            InvalidTypeError: ``params`` is neither params nor a mapping.
            InvalidValueError: a key of the mapping is unknown.
        """
        if isinstance(params, DataLoaderParams):
            params = params.to_dict()
        if not isinstance(params, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise InvalidTypeError(
                f"params of a dataset is {params!r}; expected DataLoaderParams or a table of its fields. "
                "Pass DataLoaderParams() to take the defaults."
            )
        return Dataset(dataset, DataLoaderParams.from_dict(params))

    def _create_dataloader(self, pair: Dataset | None, split: DatasetSplit) -> tuple[Any, ResumableSamplerType] | None:
        if pair is None:
            return None
        if not isinstance(pair, Dataset):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped users
            raise InvalidTypeError(
                f"_{split.name.lower()}_dataset of {type(self).__name__} is a {type(pair).__name__}; "
                "expected what self._create_dataset(dataset, params) returns. Assign that in setup."
            )
        if self._trainer is None:
            return open_loader(pair.dataset, split, pair.params)
        return self._trainer.create_dataloader(pair.dataset, split, pair.params)
