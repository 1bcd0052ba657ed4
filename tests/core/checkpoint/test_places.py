"""Where checkpoints can lie, as users write it."""

from pathlib import Path

import numpy as np
import pytest

from parhelion.checkpoint import RemotePath, list_checkpoints, load_checkpoint, save_checkpoint
from parhelion.checkpoint._places import as_place
from parhelion.errors import InvalidValueError

META = {"run_name": "r", "global_epoch": 1, "global_iteration": 1}


def test_a_remote_path_joins_and_prints_as_a_path_does():
    place = RemotePath("s3://bucket/runs/")
    assert str(place) == "s3://bucket/runs"
    assert str(place / "one") == "s3://bucket/runs/one"
    assert (place / "one").name == "one"
    assert (place / "one").parent == place
    assert (place / "one").with_name("two") == place / "two"
    assert len({place, RemotePath("s3://bucket/runs")}) == 1


@pytest.mark.parametrize("url", ["s3://", "://x", "bucket", "", "simplecache::s3://bucket/x"])
def test_what_is_no_url_of_a_place_is_refused(url):
    with pytest.raises(InvalidValueError, match=r"^URL is .*; expected '<scheme>://<place>'"):
        RemotePath(url)


def test_there_is_nothing_above_a_bucket():
    with pytest.raises(InvalidValueError, match="URL is 's3:/'"):
        _ = RemotePath("s3://bucket").parent


def test_a_url_of_a_file_is_a_path(tmp_path):
    folder = tmp_path / "a b%"
    path = save_checkpoint(f"file://{tmp_path}/a%20b%25", "c", {"w": np.ones(2)}, META)
    assert path == folder / "c"
    assert load_checkpoint(f"local://{tmp_path}/a%20b%25/c").path == path
    assert as_place(str(path)) == path


def test_a_url_that_was_made_a_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match=r"^path is 's3:/bucket/run', a URL .* Pass 's3://bucket/run'"):
        list_checkpoints(Path("s3://bucket/run"))
    (tmp_path / "s3:").mkdir()
    assert list_checkpoints(Path("s3:/bucket")) == []
