"""Segmentation: a head learns to tell the class of each pixel from an encoder's tokens; mean intersection over union."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from mimkit.drawing.sheet import ROWS
from mimkit.errors import UserError
from mimkit.evaluate.features import spread
from mimkit.evaluate.frozen import Frozen, Score
from mimkit.evaluate.labelled import files_sha256
from mimkit.evaluate.segment.crops import Crops
from mimkit.evaluate.segment.data import open_masked
from mimkit.evaluate.segment.geometry import Area, geometry
from mimkit.evaluate.segment.heads import Linear, UperNet
from mimkit.evaluate.segment.metric import Confusion
from mimkit.evaluate.segment.network import Segmenter, predict, train
from mimkit.evaluate.segment.picture import draw_masks
from mimkit.saved.encoder import load
from mimkit.types import Encoder

PICTURE = "segment.png"  # beside the weights
LR = {"linear": 1e-2, "upernet": 1e-3}  # by the head


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A head on the tokens, trained by cross-entropy on crops at random scales; the encoder too where it is not frozen.

    data: folder of images and masks, segment.data=FOLDER.
    classes: their names, from class 0 on; null calls them by their numbers.
    ignore: value of pixels without a class.
    head: linear (on the last tokens) or upernet (on the outputs of four blocks).
    channels: width of upernet's maps.
    frozen: whether the encoder stays as it is; false trains it too.
    size: to which images are resized and at which masks are compared, a side or [height, width]; null is the encoder's.
    crop: what the encoder reads at once, in training and as the test's window; null is size.
    stride: of the test's windows; null is two thirds of the crop.
    epochs: passes over the training images.
    batch_size: crops per step.
    lr: the head's rate after the warm-up; null is 0.01 for linear, 0.001 for upernet.
    encoder_lr: the encoder's, where it is trained.
    weight_decay: decoupled; for matrices and kernels.
    seed: of the head's first weights and of the crops.
    """

    data: str
    classes: tuple[str, ...] | None = None
    ignore: Annotated[int, Ge(0), Le(255)] = 255
    head: Literal["linear", "upernet"] = "linear"
    channels: Annotated[int, Gt(0)] = 128
    frozen: bool = True
    size: Area | None = None
    crop: Area | None = None
    stride: Area | None = None
    epochs: Annotated[int, Gt(0)] = 20
    batch_size: Annotated[int, Gt(1)] = 8
    lr: Annotated[float, Gt(0)] | None = None
    encoder_lr: Annotated[float, Gt(0)] = 1e-4
    weight_decay: Annotated[float, Ge(0)] = 0.01
    seed: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise UserError(f"segment.classes=[{','.join(self.classes)}] names a class twice")

    def __call__(self, frozen: Frozen) -> Score:
        """Mean IoU on the test images; IoU of each class and pixel accuracy are in the details. Writes segment.png."""
        assert frozen.weights is not None
        shape = geometry(frozen.encoder, self.size, self.crop, self.stride)
        fitted, tested, classes = open_masked(Path(self.data), self.ignore, self.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self.network(load(frozen.weights, shape.crop), len(classes)).to(frozen.device)
            crops = Crops(fitted, shape.size, shape.crop, network.encoder.in_chans, self.batch_size, self.seed)
            rates = (self.lr or LR[self.head], self.encoder_lr)
            train(network, crops, self.epochs, rates, self.weight_decay, self.ignore)
        found = Confusion(len(classes), self.ignore)
        for rows in np.split(np.arange(len(tested)), range(self.batch_size, len(tested), self.batch_size)):
            _, truth, predicted = predict(network, tested, rows, shape)
            found.add(predicted, truth)
        iou = dict(zip(classes, found.iou))
        present = sum(value is not None for value in iou.values())
        note = f"mIoU of {present} classes on {len(tested)} {tested.name} images of {self.data}, {self.head} head"
        legend = [name if value is None else f"{name} {value:.1f}" for name, value in iou.items()]
        picture = frozen.weights.parent / PICTURE
        samples = predict(network, tested, spread(len(tested), ROWS), shape)
        caption = f"{frozen.weights.parent} | {found.miou:.2f} % {note}; beside each class its IoU in %"
        draw_masks(*samples, self.ignore, legend, caption, picture)
        details = {
            "iou": iou,
            "pixel_accuracy": found.pixel_accuracy,
            "images": {"train": len(fitted), tested.name: len(tested)},
            **asdict(shape),
            "files_sha256": files_sha256(Path(self.data)),
            "picture": str(picture),
        }
        return Score(found.miou, note, details, "miou")

    def network(self, encoder: Encoder, num_classes: int) -> Segmenter:
        """The encoder, frozen or not, with a new head.

        Raises UserError where the head reads intermediate layers and the encoder gives none.
        """
        encoder.timm_model.requires_grad_(not self.frozen)
        if self.head == "linear":
            return Segmenter(encoder, Linear(encoder.embed_dim, num_classes))
        if not encoder.num_layers:
            name = type(encoder).__module__.rpartition(".")[2]
            raise UserError(
                f"segment.head=upernet: encoder '{name}' gives no intermediate layers; take segment.head=linear"
            )
        head = UperNet(encoder.embed_dim, encoder.num_layers, encoder.patch_size, num_classes, self.channels)
        return Segmenter(encoder, head)
