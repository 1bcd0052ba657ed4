"""Run every benchmark and print its tables.

python tests/benchmarks/run.py [--quick]
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
DATA = "rows,samples,workers,images,transport,first,busy,resume"
# Script, its arguments for the full run, its arguments for a quick look.
SCRIPTS = (
    ("bench_import.py", ["--rounds", "15"], ["--rounds", "3"]),
    ("bench_sampler.py", [], ["--repeat", "1", "--sizes", "1e6", "--far", "1e12"]),
    ("bench_loop.py", ["--rounds", "7"], ["--rounds", "1"]),
    ("bench_loop_jax.py", ["--rounds", "7"], ["--rounds", "1"]),
    ("bench_prefetch.py", ["--rounds", "7"], ["--rounds", "1"]),
    ("bench_data.py", ["--kinds", DATA, "--rounds", "3"], ["--kinds", DATA, "--rounds", "1"]),
    # What these count hardly varies.
    ("bench_data.py", ["--kinds", "memory,growth", "--rounds", "1"], ["--kinds", "memory", "--rounds", "1"]),
    ("bench_checkpoint.py", [], ["--rounds", "3"]),
    ("bench_ranks.py", [], ["--steps", "50", "--rounds", "1"]),
    ("bench_recovery.py", [], ["--rounds", "1"]),
)
LIBRARIES = (
    "numpy", "torch", "jax", "optax", "flax", "keras", "lightning", "pytorch-ignite", "helios-ml", "safetensors",
    "torchdata", "grain",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that all run, not to quote")
    quick = parser.parse_args().quick
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES if _is_installed(name))
    print(f"Python {platform.python_version()}, {platform.machine()}; {versions}")
    failed = []
    for script, full, short in SCRIPTS:
        print(f"\n## {script}", flush=True)
        if subprocess.run([sys.executable, str(HERE / script), *(short if quick else full)], check=False).returncode:
            failed.append(script)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return len(failed)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
