"""Tar shards and text lines: what is read, and that reading goes on at a byte."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parhelion.data import Lane, TarShards, TextLines
from parhelion.errors import CheckpointMismatchError, DataError, RecordError
from support.streams import numbered, through_checkpoint, write_tar

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def rest_after(stream, lane, count):
    """Return what follows ``count`` records, read on from their state by another reader."""
    reader = stream.open(lane)
    for _ in range(count):
        next(reader)
    other = stream.open(lane)
    other.load_state_dict(through_checkpoint(reader.state_dict()))
    return list(other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for shard, ending in enumerate([".tar", ".tar.gz", ".tar", ".tar.bz2"]):
        write_tar(root / f"s{shard}{ending}", numbered(7 + shard, 100 * shard))
    return root


@given(count=st.integers(0, 34), shuffle=st.booleans(), epoch=st.integers(0, 2))
@same_folder
def test_a_tar_shard_is_read_on_from_any_record(folder, count, shuffle, epoch) -> None:
    stream = TarShards(folder / "s*", num_lanes=1)
    lane = Lane(shuffle=shuffle, epoch=epoch, seed=7)
    whole = list(stream.open(lane))
    assert sorted(record["json"]["id"] for record in whole) == [100 * s + k for s in range(4) for k in range(7 + s)]
    assert rest_after(stream, lane, count) == whole[count:]


def test_lanes_share_the_shards_and_each_epoch_has_its_own_order_of_them(folder) -> None:
    stream = TarShards(folder / "s*", num_lanes=2)

    def shards(**lane):
        return [[r["json"]["id"] // 100 for r in stream.open(Lane(k, 2, **lane))] for k in range(2)]

    assert [sorted({*lane}) for lane in shards()] == [[0, 2], [1, 3]]
    orders = [shards(shuffle=True, epoch=epoch, seed=3) for epoch in range(8)]
    assert all({*a} | {*b} == {0, 1, 2, 3} and not {*a} & {*b} for a, b in orders)
    assert len({json.dumps(order) for order in orders}) > 2
    assert orders[0] == shards(shuffle=True, epoch=0, seed=3) != shards(shuffle=True, epoch=0, seed=4)


class Counted(io.FileIO):
    """A file that knows how much of it was read."""

    taken = 0

    def readinto(self, buffer):
        count = super().readinto(buffer)
        Counted.taken += count
        return count


def test_an_uncompressed_shard_is_entered_at_the_byte_and_not_read_from_its_start(tmp_path, monkeypatch) -> None:
    record = {"bin": bytes(200_000)}
    path = write_tar(tmp_path / "big.tar", [{"__key__": f"r{k}", **record} for k in range(20)])
    stream = TarShards(path)
    reader = stream.open(Lane())
    for _ in range(15):
        next(reader)
    monkeypatch.setattr(TarShards, "open_shard", open_counted)
    Counted.taken = 0
    other = stream.open(Lane())
    other.load_state_dict(reader.state_dict())
    assert len(list(other)) == 5
    # Five records, the end marks, and less than one more read of the buffer.
    assert 1_000_000 < Counted.taken < 1_000_000 + 64_000


def open_counted(self, url, offset):
    file = Counted(url)
    file.seek(offset)
    return io.BufferedReader(file)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_of_every_length_and_alphabet_come_whole_and_are_places_to_go_on_from(tmp_path, kind) -> None:
    names = ["a", "dir.d/b", "x" * 90, "deep/" * 20 + "end"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["é" * 80, "long/" * 60 + "name"]
    path = write_tar(
        tmp_path / "names.tar", [{"__key__": n, "TXT": b"t", "seg.json": b"[1]"} for n in names], format=kind
    )
    stream = TarShards(path)
    whole = list(stream.open(Lane()))
    assert whole == [{"__key__": n, "txt": "t", "seg.json": [1]} for n in names]
    for count in range(len(names) + 1):
        assert rest_after(stream, Lane(), count) == whole[count:]


# webdataset leaves the file for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_records(tmp_path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "w.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for k in range(9):
            writer.write({"__key__": f"sub.x/r{k}", "cls": k, "txt": f"t{k}", "npy": np.arange(k), "raw.bin": b"b" * k})
    with tarfile.open(path, "a") as tar:
        for name in ["__meta__/x.txt", ".hidden", "plain", "dir/last.one.txt"]:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    ours = list(TarShards(path).open(Lane()))
    assert [record["__key__"] for record in ours] == [record["__key__"] for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() - {"__url__", "__local_path__"}
        assert all(np.array_equal(value, other[name]) for name, value in one.items())


def test_contents_are_decoded_by_extension_by_a_function_or_by_the_users_table(tmp_path) -> None:
    arrays = io.BytesIO()
    np.savez(arrays, a=np.arange(3), b=np.ones(2))
    record = {"__key__": "r", "npz": arrays.getvalue(), "index": b"7\n", "jpg": b"\xff", "json": b'{"a": 1}'}
    path = write_tar(tmp_path / "d.tar", [record])
    (found,) = TarShards(path).open(Lane())
    assert found["npz"]["a"].tolist() == [0, 1, 2]
    assert (found["index"], found["jpg"], found["json"]) == (7, b"\xff", {"a": 1})
    assert next(TarShards(path, decode={"jpg": len}).open(Lane()))["jpg"] == 1
    assert next(TarShards(path, decode=dict).open(Lane())) == record
    assert next(TarShards(path, decode=len).open(Lane())) == 5


def test_arrays_are_never_unpickled(tmp_path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    path = write_tar(tmp_path / "p.tar", [{"__key__": "r", "npy": file.getvalue()}])
    with pytest.raises(RecordError, match=r"record 'r' of shard .* cannot be decoded \(ValueError: Object"):
        list(TarShards(path).open(Lane()))


@pytest.mark.parametrize("cut", [100, 512, 1000, 1536])
def test_a_shard_that_was_cut_is_an_error_and_not_an_early_end(tmp_path, cut) -> None:
    path = write_tar(tmp_path / "c.tar", [{"__key__": f"r{k}", "txt": b"x"} for k in range(3)])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"c\.tar is damaged at byte \d+ \(the file ends after \d+ of \d+ b"):
        list(TarShards(path).open(Lane()))


def test_a_damaged_header_is_an_error(tmp_path) -> None:
    path = write_tar(tmp_path / "h.tar", [{"__key__": f"r{k}", "txt": b"x"} for k in range(3)])
    data = bytearray(path.read_bytes())
    data[1030] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged at byte 1024 \(bad checksum\); expected a tar file with"):
        list(TarShards(path).open(Lane()))


def test_a_compressed_shard_that_was_cut_is_an_error(tmp_path) -> None:
    path = write_tar(tmp_path / "c.tar.gz", numbered(50))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"shard .*c\.tar\.gz cannot be read on from byte \d+ \(EOFError"):
        list(TarShards(path).open(Lane()))


def test_two_files_with_one_extension_are_refused(tmp_path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    with pytest.raises(DataError, match=r"record 'a' .* has two files with extension 'txt', the second at byte 512"):
        list(TarShards(tmp_path / "t.tar").open(Lane()))


def test_a_missing_shard_is_an_error_that_names_it(tmp_path) -> None:
    with pytest.raises(DataError, match=r"shard .*no\.tar cannot be read at byte 0 \(FileNotFoundError"):
        list(TarShards(tmp_path / "no.tar").open(Lane()))


def test_another_shard_at_the_saved_place_is_refused(tmp_path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", numbered(3))
    reader = TarShards(tmp_path / "a.tar").open(Lane())
    next(reader)
    other = TarShards(tmp_path / "b.tar").open(Lane())
    with pytest.raises(CheckpointMismatchError, match=r"shard 0 of a lane is b\.tar and was a\.tar"):
        other.load_state_dict(reader.state_dict())


def test_braces_and_patterns_name_shards_in_order(tmp_path) -> None:
    for name in ["x-08.tar", "x-09.tar", "x-10.tar", "y-1.tar"]:
        write_tar(tmp_path / name, numbered(1))
    names = [shard.rpartition("/")[2] for shard in TarShards(f"{tmp_path}/x-{{08..10}}.tar").shards]
    assert names == ["x-08.tar", "x-09.tar", "x-10.tar"]
    assert len(TarShards([f"{tmp_path}/{{x,y}}-*.tar"]).shards) == 4
    with pytest.raises(ValueError, match=r"which names no shard; expected at least one"):
        TarShards(f"{tmp_path}/z*.tar")


@pytest.mark.parametrize(("lanes", "error"), [(0, "from 1 to 2"), (3, "from 1 to 2"), (1.5, "num_lanes is 1.5")])
def test_lanes_that_cannot_be_are_refused(lanes, error) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        TarShards(["a.tar", "b.tar"], num_lanes=lanes)


def test_the_default_number_of_lanes_is_one_that_ranks_divide() -> None:
    assert [TarShards(["x"] * n).num_lanes for n in (1, 3, 10, 16, 99)] == [1, 2, 8, 16, 16]


@pytest.mark.parametrize("urls", [3, [b"a"], None])
def test_shards_that_are_no_paths_are_refused(urls) -> None:
    with pytest.raises(TypeError, match="expected a path"):
        TarShards(urls)


LINES = ["first", "", "zweite Zeile: äöü", "x" * 5000, '{"a": 1}', "last without an end"]


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.bz2", ".txt.xz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_is_read_line_by_line_from_any_line(tmp_path, ending, end) -> None:
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(ending[4:], open)
    with opener(tmp_path / f"t{ending}", "wb") as file:
        file.write(end.join(LINES).encode())
    stream = TextLines(tmp_path / f"t{ending}")
    assert list(stream.open(Lane())) == LINES
    for count in range(len(LINES) + 1):
        assert rest_after(stream, Lane(), count) == LINES[count:]


def test_json_lines_are_parsed_and_blank_ones_left_out(tmp_path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n\n[2]\n')
    assert list(TextLines(tmp_path / "t.jsonl").open(Lane())) == [{"a": 1}, [2]]
    assert list(TextLines(tmp_path / "t.jsonl", as_json=False).open(Lane())) == ['{"a": 1}', "", "[2]"]


def test_a_line_that_is_no_json_or_no_text_is_named_by_its_byte(tmp_path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(RecordError, match=r"the line at byte 9 of .*t\.jsonl cannot be read \(JSONDecodeError"):
        list(TextLines(tmp_path / "t.jsonl").open(Lane()))
    (tmp_path / "t.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(RecordError, match=r"the line at byte 2 of .*t\.txt .* expected UTF-8 text"):
        list(TextLines(tmp_path / "t.txt").open(Lane()))


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_fsspec_opens_what_is_not_local(ending) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open(f"memory://texts/a{ending}", "wb", compression="infer") as file:
        file.write("\n".join(LINES).encode())
    with fsspec.open(f"memory://texts/b{ending}", "wb", compression="infer") as file:
        file.write(b"of b")
    stream = TextLines(f"memory://texts/*{ending}", num_lanes=1)
    assert list(stream.open(Lane())) == [*LINES, "of b"]
    for count in range(8):
        assert rest_after(stream, Lane(), count) == [*LINES, "of b"][count:]


def test_fsspec_opens_tar_shards(tmp_path) -> None:
    fsspec = pytest.importorskip("fsspec")
    write_tar(tmp_path / "a.tar", numbered(9))
    with fsspec.open("memory://tars/a.tar", "wb") as file:
        file.write((tmp_path / "a.tar").read_bytes())
    local, remote = (list(TarShards(url).open(Lane())) for url in (tmp_path / "a.tar", "memory://tars/a.tar"))
    assert remote == local
    assert rest_after(TarShards("memory://tars/a.tar"), Lane(), 4) == local[4:]


def test_without_fsspec_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"needs fsspec, .* Run `pip install parhelion\[streams\]`"):
        list(TextLines("memory://x.txt").open(Lane()))
