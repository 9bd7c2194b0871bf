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
    """Evaluates a network on a split's images. All workers call it together."""

    model: torch.nn.Module
    images: EvaluationImages
    worker: Worker
    report: Callable[[int, int], None] = _silent
    """Called after each batch with the crop and the number of images this worker has classified at that crop."""
    name_damaged: Callable[[Sequence[Damaged]], None] = _silent
    """Called on every worker with the damaged images of all workers, if there are any."""

    @torch.no_grad()
    def at_crop(self, crop: int, shorter_side: int, confusion: torch.Tensor | None = None) -> dict[str, float]:
        """The error and loss of the images' center crops, classified with BN's running statistics in fp32.

        Every worker gets the same `loss` (mean cross-entropy), `top1_error`, `top5_error` (fractions; top-5 counts all
        classes if there are fewer than 5) and `images`. `confusion`, int64 [classes, classes] of zeros on the worker's
        device, becomes the number of images by label and predicted class. An image that cannot be decoded counts as an
        error, but not in loss or confusion. Raises TooDamagedError, on every worker, if none can be decoded.
        """
        self.model.eval()
        # Nothing is read from the device before the end, and nothing copied to it: the host runs ahead.
        totals = torch.zeros(4, dtype=torch.float64, device=self.worker.device)
        done, damaged = 0, []
        for batch in self.images.center_crops(crop, shorter_side):
            logits = self.model(batch.images)
            losses = F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            decoded = batch.weights > 0
            hits = (best == batch.labels[:, None]) & decoded[:, None]
            totals += torch.stack(
                (
                    losses.sum().double(),
                    (~hits[:, 0]).sum().double(),
                    (~hits.any(dim=1)).sum().double(),
                    decoded.sum().double(),
                )
            )
            if confusion is not None:
                cells = batch.labels * confusion.shape[1] + best[:, 0]
                confusion.view(-1).scatter_add_(0, cells, decoded.long())
            done += len(hits)
            damaged += batch.damaged
            self.report(crop, done)
        if confusion is not None:
            self.worker.sum(confusion)
        images = self.worker.sum(torch.tensor(done, dtype=torch.float64, device=self.worker.device)).item()
        loss, top1, top5, num_decoded = self.worker.sum(totals).tolist()
        if num_decoded < images:
            of_all = self.worker.gather(damaged)
            self.name_damaged(of_all)
            if not num_decoded:
                raise TooDamagedError(
                    f"none of the {images:.0f} validation images can be decoded, the first is {of_all[0]}; give others"
                )
        return {"loss": loss / num_decoded, "top1_error": top1 / images, "top5_error": top5 / images, "images": images}

    def at_crops(self, evaluation: Evaluation, confusion: torch.Tensor | None = None) -> dict[str, float]:
        """The metrics at every crop: `val/loss`, `val/top1_error`, `val/top5_error` at the first, and the same keys
        with a suffix, as in `val/top1_error_320px`, at the others. `confusion` and the damaged images are those of the
        first crop."""
        (crop, side), *others = zip(evaluation.crops, evaluation.shorter_sides, strict=True)
        metrics = _keyed(self.at_crop(crop, side, confusion), "")
        quiet = dataclasses.replace(self, name_damaged=_silent)
        for crop, side in others:
            metrics |= _keyed(quiet.at_crop(crop, side), f"_{crop}px")
        return metrics


def _keyed(found: dict[str, float], suffix: str) -> dict[str, float]:
    return {f"val/{key}{suffix}": found[key] for key in ("loss", "top1_error", "top5_error")}
