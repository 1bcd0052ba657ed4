"""One run folder, one process."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from parhelion.checkpoint import RemotePath, RunLock, _holders, _lock, _lock_files
from parhelion.errors import CheckpointError, InvalidValueError
from support.s3_server import running_s3_server

QUICK = {"beat": 0.05, "stale_after": 0.4}


def lock_of(folder):
    return folder.with_name(f".{folder.name}.lock")


def left_by(path, **changes):
    """Write the entry of another process into a lock file."""
    entry = json.loads(_holders.Holder.here().encode()) | changes
    path.write_text(json.dumps(entry) + "\n")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(_lock_files, "_SETTLING", 0.05)


@pytest.fixture
def no_flock(monkeypatch, quick):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def store(quick):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


HOLD = """
import os, sys, time
from parhelion.checkpoint import RunLock
lock = RunLock(sys.argv[1], beat=0.05, stale_after=0.4)
lock.acquire()
print("held", flush=True)
if sys.argv[2] == "fork" and not os.fork():
    os.close(1)
    time.sleep(60)
    os._exit(0)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def holder(tmp_path):
    """Start processes that hold the lock of a folder until their input ends."""
    started = []

    def start(folder, how="stay"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), how],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.processes
def test_the_second_process_is_refused_by_name_of_host_and_process(tmp_path, holder):
    folder = tmp_path / "run"
    process = holder(folder)
    message = (
        rf"run folder {re.escape(str(folder))} is in use by process {process.pid} on {re.escape(os.uname().nodename)} "
        r"since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00; expected one run at a time in it\. Wait for that one"
    )
    with pytest.raises(CheckpointError, match=message):
        RunLock(folder).acquire()
    process.communicate()
    assert process.returncode == 0
    with RunLock(folder):
        assert lock_of(folder).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_said(tmp_path, holder, caplog):
    process = holder(tmp_path / "run")
    process.kill()
    process.wait()
    begin = time.monotonic()
    with RunLock(tmp_path / "run"):
        pass
    assert time.monotonic() - begin < 5  # not the 30 s that a silent holder is given
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"was left by process {process.pid} on " in record.message
    assert "which is gone; it is taken over" in record.message


@pytest.mark.processes
def test_a_forked_child_does_not_hold_it_on(tmp_path, holder):
    process = holder(tmp_path / "run", "fork")
    process.kill()
    process.wait()
    with RunLock(tmp_path / "run"):
        pass


def test_a_lock_that_outlives_its_holder_says_that_a_child_of_it_has_it(tmp_path, monkeypatch):
    """As after a fork that Python knows nothing of."""
    monkeypatch.setattr(_lock, "_GRACE", 0.05)
    file = lock_of(tmp_path / "run")
    left_by(file, start=1)
    with file.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match=r"\(it has ended; a process that it started keeps its files open\)"):
            RunLock(tmp_path / "run").acquire()


def test_one_process_cannot_hold_it_twice(tmp_path):
    first = RunLock(tmp_path / "run")
    with first:
        with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on .* \(this process\); expected one run"):
            RunLock(tmp_path / "run").acquire()
        with pytest.raises(CheckpointError, match="is held by this object already"):
            first.acquire()
        with RunLock(tmp_path / "run2"):
            pass
    first.release()
    with first:
        pass


def test_a_lock_whose_folder_is_renamed_is_held_on(tmp_path):
    folder = tmp_path / "run"
    with RunLock(folder):
        folder.mkdir()
        folder.rename(tmp_path / "run.old")
        with pytest.raises(CheckpointError, match="in use"):
            RunLock(folder).acquire()


def test_many_that_start_at_once_hold_it_one_after_the_other(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(30):
            try:
                with RunLock(tmp_path / "run"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except CheckpointError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 120


def test_a_container_of_this_machine_that_was_killed_is_taken_over_at_once(tmp_path):
    left_by(lock_of(tmp_path / "run"), host="this.4026531999", pid=1, start=5)
    begin = time.monotonic()
    with RunLock(tmp_path / "run"):
        assert time.monotonic() - begin < 5


def test_another_machine_that_shows_life_is_refused_although_the_kernel_knows_no_lock(tmp_path):
    file = lock_of(tmp_path / "run")
    left_by(file, host="other.1", boot="another kernel", pid=77)
    stop = threading.Event()

    def live():
        while not stop.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(CheckpointError, match="in use by process 77 on other since"):
            RunLock(tmp_path / "run", beat=0.1, stale_after=5).acquire()
    finally:
        stop.set()
        thread.join()
    assert b"another kernel" in file.read_bytes()


def test_another_machine_that_shows_no_life_is_taken_over(tmp_path, caplog):
    left_by(lock_of(tmp_path / "run"), host="other.1", boot="another kernel", pid=77)
    begin = time.monotonic()
    with RunLock(tmp_path / "run", **QUICK):
        assert time.monotonic() - begin >= 0.3
        assert "was left by process 77 on other since" in caplog.text


def test_a_silence_that_is_long_enough_already_need_not_be_watched(tmp_path):
    file = lock_of(tmp_path / "run")
    left_by(file, host="other.1", boot="another kernel")
    os.utime(file, (1e9, 1e9))
    begin = time.monotonic()
    with RunLock(tmp_path / "run"):
        assert time.monotonic() - begin < 5


def wait_for_change(sign):
    first, deadline = sign(), time.monotonic() + 10
    while sign() == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_holder_shows_life(tmp_path):
    with RunLock(tmp_path / "run", **QUICK):
        wait_for_change(lambda: lock_of(tmp_path / "run").stat().st_mtime_ns)


# -- without the kernel's locks ---------------------------------------------------------------------------------------


def test_without_locks_the_file_alone_keeps_the_second_out(tmp_path, no_flock):
    with RunLock(tmp_path / "run", **QUICK) as lock:
        with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on .* \(this process\)"):
            RunLock(tmp_path / "run", **QUICK).acquire()
        lock.check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"start": 1}, {"boot": "another kernel"}])
def test_without_locks_a_dead_holder_is_taken_over(tmp_path, no_flock, changes, caplog):
    left_by(lock_of(tmp_path / "run"), **changes)
    with RunLock(tmp_path / "run", **QUICK):
        assert json.loads(lock_of(tmp_path / "run").read_bytes())["pid"] == os.getpid()
    assert "it is taken over" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_was_taken_for_dead_learns_that_it_is_not_alone(tmp_path, no_flock):
    with RunLock(tmp_path / "run", **QUICK) as lock:
        left_by(lock_of(tmp_path / "run"), pid=1, since="later")

        def check_until(deadline):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.01)

        with pytest.raises(CheckpointError, match="was taken over by another process while this one stood still"):
            check_until(time.monotonic() + 10)
    assert b"later" in lock_of(tmp_path / "run").read_bytes()


# -- in a store -------------------------------------------------------------------------------------------------------


def test_in_a_store_the_second_is_refused_and_the_holder_shows_life(store):
    with RunLock("memory://bucket/run", **QUICK):
        wait_for_change(lambda: store.cat_file("/bucket/.run.lock"))
        with pytest.raises(CheckpointError, match=r"run folder memory://bucket/run is in use by process \d+ on"):
            RunLock("memory://bucket/run", **QUICK).acquire()
    assert store.find("/bucket") == []


def test_in_a_store_a_silent_holder_is_taken_over(store, caplog):
    entry = json.loads(_holders.Holder.here().encode()) | {"host": "other.1", "boot": "another", "pid": 77}
    store.pipe("/bucket/.run.lock", json.dumps(entry).encode() + b"\n0\n")
    with RunLock("memory://bucket/run/", **QUICK) as lock:
        lock.check()
    assert "was left by process 77 on other since" in caplog.text


def test_of_two_that_a_store_lets_both_write_only_one_goes_on(store, monkeypatch):
    """The store refuses nobody, and both look before either has written."""
    both = threading.Barrier(2)
    real = type(store).exists

    def exists(self, path, **_):
        found = real(self, path)
        both.wait(10)
        return found

    monkeypatch.setattr(type(store), "exists", exists)
    monkeypatch.setattr(type(store), "pipe_file", lambda self, path, value, **_: self.store.__setitem__(path, value))
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, **_: self.store[path])
    held, refused = [], []

    def start():
        lock = RunLock("memory://bucket/run", beat=5, stale_after=15)
        try:
            lock.acquire()
            held.append(lock)
        except CheckpointError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert (len(held), len(refused)) == (1, 1)
    held[0]._stop.set()


@pytest.fixture(scope="module")
def bucket():
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs", reason="an object store is spoken to by s3fs")
    pytest.importorskip("moto.server", reason="the S3 protocol is served by moto")
    with running_s3_server() as url, pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": url, "key": "key", "secret": "secret"})
        files = fsspec.filesystem("s3", use_listings_cache=False)
        files.mkdir("locks")
        yield files


@pytest.mark.processes
def test_over_s3_one_holds_it_the_second_is_refused_and_a_silent_one_is_taken_over(bucket, quick, caplog):
    patient = {"beat": 0.1, "stale_after": 2.0}
    with RunLock("s3://locks/run", **patient) as lock:
        with pytest.raises(CheckpointError, match=rf"in use by process {os.getpid()} on"):
            RunLock("s3://locks/run", **patient).acquire()
        lock.check()
    assert bucket.find("locks") == []
    entry = json.loads(_holders.Holder.here().encode()) | {"host": "other.1", "boot": "another", "pid": 77}
    bucket.pipe_file("locks/.run.lock", json.dumps(entry).encode() + b"\n0\n")
    with RunLock("s3://locks/run", **patient):
        assert "was left by process 77 on other since" in caplog.text


def test_over_s3_only_one_of_two_creates_the_entry(bucket):
    me = _holders.Holder.here()
    for exists in (False, False):
        bucket_view = _lock_files.StoreMark(RemotePath("s3://locks/once"))
        bucket_view._files.exists = lambda *_, exists=exists, **__: exists  # both look before either writes
        made = bucket_view.create(me)
    assert not made
    assert bucket.cat_file("locks/once").startswith(me.encode())


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"beat": 0}, {"beat": 5, "stale_after": 14}])
def test_times_that_cannot_work_are_refused(tmp_path, arguments):
    with pytest.raises(InvalidValueError, match=r"expected a beat above 0, and at least three"):
        RunLock(tmp_path, **arguments)


def test_a_folder_that_cannot_be_locked_is_an_error_that_says_why(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"cannot be locked \(.*\); expected a writable folder around it"):
        RunLock(tmp_path / "file" / "run").acquire()


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"pid": 3}'])
def test_an_entry_that_says_nothing_is_given_its_time_and_then_taken_over(tmp_path, no_flock, text):
    lock_of(tmp_path / "run").write_bytes(text)
    begin = time.monotonic()
    with RunLock(tmp_path / "run", **QUICK):
        assert time.monotonic() - begin >= 0.3
    assert list(tmp_path.iterdir()) == []
