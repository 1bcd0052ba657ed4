"""Worker processes of scripts: what travels from ``__main__``, and how everything ends with the parent."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from support.worker_datasets import is_alive, wait_until

pytestmark = pytest.mark.processes

HEAD = """
import os, random, signal, sys, threading, time
import attrs, numpy as np
import parhelion as ph
from parhelion.data import Loader
from parhelion.sampling import ResumableSequentialSampler

def load(dataset, workers=2, **options):
    return Loader(dataset, ResumableSequentialSampler(dataset, 4), num_workers=workers, **options)
"""

DEEDS = {
    "sleeps": "time.sleep(60)",
    "computes": "exec('while True: pass')",
    "waits for work": "pass",
}


def start(tmp_path, code, *flags, arguments=(), cwd=None):
    script = tmp_path / "script.py"
    script.write_text(HEAD + textwrap.dedent(code))
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, *flags, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def run(tmp_path, code, *flags, **options):
    """Return what a script without a main guard writes; it must end well and say nothing else."""
    process = start(tmp_path, code, *flags, **options)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    return out


def test_classes_of_a_script_without_a_main_guard_go_there_and_come_back_the_same(tmp_path):
    code = """
    print("runs once")
    OFFSET = 5

    @attrs.frozen
    class Pair:
        a: object
        b: object
        made = 0

        def total(self):
            return self.a + OFFSET

    class Pairs:
        def __len__(self): return 10
        def __getitem__(self, index):
            Pair.made += 1
            return Pair(index, ph.sample_rng().random())

    with load(Pairs()) as loader:
        batches = list(loader)
    OFFSET = 100
    alone = list(load(Pairs(), 0))
    assert [type(batch) for batch in batches] == [Pair] * 3
    assert all(a.b.tolist() == b.b.tolist() for a, b in zip(batches, alone))
    print(batches[2].total().tolist(), Pair.made)
    """
    assert run(tmp_path, code) == "runs once\n[108, 109] 10\n"


def test_a_worker_finds_the_place_path_arguments_and_options_of_its_parent(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "beside.py").write_text("class Here:\n    def __len__(self): return 2\n")
    code = """
    import beside
    sys.path.append("/no/such/folder")

    class Told(beside.Here):
        def __getitem__(self, index):
            assert not "with -O nobody looks"
            return os.getcwd() + sys.argv[1] + sys.path[-1] + str(sys.flags.optimize)

    print(next(iter(load(Told())))[0])
    """
    out = run(tmp_path, code, "-O", arguments=["--name"], cwd=tmp_path / "elsewhere")
    assert out == f"{tmp_path}/elsewhere--name/no/such/folder1\n"


def test_no_process_is_forked_and_threads_are_no_hindrance(tmp_path):
    code = """
    os.register_at_fork(before=lambda: print("forked"))
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(3)]
    for thread in threads: thread.start()
    print(len(list(load(range(10)))))
    stop.set()
    """
    assert run(tmp_path, code) == "3\n"


def test_what_a_worker_prints_is_seen_when_its_batch_is_there(tmp_path):
    code = """
    class Talks:
        def __len__(self): return 4
        def __getitem__(self, index): print("record", index); return index

    loader = load(Talks(), 1)
    list(loader)
    list(loader)
    """
    out = run(tmp_path, code)
    assert out.startswith("record 0\nrecord 1\nrecord 2\nrecord 3\n")


PARENT = """
class Data:
    def __len__(self): return 400
    def __getitem__(self, index):
        if index >= 8: {deed}
        return index, os.getpid()

loader = load(Data())
batches = iter(loader)
pids = {{int(next(batches)[1][0]) for _ in range(2)}}
print(*pids, flush=True)
{then}
"""


def begin(tmp_path, deed="pass", then="next(batches)\ntime.sleep(60)"):
    """Return a script that has two workers, and their ids; it goes on with ``then``."""
    process = start(tmp_path, PARENT.format(deed=deed, then=then))
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2, process.communicate()
    return process, pids


def has_gone(pids):
    return lambda: not any(map(is_alive, pids))


@pytest.mark.parametrize("doing", DEEDS)
def test_workers_are_gone_at_once_when_the_parent_is_killed(tmp_path, doing):
    process, pids = begin(tmp_path, DEEDS[doing])
    process.kill()
    process.communicate(timeout=30)
    # The wall's clock: two busy cores may need a while to run the workers at all.
    assert wait_until(has_gone(pids)) < 3


def test_workers_and_their_server_are_gone_when_all_is_killed_at_once(tmp_path):
    code = """
    from parhelion.data import _fork_server
    loader = load(range(100))
    batches = iter(loader)
    next(batches)
    pids = [worker.process.pid for worker in loader._pool._workers]
    print(*pids, _fork_server._servers[0].process.pid, flush=True)
    time.sleep(60)
    """
    process = start(tmp_path, code)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 3
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert wait_until(has_gone(pids)) < 5


@pytest.mark.parametrize(
    "then",
    [
        "",
        "raise SystemExit(3)",
        "raise ValueError",
        "threading.Thread(target=list, args=(batches,), daemon=True).start()",
    ],
)
def test_workers_end_when_the_parent_ends_in_the_middle_of_an_epoch(tmp_path, then):
    process, pids = begin(tmp_path, "time.sleep(60)", then)
    _, err = process.communicate(timeout=30)
    assert has_gone(pids)()
    assert ("ValueError" in err) if "ValueError" in then else not err


def test_ctrl_c_is_for_the_parent_alone(tmp_path):
    then = """
try:
    print("waits", flush=True)
    next(batches)
except KeyboardInterrupt:
    print("interrupted")
"""
    process, pids = begin(tmp_path, "time.sleep(60)", then)
    assert process.stdout.readline() == "waits\n"
    # A worker that has only just been started cannot ignore anything yet.
    assert [os.getpgid(pid) for pid in pids] == pids
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30) == ("interrupted\n", "")
    assert has_gone(pids)()


def test_an_interrupt_sent_to_a_worker_itself_does_nothing(tmp_path):
    process, pids = begin(tmp_path, then="print(len(list(batches)))")
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGINT)
    assert process.communicate(timeout=30) == ("98\n", "")


def test_a_crash_shows_where_in_the_worker_it_happened(tmp_path):
    process, _ = begin(tmp_path, "__import__('ctypes').string_at(0)", "next(batches)")
    _, err = process.communicate(timeout=30)
    assert "Fatal Python error: Segmentation fault" in err
    assert "was killed by signal SIGSEGV while it made the batch at place 8" in err
