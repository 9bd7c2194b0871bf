"""Classification error and loss over a whole split, every image exactly once on any number of workers."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dist_resnet.data.input.batch import Damaged
from dist_resnet.data.loader import EvaluationImages
from dist_resnet.recipe import Evaluation
from dist_resnet.train.damage import TooDamagedError
from dist_resnet.worker import Worker


def _silent(*_: object) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A network, the images that it is evaluated on, and who hears of it. All workers call it together."""

    model: torch.nn.Module
    images: EvaluationImages
    worker: Worker
    report: Callable[[int, int], None] = _silent
    """Called after each batch with the crop and the number of images that this worker has classified at it."""
    name_damaged: Callable[[Sequence[Damaged]], None] = _silent
    """Called on every worker with the damaged images of all, if there are any."""

    @torch.no_grad()
    def at_crop(self, crop: int, shorter_side: int, confusion: torch.Tensor | None = None) -> dict[str, float]:
        """Classifies the center crops of the images with BN's running statistics, in fp32.

        Every worker gets the same `loss` (mean cross-entropy), `top1_error`, `top5_error` (fractions; top-5 is top-k of
        all classes where there are fewer) and `images`. `confusion`, int64 [classes, classes] of zeros on the worker's
        device, becomes the count of images by label and by the class they were taken for. An image that cannot be
        decoded counts as an error, has no loss and is taken for nothing. Raises TooDamagedError, on every worker, if
        none can be decoded.
        """
        self.model.eval()
        # Nothing is read from the device before the end, and nothing copied to it: the host runs ahead.
        totals = torch.zeros(4, dtype=torch.float64, device=self.worker.device)
        done, damaged = 0, []
        for batch in self.images.center_crops(crop, shorter_side):
            logits = self.model(batch.images)
            losses = F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            whole = batch.weights > 0
            hits = (best == batch.labels[:, None]) & whole[:, None]
            totals += torch.stack(
                (
                    losses.sum().double(),
                    (~hits[:, 0]).sum().double(),
                    (~hits.any(dim=1)).sum().double(),
                    whole.sum().double(),
                )
            )
            if confusion is not None:
                cells = batch.labels * confusion.shape[1] + best[:, 0]
                confusion.view(-1).scatter_add_(0, cells, whole.long())
            done += len(hits)
            damaged += batch.damaged
            self.report(crop, done)
        if confusion is not None:
            self.worker.sum(confusion)
        images = self.worker.sum(torch.tensor(done, device=self.worker.device)).item()
        loss, top1, top5, whole = self.worker.sum(totals).tolist()
        if whole < images:
            of_all = self.worker.gather(damaged)
            self.name_damaged(of_all)
            if not whole:
                raise TooDamagedError(
                    f"none of the {images:.0f} validation images can be decoded, the first is {of_all[0]}; give others"
                )
        return {"loss": loss / whole, "top1_error": top1 / images, "top5_error": top5 / images, "images": images}

    def at_crops(self, evaluation: Evaluation, confusion: torch.Tensor | None = None) -> dict[str, float]:
        """Evaluates at every crop: `val/loss`, `val/top1_error`, `val/top5_error` at the first, the same keys with the
        crop appended, as in `val/top1_error_320px`, at the others. `confusion` is that of the first, and damaged
        images are named there."""
        (crop, side), *others = zip(evaluation.crops, evaluation.shorter_sides, strict=True)
        metrics = _keyed(self.at_crop(crop, side, confusion), "")
        quiet = dataclasses.replace(self, name_damaged=_silent)
        for crop, side in others:
            metrics |= _keyed(quiet.at_crop(crop, side), f"_{crop}px")
        return metrics


def _keyed(found: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"val/{key}{suffix}": found[key] for key in ("loss", "top1_error", "top5_error")}
