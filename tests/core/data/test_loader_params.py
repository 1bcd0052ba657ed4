import functools

import pytest

from parhelion.data import (
    COLLATE_FN_REGISTRY,
    DATASET_REGISTRY,
    DataLoaderParams,
    Dataset,
    DatasetSplit,
    create_collate_fn,
    create_dataset,
)
from parhelion.errors import InvalidTypeError, InvalidValueError, UnknownNameError


@DATASET_REGISTRY.register
class Letters:
    def __init__(self, text, upper=False):
        self.text = text.upper() if upper else text


@COLLATE_FN_REGISTRY.register
def join(records, separator=""):
    return separator.join(records)


@COLLATE_FN_REGISTRY.register
class Joiner:
    def __init__(self, separator):
        self.separator = separator

    def __call__(self, records):
        return self.separator.join(records)


@COLLATE_FN_REGISTRY.register
class Mute:
    pass


def test_create_dataset_constructs_what_is_registered_under_the_name():
    assert create_dataset("Letters", "ab", upper=True).text == "AB"


def test_an_unknown_dataset_is_named_with_its_near_match():
    with pytest.raises(UnknownNameError, match=r"dataset name is 'Leters'.*Did you mean 'Letters'"):
        create_dataset("Leters")


def test_a_collate_function_without_arguments_is_returned_as_it_is():
    assert create_collate_fn("join") is join


def test_arguments_of_a_collate_function_are_bound_to_it():
    bound = create_collate_fn("join", separator="-")
    assert isinstance(bound, functools.partial)
    assert bound(["a", "b"]) == "a-b"


def test_a_collate_class_is_constructed_with_the_arguments():
    assert create_collate_fn("Joiner", "+")(["a", "b"]) == "a+b"


@pytest.mark.parametrize(("args", "kwargs"), [((), {"gap": 1}), (("a", "b"), {}), ((), {"records": []})])
def test_arguments_that_leave_no_room_for_the_records_are_refused_when_they_are_bound(args, kwargs):
    with pytest.raises(InvalidTypeError, match=r"arguments of collate function 'join' are .* no way to call it"):
        create_collate_fn("join", *args, **kwargs)


def test_a_collate_class_whose_objects_cannot_be_called_is_refused():
    with pytest.raises(InvalidTypeError, match="collate function 'Mute' is a Mute, which cannot be called"):
        create_collate_fn("Mute")


@pytest.mark.parametrize(
    ("label", "split", "value"),
    [("train", DatasetSplit.TRAIN, 0), ("valid", DatasetSplit.VALID, 1), ("test", DatasetSplit.TEST, 2)],
)
def test_a_split_has_the_value_and_the_label_of_the_page(label, split, value):
    assert DatasetSplit.from_str(label) is split
    assert split.value == value


@pytest.mark.parametrize("label", ["TRAIN", "", "dev", None])
def test_another_label_is_no_split(label):
    with pytest.raises(ValueError, match=r"dataset split is .*; expected 'train', 'valid' or 'test'"):
        DatasetSplit.from_str(label)


def test_the_defaults_of_the_params_are_those_of_the_page():
    assert DataLoaderParams().to_dict() == {
        "random_seed": 6691,
        "batch_size": 1,
        "shuffle": False,
        "num_workers": 0,
        "pin_memory": True,
        "drop_last": False,
        "debug_mode": False,
        "is_distributed": None,
        "sampler": None,
        "collate_fn": None,
        "options": {},
    }


def test_params_can_be_changed_but_not_misspelled():
    params = DataLoaderParams(batch_size=2)
    params.batch_size = 3
    assert params.batch_size == 3
    with pytest.raises(AttributeError):
        params.batchsize = 4


def test_params_go_through_a_dict_and_back():
    params = DataLoaderParams(7, 8, collate_fn=join, options={"timeout": 1})
    table = params.to_dict()
    assert DataLoaderParams.from_dict(table) == params
    assert table["collate_fn"] is join


def test_a_copy_of_the_params_has_options_of_its_own():
    params = DataLoaderParams(options={"timeout": 1})
    DataLoaderParams.from_dict(params.to_dict()).options["timeout"] = 2
    params.to_dict()["options"]["timeout"] = 3
    assert params.options == {"timeout": 1}


def test_an_unknown_param_is_refused_with_a_near_match():
    with pytest.raises(InvalidValueError, match=r"data loader parameter is 'batchsize'.* Did you mean 'batch_size'"):
        DataLoaderParams.from_dict({"batchsize": 4})


def test_a_dataset_becomes_the_arguments_of_create_dataloader():
    params = DataLoaderParams(batch_size=4, options={"timeout": 1})
    table = Dataset("data", params).dict()
    assert "options" not in table
    assert (table["dataset"], table["batch_size"], table["timeout"]) == ("data", 4, 1)
