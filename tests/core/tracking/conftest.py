import contextlib
import os
import resource
import subprocess
import sys

import pytest


@pytest.fixture
def child():
    """Starts Python code in a process that imports the package from where the tests do; killed at the end."""
    started = []

    def start(code, *arguments, **options):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def full_disk():
    """Makes the operating system refuse what a file would hold from byte `size` on."""

    @contextlib.contextmanager
    def limited(size):
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    return limited
