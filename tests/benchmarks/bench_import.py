"""What `import parhelion` costs over `import numpy`: seconds of CPU in a fresh interpreter, files warm.

python tests/benchmarks/bench_import.py [--rounds 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PEERS = {
    "numpy": "import numpy",
    "parhelion": "import parhelion",
    "torch": "import torch",
    "parhelion_torch": "import parhelion_torch",
    "jax, optax": "import jax, optax",
    "parhelion_jax": "import parhelion_jax",
    "ignite.engine": "import ignite.engine",
    "lightning.fabric": "import lightning.fabric",
    "lightning.pytorch": "import lightning.pytorch",
    "flax.nnx": "import flax.nnx",
    "keras on jax": "import os; os.environ['KERAS_BACKEND'] = 'jax'; import keras",
}
PROBE = """
import time, sys
began = time.process_time()
{code}
print(time.process_time() - began, len(sys.modules))
"""


def run_child(code: str) -> tuple[float, int] | None:
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE.format(code=code)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if child.returncode:
        return None
    seconds, modules = child.stdout.split()[-2:]
    return float(seconds), int(modules)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in PEERS}
    for round_ in range(arguments.rounds + 1):
        for name in list(found):
            result = run_child(PEERS[name])
            if result is None:
                del found[name]
            elif round_:  # the first one warms the files
                found[name].append(result)
    floor = statistics.median(seconds for seconds, _ in found["numpy"])
    print("\n| import | CPU, median | over numpy | modules |\n|---|---|---|---|")
    for name, results in found.items():
        median = statistics.median(seconds for seconds, _ in results)
        print(f"| {name} | {median:.3f} s | {median - floor:+.3f} s | {results[0][1]} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
