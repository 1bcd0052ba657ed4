"""Checkpoints where nothing can be renamed: an object store over its real protocol, memory, and folders far away."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import parhelion
from parhelion.checkpoint import (
    HostArray,
    Part,
    RemotePath,
    ShardedArray,
    _names,
    _remote,
    begin_shared,
    commit_shared,
    delete_checkpoint,
    find_last_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    prune,
    remove_leftovers,
    save_checkpoint,
    supersede,
    write_shard,
)
from parhelion.errors import CheckpointError, DamagedCheckpointError, InvalidValueError, MissingExtraError
from support.s3_server import running_s3_server

fsspec = pytest.importorskip("fsspec", reason="checkpoints in object stores need fsspec")
local = pytest.importorskip("fsspec.implementations.local")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", str(Path(parhelion.__file__).parents[1])])}
SHARD = "arrays-00000.safetensors"


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("s3fs", reason="an object store is spoken to by s3fs")
    pytest.importorskip("moto.server", reason="the S3 protocol is served by moto")
    with running_s3_server() as url:
        options = {"endpoint_url": url, "key": "key", "secret": "secret", "default_block_size": 5 << 20}
        before = fsspec.config.conf.get("s3")
        fsspec.config.conf["s3"] = options
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("bucket")
        yield options
        fsspec.config.conf.pop("s3")
        if before is not None:
            fsspec.config.conf["s3"] = before


class Folders(local.LocalFileSystem):
    """A place with real folders, which have to be made, and go only when they are empty."""

    protocol = "folders"

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named | {"auto_mkdir": False})

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("folders://"))


@pytest.fixture(params=["s3", "memory", "folders"])
def root(request, tmp_path):
    if request.param == "folders":
        fsspec.register_implementation("folders", Folders, clobber=True)
        return f"folders://{tmp_path}/runs/run"
    if request.param == "s3":
        request.getfixturevalue("server")
    return f"{request.param}://bucket/{tmp_path.name}/{os.urandom(4).hex()}"


@pytest.fixture
def bucket(server, tmp_path):
    return f"s3://bucket/{tmp_path.name}/{os.urandom(4).hex()}"


def system_of(url):
    return fsspec.core.url_to_fs(str(url), use_listings_cache=False)


def files(root):
    system, path = system_of(root)
    if not system.exists(path):
        return []
    return sorted(name.strip("/").removeprefix(path.strip("/") + "/") for name in system.find(path))


def folders(root):
    system, path = system_of(root)
    return sorted(entry["name"].rpartition("/")[2] for entry in system.ls(path, detail=True))


def change(url, by):
    system, path = system_of(url)
    system.pipe_file(path, by(system.cat_file(path)))


def flip(raw):
    return raw[:-1] + bytes([raw[-1] ^ 1])


def meta(iteration, epoch=1):
    return {"run_name": "run", "global_epoch": epoch, "global_iteration": iteration}


def save(root, iteration=1, epoch=1, value=None, name=None):
    tree = {"w": np.full(5, iteration if value is None else value), "note": "text"}
    return save_checkpoint(root, name or f"run_epoch_{epoch}_iter_{iteration}", tree, meta(iteration, epoch))


def test_what_was_saved_comes_back_and_the_newest_is_found(root):
    assert find_last_checkpoint(root) is None
    assert load_newest(root) is None
    assert list_checkpoints(root) == []
    for iteration, epoch in ((9, 3), (100, 1), (10, 2), (50, 2)):
        path = save(root, iteration, epoch)
    assert path == RemotePath(root) / "run_epoch_2_iter_50"
    assert [info.iteration for info in list_checkpoints(root)] == [100, 50, 10, 9]
    last = find_last_checkpoint(root)
    assert str(last) == f"{root}/run_epoch_1_iter_100"
    for where in (last, str(last)):
        loaded = load_checkpoint(where)
        np.testing.assert_array_equal(loaded.tree["w"], np.full(5, 100))
        assert (loaded.path, loaded.tree["note"], loaded.meta) == (last, "text", meta(100))
    assert load_newest(root).path == last
    assert files(last) == [SHARD, "manifest.json"]
    system, path = system_of(f"{root}/last.json")
    assert json.loads(system.cat_file(path)) == {"name": "run_epoch_2_iter_50", "iteration": 50, "epoch": 2}


def test_an_array_larger_than_what_is_sent_or_read_at_once_comes_back(root):
    whole = np.random.default_rng(0).integers(0, 256, 13_000_001, np.uint8)
    path = save_checkpoint(root, "c", {"a": np.ones(3), "w": whole}, meta(1))
    np.testing.assert_array_equal(load_checkpoint(path).tree["w"], whole)


def test_a_missing_one_is_told_by_its_url(root):
    with pytest.raises(CheckpointError, match=rf"^checkpoint is '{root}/nowhere'; expected an existing folder"):
        load_checkpoint(f"{root}/nowhere")


def test_a_checkpoint_of_that_name_is_replaced_and_good_at_every_moment(root, monkeypatch):
    path = save(root, value=1)
    seen = []

    def looking(function):
        def look(*arguments, **named):
            seen.append(load_checkpoint(path).tree["w"][0])
            result = function(*arguments, **named)
            seen.append(load_checkpoint(path).tree["w"][0])
            return result

        return look

    for name in ("_make_folder", "_delete"):
        monkeypatch.setattr(_remote, name, looking(getattr(_remote, name)))
    save(root, value=2)
    monkeypatch.undo()
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (1, 2)
    assert files(root) == [
        "last.json",
        *(f"{path.name}/{file}" for file in ("arrays-00001.safetensors", "manifest.json")),
    ]


def test_pruning_and_deleting_leave_nothing_of_what_they_delete(root):
    paths = {iteration: save(root, iteration) for iteration in (1, 2, 3, 10, 20)}
    assert prune(root, 2, protect=[str(paths[2])]) == [paths[1], paths[3]]
    assert [info.iteration for info in list_checkpoints(root)] == [20, 10, 2]
    delete_checkpoint(paths[2])
    assert [info.iteration for info in list_checkpoints(root)] == [20, 10]
    assert folders(root) == ["last.json", "run_epoch_1_iter_10", "run_epoch_1_iter_20"]
    with pytest.raises(CheckpointError, match=rf"{root}/nothing is no checkpoint; expected a folder with manifest"):
        delete_checkpoint(f"{root}/nothing")


@pytest.mark.parametrize("file", [SHARD, "manifest.json"])
def test_a_damaged_one_is_marked_and_said_once_and_the_next_newest_used(root, caplog, file):
    save(root, 1)
    path = save(root, 2)
    change(path / file, flip)
    with pytest.raises(DamagedCheckpointError, match=rf"^checkpoint {path} is damaged: .*{file}"):
        load_checkpoint(path)
    with caplog.at_level(logging.WARNING, logger="parhelion"):
        assert load_newest(root).meta["global_iteration"] == 1
        assert load_newest(root).meta["global_iteration"] == 1
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("(damaged.json in it says so)")
    assert [info.iteration for info in list_checkpoints(root)] == [1]
    assert save(root, 2) == path
    assert load_newest(root).path == path
    assert files(path) == ["arrays-00001.safetensors", "manifest.json"]


def test_a_missing_file_of_arrays_is_damage(root):
    save(root, 1)
    path = save(root, 2)
    system, inside = system_of(path / SHARD)
    system.rm_file(inside)
    with pytest.raises(DamagedCheckpointError, match=rf"{SHARD} is missing"):
        load_checkpoint(path)
    assert load_newest(root).meta["global_iteration"] == 1


def test_what_a_run_has_left_behind_for_good_is_marked_until_it_is_saved_again(root):
    save(root, 1)
    path = save(root, 2)
    assert supersede(path) == "superseded.json in it says so"
    assert [info.iteration for info in list_checkpoints(root)] == [1]
    assert load_checkpoint(path).meta["global_iteration"] == 2
    save(root, 2)
    assert [info.iteration for info in list_checkpoints(root)] == [2, 1]


def test_a_folder_without_a_manifest_is_none_and_nothing_is_said(root, caplog):
    save(root, 1)
    path = save(root, 2)
    system, inside = system_of(path / "manifest.json")
    system.rm_file(inside)
    assert load_newest(root).meta["global_iteration"] == 1
    assert caplog.records == []
    assert files(path) == [SHARD]


# -- several processes -------------------------------------------------------------------------------------------------

WHOLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def rows(begin, stop):
    part = HostArray("float32", (stop - begin, 3), WHOLE[begin:stop].reshape(-1).view(np.uint8))
    return {"w": ShardedArray("float32", (4, 3), (Part((begin, 0), part),))}


def save_shared(root, *bounds, name="c", before=lambda scratch: None):
    scratch = begin_shared(root, name)
    before(scratch)
    for rank, bound in enumerate(bounds[1:], 1):
        write_shard(str(scratch), rank, rows(*bound))
    return commit_shared(str(scratch), name, {"w": ["array", "w"]}, rows(*bounds[0]), meta(1), len(bounds))


def test_several_processes_write_one_checkpoint_there(root):
    for count in (1, 2):
        path = save_shared(root, (0, 2), (2, 3), (3, 4))
        np.testing.assert_array_equal(load_checkpoint(path).tree["w"], WHOLE)
        assert len(files(path)) == 4
        assert folders(root) == ["c", "last.json"], count


def test_parts_that_leave_a_hole_are_taken_back(root):
    save(root, 1)
    before = files(root)
    with pytest.raises(CheckpointError, match=r"no part has \[2:3, 0:3\]"):
        save_shared(root, (0, 2), (3, 4))
    assert files(root) == before
    assert folders(root) == ["last.json", "run_epoch_1_iter_1"]


def test_the_failure_of_another_rank_is_told_there(root):
    def fail(scratch):
        class Broken:
            dtype, shape, parts = "float32", (4, 3), (Part((0, 0), None),)

        with pytest.raises(AttributeError):
            write_shard(scratch, 1, {"w": Broken()})

    with pytest.raises(CheckpointError, match=r"^rank 1 could not write its part of the checkpoint \(AttributeError"):
        save_shared(root, (0, 4), (4, 4), before=fail)
    assert files(root) == []


# -- failures ----------------------------------------------------------------------------------------------------------


def fail_upload(monkeypatch, root):
    def write(self, data):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_remote._Upload, "write", write)


def fail_manifest(monkeypatch, root, *, is_put=False):
    real = _remote.RemoteStore.put

    def put(self, folder, file, data):
        if file == "manifest.json":
            if is_put:
                real(self, folder, file, data)
            raise OSError(110, "Connection timed out")
        real(self, folder, file, data)

    monkeypatch.setattr(_remote.RemoteStore, "put", put)


@pytest.mark.parametrize("fail", [fail_upload, fail_manifest])
@pytest.mark.parametrize("iteration", [1, 2])
def test_a_failed_save_keeps_what_was_there_and_leaves_nothing_new(root, monkeypatch, fail, iteration):
    old = save(root, 1)
    before = files(root)
    fail(monkeypatch, root)
    with pytest.raises(CheckpointError, match=rf"^checkpoint {root}/run_epoch_1_iter_{iteration} could not be written"):
        save(root, iteration, value=7)
    monkeypatch.undo()
    assert files(root) == before
    assert folders(root) == ["last.json", "run_epoch_1_iter_1"]
    assert load_checkpoint(old).tree["w"][0] == 1


def test_a_manifest_that_arrived_though_its_answer_was_lost_commits(root, monkeypatch):
    fail_manifest(monkeypatch, root, is_put=True)
    path = save(root, 1)
    monkeypatch.undo()
    assert load_newest(root).path == path
    assert files(path) == [SHARD, "manifest.json"]


def test_what_only_a_library_calls_an_error_is_a_checkpoint_error_with_the_url(root, monkeypatch):
    class OddError(Exception):
        pass

    def cat_file(*_, **__):
        raise OddError("no route")

    path = save(root, 1)
    monkeypatch.setattr(system_of(root)[0], "cat_file", cat_file)
    with pytest.raises(CheckpointError, match=rf"^checkpoint {path} cannot be read .*OddError: no route") as caught:
        load_newest(root)
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_bucket_that_is_not_there_is_told_and_not_made(server):
    with pytest.raises(CheckpointError, match=r"^checkpoint s3://no-such-bucket/run/c could not be written \("):
        save("s3://no-such-bucket/run", name="c")
    assert not system_of("s3://no-such-bucket")[0].exists("no-such-bucket")


def test_a_server_that_does_not_answer_is_told_with_the_url(server, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        options = {"endpoint_url": url, "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1}}
        monkeypatch.setitem(fsspec.config.conf, "s3", server | options)
        s3fs = pytest.importorskip("s3fs.core")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        with pytest.raises(CheckpointError, match=r"^checkpoint s3://bucket/run/c could not be written \(.*[Cc]onnect"):
            save("s3://bucket/run", name="c")
        with pytest.raises(
            CheckpointError, match=r"^the checkpoints in s3://bucket/run cannot be listed \(.*[Cc]onnect"
        ):
            load_newest("s3://bucket/run")
        with pytest.raises(CheckpointError, match=r"^checkpoint s3://bucket/run/c cannot be read \(.*[Cc]onnect"):
            load_checkpoint("s3://bucket/run/c")


# -- leftovers ---------------------------------------------------------------------------------------------------------

CHILD = """
import sys
import numpy as np
from parhelion.checkpoint import _remote, delete_checkpoint, save_checkpoint
root, moment = sys.argv[1:]

def wait():
    print("there", flush=True)
    sys.stdin.read()

def waiting(function, condition):
    def wrapped(*arguments):
        if condition(*arguments):
            wait()
        return function(*arguments)
    return wrapped

sent = []
if moment == "in the arrays":
    _remote._Upload.write = waiting(_remote._Upload.write, lambda *_: sent.append(1) or len(sent) == 5)
if moment == "before the manifest":
    _remote.RemoteStore.put = waiting(_remote.RemoteStore.put, lambda _, folder, file, data: file == "manifest.json")
if moment == "in a deletion":
    _remote._delete = waiting(_remote._delete, lambda folder, file: file.startswith("arrays"))
    delete_checkpoint(root + "/run_epoch_1_iter_2")
meta = {"run_name": "run", "global_epoch": 1, "global_iteration": 3}
save_checkpoint(root, sys.argv[1] and "run_epoch_1_iter_3", {"w": np.ones(20_000_000, np.uint8)}, meta)
"""


@pytest.mark.processes
@pytest.mark.parametrize("moment", ["in the arrays", "before the manifest", "in a deletion"])
def test_a_kill_in_an_upload_or_a_deletion_leaves_the_older_one_and_leftovers_that_go(server, bucket, moment):
    save(bucket, 1)
    older = files(bucket)
    if moment == "in a deletion":
        save(bucket, 2)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, bucket, moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"FSSPEC_S3": json.dumps(server)},
    ) as child:
        try:
            assert child.stdout.readline() == "there\n"
            assert load_newest(bucket).meta["global_iteration"] == 1
            is_sending = bool(system_of(bucket)[0].list_multipart_uploads("bucket"))
            assert is_sending == (moment == "in the arrays")
            during = files(bucket)
            assert remove_leftovers(bucket, all_hosts=True) == []
            assert files(bucket) == during
        finally:
            child.kill()
    assert load_newest(bucket).meta["global_iteration"] == 1
    system_of(bucket)[0].clear_multipart_uploads("bucket")  # as a bucket's life cycle does
    (gone,) = remove_leftovers(bucket)
    assert f"-{child.pid}-" in gone.name
    assert files(bucket) == older
    assert remove_leftovers(bucket) == []


def test_what_another_host_left_goes_only_when_that_is_asked_for(root):
    kept = save(root, 1)
    before = files(root)
    store = _remote.RemoteStore()
    scratch = RemotePath(root) / ".parhelion-saving-1-1-00000000@another.1"
    store._note(scratch, kept, 1)
    store.put(kept, "arrays-00001.safetensors", b"half of a replacement")
    mine = store.begin(RemotePath(root) / "mine")
    assert remove_leftovers(root) == []
    assert remove_leftovers(root, all_hosts=True) == [scratch]
    store.abandon(mine)
    assert files(root) == before
    assert load_checkpoint(kept).tree["note"] == "text"


def test_a_leftover_of_a_replacement_never_takes_a_file_that_the_manifest_speaks_of(root):
    kept = save(root, 1)
    store = _remote.RemoteStore()
    scratch = RemotePath(root) / _names.scratch_name("saving")
    store._note(scratch, kept, 0)
    store.abandon(scratch)
    assert load_checkpoint(kept).tree["note"] == "text"
    assert folders(root) == ["last.json", kept.name]


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(
        MissingExtraError, match=r"^checkpoints at s3://b/run need .* pip install 'parhelion\[remote\]'"
    ):
        list_checkpoints("s3://b/run")
    monkeypatch.undo()
    fsspec.register_implementation("nowhere", "no_such_library.FileSystem", errtxt="Install it", clobber=True)
    with pytest.raises(MissingExtraError, match="Install it"):
        list_checkpoints("nowhere://b/run")


def test_a_scheme_that_nobody_knows_is_refused():
    with pytest.raises(InvalidValueError, match=r"^URL is 'odd://b/run' \(.*\); expected a scheme that fsspec knows"):
        list_checkpoints("odd://b/run")
