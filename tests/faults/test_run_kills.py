"""The real Trainer is killed at any moment, again and again: every life goes on as the run that nobody disturbed."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys

import pytest

from parhelion.checkpoint import list_checkpoints, load_newest
from support.whole_run import read_run

pytestmark = pytest.mark.processes
BOTH = pytest.mark.parametrize("backend", ["torch", "jax"])
SETTING = {
    "total_steps": 5,
    "valid_frequency": 2,
    "print_frequency": 5,
    "chkpt_every_iterations": 2,
    "chkpt_keep_last": 2,
}
LONGEST = 6  # iterations of a life that is killed


class Nursery:
    """The process that forks the lives of one backend."""

    def __init__(self, backend, folder):
        self.backend, self.folder = backend, folder
        environment = {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.run_nursery", backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            start_new_session=True,
            text=True,
        )
        assert self.live(folder / "oracle")["code"] == 0
        self.oracle = read_run(folder / "oracle")

    def live(self, root, fault=None, **request):
        request["setting"] = {**SETTING, "root": str(root), **({"fault": fault} if fault else {})}
        return self.ask(**request)

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery has died"
        return json.loads(answer)

    def close(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery_of(tmp_path_factory):
    made = []

    @functools.cache
    def make(backend):
        pytest.importorskip(f"parhelion_{backend}")
        made.append(Nursery(backend, tmp_path_factory.mktemp(backend)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def kill_until_done(nursery, root, chance):
    """Kill a run at random moments until it comes to its end all the same; return how often."""
    kills = lost = 0
    while True:
        iterations = chance.randint(0, LONGEST)
        delay = chance.uniform(0, 0.02) if iterations else chance.uniform(0, 0.4)
        life = nursery.live(root, kill=[iterations, delay])
        if life["code"] == 0:
            return kills, lost
        assert life["code"] == -signal.SIGKILL, life["text"]
        kills += 1
        if life["before"]:
            # What was there before is there now and good, or a newer one is.
            newest = load_newest(root / "net", None)
            lost += newest is None or newest.meta["global_iteration"] < max(life["before"])


def check(nursery, root, record_property, *, kills, lost):
    """Compare all lives with the undisturbed run: the records, what was drawn, weights and moments behind each step."""
    told, oracle = read_run(root), nursery.oracle
    wrong = sum(told.steps.get(iteration) != step for iteration, step in oracle.steps.items())
    for word, count in (("kills", kills), ("lost", lost), ("wrong", wrong), ("resumes", kills)):
        record_property(word, count)
    assert (lost, wrong) == (0, 0)
    (mine,), (theirs,) = told.results, oracle.results
    assert {**mine, "begin": None} == {**theirs, "begin": None}
    infos = list_checkpoints(root / "net")
    assert infos[0].iteration == theirs["state"]["global_iteration"]
    assert not [path for path in (root / "net").iterdir() if "saving" in path.name]


@BOTH
def test_a_run_that_is_killed_at_random_moments_is_the_run_that_was_not(nursery_of, tmp_path, record_property, backend):
    nursery, chance = nursery_of(backend), random.Random(backend)
    kills, lost = kill_until_done(nursery, tmp_path / "run", chance)
    assert kills >= 15
    check(nursery, tmp_path / "run", record_property, kills=kills, lost=lost)


@pytest.mark.endurance
@BOTH
def test_hundreds_of_kills_of_whole_runs_lose_nothing(nursery_of, tmp_path, record_property, backend):
    nursery, chance, total = nursery_of(backend), random.Random(f"endurance {backend}"), 0
    number = 0
    while total < int(os.environ.get("PARHELION_KILLS", "3000")) // 10:
        root = tmp_path / f"run-{number}"
        kills, lost = kill_until_done(nursery, root, chance)
        check(nursery, root, record_property, kills=kills, lost=lost)
        total, number = total + kills, number + 1


@BOTH
def test_a_second_run_in_one_folder_is_refused_and_takes_over_when_the_first_one_is_dead(nursery_of, tmp_path, backend):
    nursery, root = nursery_of(backend), tmp_path / "run"
    first = nursery.live(root, {"point": "step", "at": 5, "act": "hang"}, until="at step")
    second = nursery.live(root)
    assert second["code"] == 1
    assert "CheckpointError" in second["text"]
    assert f"{os.uname().nodename}" in second["text"]
    assert str(first["pid"]) in second["text"]
    assert nursery.ask(end=first["pid"])["code"] == -signal.SIGKILL
    third = nursery.live(root)
    assert third["code"] == 0, third["text"]
    assert "resumed from" in third["text"]
    assert read_run(root).steps == nursery.oracle.steps
