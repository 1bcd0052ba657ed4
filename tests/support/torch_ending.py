"""A script that ends while it still holds what is spread over the ranks.

torch_ending.py spread | replicated | users | fails
"""

import sys
from typing import Any

import torch
import torch.distributed

import parhelion_torch as backend
from support.torch_ranks import Data, Net, Spread

torch.set_num_threads(1)
kind = sys.argv[1]


class Unlucky(Net):
    def loss(self, batch: Any) -> Any:
        if self.rank == 1:
            raise RuntimeError("out of luck")
        return super().loss(batch)


if kind == "users":
    torch.distributed.init_process_group("gloo")
model = {"spread": Spread, "replicated": Net, "users": Net, "fails": Unlucky}[kind]()
trainer = backend.Trainer(use_cpu=True, total_steps=2, print_banner=False)
done = trainer.fit(model, Data(4))
if kind == "fails":
    sys.exit(trainer.exit_code)
assert done, trainer.error
assert trainer.test(model, Data(4))
optimizer, module, parameters = model.optimizer, model.module, list(model.module.parameters())
print(f"done {trainer.rank}")
if kind == "users":
    from parhelion_torch import world

    world._leave()
    print("is still there", torch.distributed.is_initialized())
    torch.distributed.destroy_process_group()
