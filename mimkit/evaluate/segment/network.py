"""The network that segments, how it is trained, and what it says of whole images."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.evaluate.segment.crops import Crops
from mimkit.evaluate.segment.data import MaskedImages
from mimkit.evaluate.segment.geometry import Geometry
from mimkit.evaluate.segment.heads import Linear, UperNet
from mimkit.evaluate.segment.windows import sliding_logits
from mimkit.progress import Progress
from mimkit.schedule import Schedule
from mimkit.types import Encoder, Images

WARM_UP = 0.05  # of the steps

Predicted = tuple[UInt8[Tensor, "B C H W"], UInt8[Tensor, "B H W"], Int[Tensor, "B H W"]]


class Segmenter(nn.Module):
    """An encoder and a head. An encoder whose weights are frozen stays in eval mode."""

    def __init__(self, encoder: Encoder, head: Linear | UperNet):
        super().__init__()
        self.encoder, self.head = encoder, head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> "Segmenter":
        """The head, and the encoder where it is trained."""
        super().train(mode)
        self.encoder.train(mode and any(p.requires_grad for p in self.encoder.parameters()))
        return self

    def forward(self, images: Images) -> Float[Tensor, "B K H W"]:
        """Logits of each pixel: the head's, enlarged bilinearly."""
        logits = self.head(self.encoder(images, layers=self.head.layers))
        return F.interpolate(logits, images.shape[2:], mode="bilinear")


def train(
    network: Segmenter, crops: Crops, epochs: int, rates: tuple[float, float], weight_decay: float, ignore: int
) -> None:
    """AdamW on what is trainable; the rates rise for a twentieth of the steps, then fall along a half cosine to 0.

    rates: of the head and of the encoder. weight_decay: of matrices and kernels; biases, norms and other
    one-dimensional parameters do not decay. Raises UserError where the loss is not finite in the end.
    """
    steps = max(1, epochs * len(crops.images) // crops.batch_size)
    share = Schedule(1, 0, WARM_UP * steps, steps)  # of the rates
    groups = [
        {"params": parameters, "weight_decay": weight_decay * decays, "peak": peak}
        for part, peak in zip((network.head, network.encoder), rates)
        for decays in (True, False)
        if (parameters := [p for p in part.parameters() if p.requires_grad and (p.ndim > 1) is decays])
    ]
    optimizer = torch.optim.AdamW(groups)
    network.train()
    with Progress("segmentation, steps", steps) as progress:
        for step in range(steps):
            images, masks = (part.to(network.device) for part in crops.batch(step))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share(step)
            loss = pixel_loss(network(images), masks, ignore)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.advance(1)
    if not loss.isfinite():
        raise UserError("the segmentation's loss is not finite: lower segment.lr, or the encoder's training diverged")


def pixel_loss(logits: Float[Tensor, "B K H W"], masks: UInt8[Tensor, "B H W"], ignore: int) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that have a class; 0 where none has."""
    loss = F.cross_entropy(logits, masks.long(), ignore_index=ignore, reduction="sum")
    return loss / (masks != ignore).sum().clamp_min(1)


@torch.inference_mode()
def predict(network: Segmenter, images: MaskedImages, rows: np.ndarray, shape: Geometry) -> Predicted:
    """The whole images at `rows`, their masks and the predicted ones, on the CPU; larger images than crops by windows.

    Raises UserError for an image that cannot be read.
    """
    network.eval()
    pixels, truth = images.whole(rows, shape.size, network.encoder.in_chans)
    logits = sliding_logits(network, pixels.to(network.device), shape.crop, shape.stride)
    return pixels, truth, logits.argmax(1).cpu()
