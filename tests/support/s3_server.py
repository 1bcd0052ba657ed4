"""A server of the S3 protocol on loopback, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["running_s3_server"]

# It ends when its standard input does: also when whoever started it is killed.
_CODE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def running_s3_server() -> Iterator[str]:
    """Run a server, and give its URL."""
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as server:
        try:
            port = int(server.stdout.readline())  # type: ignore[union-attr]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
