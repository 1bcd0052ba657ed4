import pytest

from parhelion.data import DataLoaderParams, DataModule, Dataset, DatasetSplit, Loader
from parhelion.errors import DataError, InvalidTypeError, InvalidValueError
from parhelion.sampling import ResumableRandomSampler, ResumableSequentialSampler, Tail


class Squares(DataModule):
    def __init__(self, **params):
        # Leaves super().__init__() out, as users do.
        self.params = params

    def setup(self):
        self._train_dataset = self._create_dataset(range(10), DataLoaderParams(shuffle=True, **self.params))
        self._valid_dataset = self._create_dataset(range(5), self.params)


class FakeTrainer:
    is_distributed = True

    def __init__(self):
        self.asked = []

    def create_dataloader(self, dataset, split, params):
        self.asked.append((dataset, split, params))
        return "loader", "sampler"


def test_setup_must_be_written():
    with pytest.raises(TypeError, match="setup"):
        DataModule()


def test_before_setup_there_is_no_data():
    module = Squares()
    assert (module.train_dataset, module.valid_dataset, module.test_dataset) == (None, None, None)
    assert module.train_dataloader() is module.valid_dataloader() is module.test_dataloader() is None


def test_the_hooks_that_may_be_left_out_do_nothing():
    module = Squares()
    assert module.prepare_data() is None
    assert module.teardown() is None
    assert module.state_dict() == {}
    assert module.load_state_dict({}) is None


def test_after_setup_the_properties_are_the_datasets_themselves():
    module = Squares()
    module.setup()
    assert (module.train_dataset, module.valid_dataset, module.test_dataset) == (range(10), range(5), None)


def test_create_dataset_copies_the_params():
    params = DataLoaderParams(batch_size=4, options={"global_rng": "off"})
    pair = Squares()._create_dataset(range(3), params)
    assert type(pair) is Dataset
    assert pair.params == params
    params.batch_size = 5
    params.options["global_rng"] = "batch"
    assert (pair.params.batch_size, pair.params.options) == (4, {"global_rng": "off"})


def test_create_dataset_takes_a_table():
    assert Squares()._create_dataset(range(3), {"batch_size": 4}).params == DataLoaderParams(batch_size=4)
    with pytest.raises(InvalidValueError, match="Did you mean 'batch_size'"):
        Squares()._create_dataset(range(3), {"batch_sise": 4})
    with pytest.raises(InvalidTypeError, match="params of a dataset is 4; expected DataLoaderParams or a table"):
        Squares()._create_dataset(range(3), 4)


def test_without_a_trainer_the_loaders_are_the_cores_own():
    module = Squares(batch_size=4)
    module.setup()
    loader, sampler = module.train_dataloader()
    assert type(loader) is Loader
    assert type(sampler) is ResumableRandomSampler
    assert sorted(i for batch in loader for i in batch.tolist()) == list(range(10))
    loader, sampler = module.valid_dataloader()
    assert (type(sampler), sampler.shard.tail) == (ResumableSequentialSampler, Tail.MASK)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4]]
    assert module.test_dataloader() is None


def test_with_a_trainer_the_loaders_are_the_trainers():
    module, trainer = Squares(batch_size=4), FakeTrainer()
    module.trainer = trainer
    module.setup()
    module._test_dataset = module._create_dataset(range(3), {})
    assert module.train_dataloader() == module.valid_dataloader() == module.test_dataloader() == ("loader", "sampler")
    assert [(data, split) for data, split, _ in trainer.asked] == [
        (range(10), DatasetSplit.TRAIN),
        (range(5), DatasetSplit.VALID),
        (range(3), DatasetSplit.TEST),
    ]
    assert trainer.asked[1][2] == DataLoaderParams(batch_size=4)


def test_is_distributed_is_the_trainers():
    module = Squares()
    assert module.is_distributed is False
    module.trainer = FakeTrainer()
    assert module.is_distributed is True


def test_the_trainer_is_missed_by_name():
    with pytest.raises(DataError, match="trainer of Squares is None; expected the one that runs it"):
        _ = Squares().trainer
    module = Squares()
    module.trainer = FakeTrainer()
    assert isinstance(module.trainer, FakeTrainer)


def test_a_bare_dataset_is_refused_with_what_to_assign():
    module = Squares()
    module._valid_dataset = range(3)
    with pytest.raises(
        InvalidTypeError, match=r"_valid_dataset of Squares is a range; expected what self._create_dataset"
    ):
        module.valid_dataloader()
