"""Train on handwritten digits, with PyTorch or with JAX.

Run it, stop it with Ctrl-C or ``kill -9``, run it again: it goes on where it was, and ends with the same weights. Run
it again with the other backend: that goes on, too, on the same samples, with the weights carried over.

    python examples/digits/experiment.py --backend jax --out runs/digits
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from digits import NUM_EPOCHS, Digits, OrderLog

import parhelion as ph


def main() -> int:
    """Train, test, and write the test's values beside the checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("torch", "jax"), help="the only one installed, if left out")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder of checkpoints and history")
    arguments = parser.parse_args()
    backend = ph.load_backend(arguments.backend)
    trainer = backend.Trainer(
        run_name="digits",
        total_steps=NUM_EPOCHS,
        valid_frequency=5,
        print_frequency=5,
        chkpt_every_iterations=10,
        chkpt_keep_last=2,
        chkpt_root=arguments.out,
        use_cpu=True,
        print_banner=False,
    )
    trainer.register_plugin(OrderLog(arguments.out / "order.jsonl"))
    model_file = importlib.import_module(f"{backend.__name__.removeprefix('parhelion_')}_model")
    model, data = model_file.DigitModel("cnn"), Digits()
    if trainer.fit(model, data) and trainer.test(model, data):
        (arguments.out / "test.json").write_text(json.dumps(trainer.test_results))
    return trainer.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
