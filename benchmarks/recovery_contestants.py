"""The runs of two workers that recovery.py interrupts: ours, and a plain script under torchrun.

Started by recovery.py as `recovery_contestants.py ours FOLDER DEPTH`, or under torchrun with `plain`.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from dist_resnet.model import build_model
from dist_resnet.recipe import Checkpoints, Execution, Model

CHECKPOINT_EVERY = 10


def train_ours(folder: Path, depth: int) -> None:
    """A long run of ours on two workers."""
    import subject

    from dist_resnet.launch.ray import train as ray_train

    execution = Execution(
        workers=2,
        cpus_per_worker=1,
        storage=str(folder),
        name="run",
        log_every=1,
        checkpoints=Checkpoints(every=CHECKPOINT_EVERY),
    )
    recipe = subject.demo_recipe(str(folder / "images"), depth=depth, epochs=1000)
    ray_train.run(ray_train.prepare_run(recipe, execution, job="recovery"))


def train_plainly(folder: Path, depth: int) -> None:
    """What one writes by hand: DDP, a checkpoint of rank 0 every few steps, resumed after a restart."""
    dist.init_process_group("gloo")
    started = time.time()
    rank = dist.get_rank()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.parallel.DistributedDataParallel(build_model(Model(depth=depth, num_classes=10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    step, file = 0, folder / "checkpoint.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    _mark(folder, rank, started=started, loaded=time.time())
    while True:
        images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        _mark(folder, rank, step=step, at=time.time())
        if rank == 0 and step % CHECKPOINT_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, folder / "partial.pt")
            os.replace(folder / "partial.pt", file)


def _mark(folder: Path, rank: int, **fields: float) -> None:
    if rank == 0:
        with (folder / "marks.jsonl").open("a") as file:
            file.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    {"ours": train_ours, "plain": train_plainly}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
