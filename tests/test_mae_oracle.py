"""MAE against transformers' ViTMAEForPreTraining with the same weights and mask: loss and every gradient."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import mimkit
from mimkit.model import Model
from mimkit.types import Standardize

TINY = {
    "width": 24,
    "depth": 2,
    "heads": 3,
    "decoder": 40,
    "decoder_depth": 3,
    "decoder_heads": 5,
    "patch": 5,
    "size": 35,
}
BASE = {
    **TINY,
    "width": 768,
    "heads": 12,
    "decoder": 512,
    "decoder_depth": 2,
    "decoder_heads": 16,
    "patch": 16,
    "size": 64,
}


def oracle(shape: dict[str, int], norm_pix_loss: bool) -> ViTMAEForPreTraining:
    """Random weights everywhere (biases and norms too), the fixed positions of both halves as published."""
    torch.manual_seed(7)
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=shape["width"],
            num_hidden_layers=shape["depth"],
            num_attention_heads=shape["heads"],
            intermediate_size=4 * shape["width"],
            image_size=shape["size"],
            patch_size=shape["patch"],
            decoder_hidden_size=shape["decoder"],
            decoder_num_attention_heads=shape["decoder_heads"],
            decoder_num_hidden_layers=shape["decoder_depth"],
            decoder_intermediate_size=4 * shape["decoder"],
            norm_pix_loss=norm_pix_loss,
            layer_norm_eps=1e-6,
        )
    )
    embeddings = theirs.vit.embeddings  # the constructor leaves both tables of positions zero: call their own functions
    embeddings.patch_embeddings.projection._is_hf_initialized = False
    embeddings.initialize_weights()
    theirs.decoder.initialize_weights((shape["size"] // shape["patch"]) ** 2)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.05)
    return theirs.eval()


def ours(shape: dict[str, int], norm_pix_loss: bool) -> Model:
    encoder = {"name": "vit", "embed_dim": shape["width"], "depth": shape["depth"], "num_heads": shape["heads"]}
    head = {"embed_dim": shape["decoder"], "depth": shape["decoder_depth"], "num_heads": shape["decoder_heads"]}
    return mimkit.build(
        {
            "method": "mae",
            "image_size": shape["size"],
            "encoder": {**encoder, "patch_size": shape["patch"]},
            "mask": {"name": "random", "ratio": 0.75},
            "head": {"name": "decoder", **head},
            "target": "norm_pixels" if norm_pix_loss else "pixels",
            "optim": {"lr": 1e-3},
            "train": {"epochs": 1},
        }
    )


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def renamed(theirs: dict[str, Tensor], like: Model) -> dict[str, Tensor]:
    """The oracle's gradients by the names of our parameters: loaded as if they were weights."""
    copy = deepcopy(like)
    mimkit.load_official(copy, theirs)
    return {name: p.detach() for name, p in copy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("shape", "batch", "norm_pix_loss", "order"),
    [
        *((TINY, 2, norm_pix_loss, order) for norm_pix_loss in (True, False) for order in ("shuffled", "raster")),
        (BASE, 1, True, "raster"),
    ],
    ids=["tiny-norm-shuffled", "tiny-norm-raster", "tiny-raw-shuffled", "tiny-raw-raster", "base-norm-raster"],
)
def test_loss_prediction_and_every_gradient_equal_the_oracle(shape, batch, norm_pix_loss, order):
    """Against transformers' ViTMAEForPreTraining; the encoder is fed in the oracle's shuffled order, or in ours."""
    theirs, model = oracle(shape, norm_pix_loss), ours(shape, norm_pix_loss)
    mimkit.load_official(model, theirs.state_dict())
    images = torch.rand(batch, 3, shape["size"], shape["size"])
    standard = Standardize(3)(images)
    noise = torch.rand(batch, (shape["size"] // shape["patch"]) ** 2)

    wanted = theirs(pixel_values=standard, noise=noise)
    wanted.loss.backward()
    hidden = wanted.mask.bool()
    fed = noise.argsort(1)[:, : int((~hidden[0]).sum())] if order == "shuffled" else None
    out = model(images, mask=mimkit.Mask.from_hidden(hidden, fed=fed))
    out.loss.backward()

    assert gap(out.loss, wanted.loss) < 1e-5
    assert gap(out.prediction.flatten(0, 1), wanted.logits[hidden]) < 1e-5
    target = theirs.patchify(standard)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    assert gap(out.target.flatten(0, 1), target[hidden]) < 1e-5
    expected, found = renamed(theirs.state_dict() | gradients(theirs), model), gradients(model)
    assert expected.keys() == found.keys()
    gaps = {name: gap(found[name], expected[name]) for name in expected}
    assert max(gaps.values()) < 1e-5, sorted(gaps.items(), key=lambda item: -item[1])[:3]


def test_oblong_images_of_four_channels_by_hand():
    """By hand, since the oracle takes square images only: patches cut one by one, normalised, compared, averaged."""
    model = mimkit.build("mae", "image_size=[35,55]", "encoder.patch_size=5", "encoder.in_chans=4")
    images = torch.rand(2, 4, 35, 55)
    out = model(images)
    assert (out.mask.grid, int(out.mask.hidden.sum())) == ((7, 11), 2 * 58)  # int(77 * 0.25) = 19 are seen
    errors = []
    for image in range(2):
        places = out.mask.hidden[image].nonzero().flatten().tolist()
        for prediction, place in zip(out.prediction[image], places, strict=True):
            row, column = divmod(place, 11)
            pixels = (images[image, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5] - 0.449) / 0.226
            wanted = torch.stack([pixels[c, y, x] for y in range(5) for x in range(5) for c in range(4)])
            wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-6).sqrt()
            errors.append((prediction - wanted).square().mean())
    assert gap(out.loss, torch.stack(errors).mean()) < 1e-5
