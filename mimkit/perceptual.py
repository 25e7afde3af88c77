"""Frozen networks whose inner features say how alike two images look.

Sources: LPIPS (arXiv 1801.03924), with learned weights of VGG's channels; PeCo (arXiv 2111.12710), with a
self-supervised ViT.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.saved.encoder import load
from mimkit.teachers.published import fixed_seed, one_line
from mimkit.teachers.timm import load_timm
from mimkit.types import Size, Standardize
from mimkit.weight_files import read_weights

Images = Float[Tensor, "B C H W"]
Inner = tuple[Float[Tensor, "B _ _"], ...]  # of each layer (B, N, D): N positions of width D


class PerceptualDistance(nn.Module):
    """Distance of the inner features of two batches of images (B, C, H, W), in [0, 1] units, summed over chosen layers.

    Features of each position are of unit length; their squared difference is summed over the channels and averaged over
    the positions.

    model: a timm model's name, or the folder of a run, whose encoder it is.
    pretrained: of a timm model: whether with published weights, or a file's.
    layers: a timm model's stages or blocks, an encoder's blocks; ascending.
    lpips: file of LPIPS's weights of the channels; None weighs all alike.
    in_chans: of the images; one channel is repeated for networks that read three.

    Raises UserError where the model, its weights or a layer cannot be had, or where it does not read such images.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool | str,
        layers: Sequence[int],
        lpips: str | None,
        in_chans: int,
        image_size: Size,
    ):
        super().__init__()
        of_run = "/" in model or Path(model).is_dir()
        try:
            self.network = _Run(Path(model), layers) if of_run else _Timm(model, pretrained, layers)
            if in_chans not in (1, self.network.in_chans):
                raise UserError(
                    f"loss.model={model} reads {self.network.in_chans} channels, the images have {in_chans}"
                )
            self.train(False).requires_grad_(False)
            with torch.no_grad():
                widths = [x.shape[2] for x in self._inner(torch.zeros(1, in_chans, *image_size))]
        except UserError:
            raise
        except Exception as error:  # timm's models raise what they like
            asked = ",".join(map(str, layers))
            raise UserError(f"loss.model={model} loss.layers=[{asked}]: {one_line(error)}") from error
        weights = [torch.ones(width) for width in widths] if lpips is None else lpips_weights(Path(lpips), widths)
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, ours: Images, theirs: Images) -> Float[Tensor, "B"]:
        """One number for each pair, in float32; gradients go through to `ours`."""
        with torch.autocast(ours.device.type, enabled=False):
            made = self._inner(ours)
            with torch.no_grad():
                true = self._inner(theirs)
            return torch.stack([_distance(*layer) for layer in zip(made, true, self.weights, strict=True)]).sum(0)

    def _inner(self, images: Images) -> Inner:
        size = self.network.input_size
        if size is not None and tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return self.network(images.expand(-1, self.network.in_chans, -1, -1))


class _Timm(nn.Module):
    """A timm model's own stages or blocks."""

    in_chans = 3

    def __init__(self, name: str, pretrained: bool | str, layers: Sequence[int]):
        super().__init__()
        self.model = load_timm(name, pretrained, role="loss")
        known, self.layers = self.model.pretrained_cfg, list(layers)
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"loss.model: timm's '{name}' gives no features of its layers; take a ViT or vgg16")
        self.input_size: Size | None = tuple(known["input_size"][1:]) if known.get("fixed_input_size") else None
        self.standardize = Standardize(self.in_chans, known["mean"], known["std"])
        self.model.prune_intermediate_layers(self.layers, prune_head=True)

    def forward(self, images: Images) -> Inner:
        """Feature maps as positions."""
        maps = self.model.forward_intermediates(
            self.standardize(images), indices=self.layers, intermediates_only=True, output_fmt="NCHW"
        )
        return tuple(x.flatten(2).transpose(1, 2) for x in maps)


class _Run(nn.Module):
    """The encoder of a run's folder."""

    def __init__(self, folder: Path, layers: Sequence[int]):
        super().__init__()
        try:
            with fixed_seed():
                self.encoder = load(folder)
        except UserError as error:
            raise UserError(f"loss.model: {error}") from error
        self.in_chans, self.input_size = self.encoder.in_chans, self.encoder.image_size
        self.layers = tuple(layers)
        outside = [layer for layer in layers if not -1 <= layer < self.encoder.num_layers]
        if outside:
            raise UserError(
                f"loss.layers: {folder} has the blocks 0 to {self.encoder.num_layers - 1}, not {outside[0]}"
            )

    def forward(self, images: Images) -> Inner:
        """The blocks' patch tokens."""
        features = self.encoder(images, None, self.layers)
        return tuple(x[:, features.num_prefix_tokens :] for x in features.layers)


def lpips_weights(path: Path, widths: Sequence[int]) -> list[Float[Tensor, " D"]]:
    """LPIPS's weights of the channels of each layer, as its authors and VQGAN's publish them.

    Raises UserError where the file is of other layers.
    """
    tensors = read_weights(path)
    found = [x.flatten() for name, x in sorted(tensors.items()) if name.startswith("lin") and name.endswith("weight")]
    if [len(x) for x in found] != list(widths):
        there = ", ".join(str(len(x)) for x in found) or "none"
        raise UserError(
            f"loss.lpips={path}: it has weights of channels for layers of width {there}, "
            f"loss.layers are {', '.join(map(str, widths))} wide (vgg16: loss.layers=[0,1,2,3,4])"
        )
    return found


def _distance(
    ours: Float[Tensor, "B N D"], theirs: Float[Tensor, "B N D"], weight: Float[Tensor, " D"]
) -> Float[Tensor, "B"]:
    return ((_unit(ours) - _unit(theirs)).square() @ weight).mean(-1)


def _unit(x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-10)
