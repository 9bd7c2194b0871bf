"""Classification error and loss over a whole split, every picture exactly once on any number of workers."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from dist_resnet.data.loader import Damaged, Loader
from dist_resnet.recipe import Recipe
from dist_resnet.train.damage import TooDamagedError
from dist_resnet.worker import Worker

# Called with the crop and the number of pictures that this worker has classified at it.
Tell = Callable[[int, int], None]


# Called on every worker with the damaged pictures of all, if there are any.
NameDamaged = Callable[[Sequence[Damaged]], None]


def _silent(*_: object) -> None:
    pass


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    loader: Loader,
    worker: Worker,
    *,
    crop: int,
    shorter_side: int,
    tell: Tell = _silent,
    confusion: torch.Tensor | None = None,
    name_damaged: NameDamaged = _silent,
) -> dict[str, float]:
    """Classifies the centre crops of the validation pictures with BN's running statistics, in fp32.

    Every worker calls it and gets the same `loss` (mean cross-entropy), `top1_error`, `top5_error` (fractions; top-5
    is top-k of all classes where there are fewer) and `images`. `tell` is called after each batch. `confusion`, int64
    [classes, classes] of zeros on the worker's device, becomes the count of pictures by label and by the class they
    were taken for. A picture that cannot be decoded counts as an error, has no loss and is taken for nothing. Raises
    TooDamagedError, on every worker, if none can be decoded.
    """
    model.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=worker.device)
    done, damaged = 0, []
    for batch in loader.evaluate(crop, shorter_side):
        logits = model(batch.images)
        losses = F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        whole = batch.weights > 0
        hits = (best == batch.labels[:, None]) & whole[:, None]
        totals += torch.stack(
            (
                losses.sum().double(),
                (~hits[:, 0]).sum().double(),
                (~hits.any(dim=1)).sum().double(),
                hits.new_tensor(len(hits), dtype=torch.float64),
                whole.sum().double(),
            )
        )
        if confusion is not None:
            places = (batch.labels * confusion.shape[1] + best[:, 0])[whole]
            confusion.view(-1).add_(torch.bincount(places, minlength=confusion.numel()))
        done += len(hits)
        damaged += batch.damaged
        tell(crop, done)
    if confusion is not None:
        worker.sum(confusion)
    loss, top1, top5, images, whole = worker.sum(totals).tolist()
    if whole < images:
        of_all = worker.gather(damaged)
        name_damaged(of_all)
        if not whole:
            raise TooDamagedError(
                f"none of the {images:.0f} validation images can be decoded, the first is {of_all[0]}; give others"
            )
    return {"loss": loss / whole, "top1_error": top1 / images, "top5_error": top5 / images, "images": images}


def evaluate_crops(
    recipe: Recipe,
    model: torch.nn.Module,
    loader: Loader,
    worker: Worker,
    *,
    tell: Tell = _silent,
    confusion: torch.Tensor | None = None,
    name_damaged: NameDamaged = _silent,
) -> dict[str, float]:
    """Evaluates at every crop of the recipe: `val/loss`, `val/top1_error`, `val/top5_error` at the first, the same
    keys with the crop appended, as in `val/top1_error_320px`, at the others. `confusion` is that of the first, and
    damaged pictures are named there."""
    metrics = {}
    evaluation = recipe.evaluation
    for number, (crop, side) in enumerate(zip(evaluation.crops, evaluation.shorter_sides, strict=True)):
        first = number == 0
        found = evaluate(
            model,
            loader,
            worker,
            crop=crop,
            shorter_side=side,
            tell=tell,
            confusion=confusion if first else None,
            name_damaged=name_damaged if first else _silent,
        )
        suffix = "" if first else f"_{crop}px"
        metrics |= {f"val/{key}{suffix}": found[key] for key in ("loss", "top1_error", "top5_error")}
    return metrics
