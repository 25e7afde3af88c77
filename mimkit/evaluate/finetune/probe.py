"""Fine-tuning: the whole encoder with a classifier, trained on the labelled images, as the papers compare methods."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from mimkit.data.source import Source
from mimkit.disk import read_json_lines
from mimkit.errors import UserError
from mimkit.evaluate.finetune.images import few_labels
from mimkit.evaluate.frozen import Frozen, Pool, Score, Split
from mimkit.signals import StopRequest

Share = Annotated[float, Gt(0), Le(1)]
Side = Annotated[int, Gt(0)]
FREE = ("workers",)  # options that change no number of the training


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """All of the encoder and a linear classifier trained by AdamW, augmented as in MAE, BEiT and SimMIM by timm's parts.

    The defaults suit small images and some thousand labels; `--settings NAME` takes the authors'. Everything is trained,
    fixed positions included; of the encoder's own norm see `pool`. The rate warms up linearly from 0, then falls along
    a half cosine, all per step.

    epochs: passes over the training images.
    batch_size: images per step; all of them where there are fewer.
    accumulate: parts that a batch is computed in, to save memory.
    base_lr: rate of the classifier for a batch of 256; it is multiplied by batch_size / 256.
    min_lr: rate at the end, taken as it is.
    warmup_epochs: passes during which the rate rises.
    weight_decay: decoupled; not for biases and other one-dimensional parameters, class token and positions.
    layer_decay: each layer's rate is that of the layer above it times this; null is 0.75, and 1 from random weights.
    drop_path: stochastic depth, rising linearly over the blocks to this rate.
    clip_grad: largest norm of the gradient; null does not clip.
    label_smoothing: share of the wanted probability that is spread over all classes.
    mixup: alpha of the Beta distribution that two images' shares are drawn from; 0 is no mixup.
    cutmix: the same for a box of another image; with both, each batch takes one of them.
    erasing: probability that a box of an image becomes noise.
    rand_augment: timm's words for RandAugment, such as rand-m9-mstd0.5-inc1; null is none.
    crop_scale: smallest and largest share of the image's area that a crop takes.
    flip: probability of mirroring left to right.
    crop_pct: share of a test image's shorter side that is seen; 0.875 in the papers.
    pool: mean of the patch tokens before the encoder's norm, then a new norm; or cls, the class token after its norm.
    labels: share of each class's training images that are used, at least one; the same images for every encoder.
    init: the given weights, or the same network with random ones: training from scratch.
    image_size: side or [height, width] in pixels; null is the encoder's.
    test_every: epochs between tests; the last epoch is always tested.
    workers: processes that decode images; small ones are held in memory and need none.
    seed: of the classifier's (or all) first weights, the choice of labels and all augmentation.
    """

    epochs: Annotated[int, Gt(0)] = 20
    batch_size: Annotated[int, Gt(1)] = 64
    accumulate: Annotated[int, Gt(0)] = 1
    base_lr: Annotated[float, Gt(0)] = 4e-3
    min_lr: Annotated[float, Ge(0)] = 1e-6
    warmup_epochs: Annotated[float, Ge(0)] = 2
    weight_decay: Annotated[float, Ge(0)] = 0.05
    layer_decay: Share | None = None
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0
    clip_grad: Annotated[float, Gt(0)] | None = None
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    mixup: Annotated[float, Ge(0)] = 0.0
    cutmix: Annotated[float, Ge(0)] = 0.0
    erasing: Annotated[float, Ge(0), Le(1)] = 0.0
    rand_augment: str | None = None
    crop_scale: tuple[Share, Share] = (0.3, 1.0)
    flip: Annotated[float, Ge(0), Le(1)] = 0.5
    crop_pct: Share = 1.0
    pool: Pool = "mean"
    labels: Share = 1.0
    init: Literal["pretrained", "random"] = "pretrained"
    image_size: Side | tuple[Side, Side] | None = None
    test_every: Annotated[int, Gt(0)] = 5
    workers: Annotated[int, Ge(0)] = 0
    seed: Annotated[int, Ge(0)] = 0

    def __call__(self, frozen: Frozen) -> Score:
        """Top-1 on the test images after the last epoch; that of the best epoch, which they chose, is in the details.

        Everything is kept in `finetune-<key>/` beside the weights: a finished fine-tuning is read back, another one
        goes on where it stopped. Raises UserError for options that do not fit, and Stopped after saving.
        """
        from mimkit.evaluate.finetune.run import Run

        folder, images = self.folder(frozen.weights, frozen.of), self.images(frozen.sources["train"])
        lines = read_json_lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
        if len(lines) < self.epochs:
            with StopRequest() as stop:
                lines = Run(self, frozen, images, folder).fit(stop)
        best = max((line for line in lines if line["top1"] is not None), key=lambda line: line["top1"])
        frozen.unreadable.update(lines[-1]["unreadable"])
        from_where = "from scratch, " if self.init == "random" else ""
        return Score(
            value=lines[-1]["top1"],
            note=f"{from_where}{len(images)} labelled images, {self.epochs} epochs; {folder.name}/",
            details={
                "best_top1": best["top1"],
                "best_epoch": best["epoch"],
                "labelled_images": len(images),
                "training_seconds": round(sum(line["seconds"] for line in lines), 2),
                "folder": str(folder),
            },
        )

    def images(self, source: Source) -> Source:
        """The training images that are used."""
        assert source.labels is not None
        return source if self.labels == 1 else source.subset(few_labels(source.labels, self.labels, self.seed))

    def folder(self, weights: Path | None, of: Mapping[Split, Any]) -> Path:
        """Where it is kept: the name follows from all that the result depends on."""
        if weights is None:
            raise UserError("--probe finetune builds the encoder anew, and so needs one in mimkit's own files")
        options = {name: value for name, value in asdict(self).items() if name not in FREE}
        key = hashlib.sha256(json.dumps([dict(of), options], sort_keys=True).encode()).hexdigest()[:12]
        return weights.parent / f"finetune-{key}"
