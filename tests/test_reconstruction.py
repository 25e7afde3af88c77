"""Reconstruction scores: values computed by hand, and an oracle head that knows the answer."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import mimkit
from mimkit.errors import UserError
from mimkit.evaluate.reconstruction import reconstruct, reconstruction_scores, spread
from mimkit.model import Model
from mimkit.types import Features, Head, Mask, Masking, Target

NAN = float("nan")


class Oracle(Head):
    """Predicts given values (B, L, D)."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = values

    def forward(self, features: Features, mask: Mask) -> Tensor:
        return mask.select(self.values)


class Fixed(Masking):
    """Hides given places and feeds all."""

    feed = "all"

    def __init__(self, hidden: Tensor):
        self.hidden = hidden

    def draw(self, grid: Any, batch: int, generator: Any, saliency: Any) -> Mask:
        return Mask.from_hidden(self.hidden, grid=grid)


class Codes(Target):
    """The codes 0 … L-1 of the places; no pixels."""

    loss = "cross_entropy"

    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(15).expand(len(images), -1)


def small_model(size: tuple[int, int] = (12, 20), *overrides: str, chans: int = 3, **options: Any) -> Model:
    """A tiny ViT of patch 4."""
    recipe = {
        "method": "tiny",
        "image_size": list(size),
        "encoder": {"name": "vit", "embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 4, "in_chans": chans},
        "mask": "random",
        "head": {"name": "decoder", "embed_dim": 8, "depth": 1, "num_heads": 2},
        "target": "norm_pixels",
        "optim": {"lr": 1e-3},
        "train": {"max_steps": 1},
    }
    return mimkit.build(recipe | options, *overrides)


def with_oracle(model: Model, images: Tensor) -> Model:
    """The same model, whose head gives the normalised target."""
    objective: Any = model.objectives["main"]
    objective.head = Oracle(objective.normalized(objective.target(images)))
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def test_spread_takes_the_mean_of_the_nearest_visible_places() -> None:
    """By hand: 1, 2 and 6 are visible on a 3x3 grid; what is hidden is never read."""
    values = torch.tensor([1, NAN, 2, NAN, NAN, NAN, NAN, 6, NAN]).view(1, 9, 1)
    filled = spread(values, ~values.isnan()[..., 0], (3, 3))
    assert filled.flatten().tolist() == pytest.approx([1, 1.5, 2, 3.5, 3, 4, 6, 6, 6])


def test_spread_grows_until_every_place_is_reached() -> None:
    """By hand: the middle of five places sees both ends at distance two; without any visible place all stay 0."""
    values = torch.tensor([[2.0, NAN, NAN, NAN, 8.0], [7.0, NAN, NAN, NAN, NAN], [NAN] * 5])[..., None]
    filled = spread(values, ~values.isnan()[..., 0], (1, 5))[..., 0]
    assert filled.tolist() == [[2, 2, 5, 8, 8], [7, 7, 7, 7, 7], [0, 0, 0, 0, 0]]


def test_scores_by_hand_on_flat_patches() -> None:
    """Flat grey patches: the visible are 0.1, 0.2 and 0.6, the head says 0.4 everywhere."""
    grey = torch.tensor([0.1, 0.5, 0.2, 0.5, 0.5, 0.5, 0.7, 0.6, 0.7])
    images = grey.view(1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    target = {"name": "pixels", "mean": [0.0], "std": [1.0]}
    model = small_model((12, 12), chans=1, target=target)
    model.masking = Fixed(torch.tensor([[False, True, False, True, True, True, True, False, True]]))
    model.objectives["main"].head = Oracle(torch.full((1, 9, 16), 0.4))  # type: ignore[union-attr]
    total = 4 * (0.5 - 3.4 / 6) ** 2 + 2 * (0.7 - 3.4 / 6) ** 2
    baseline = 0.35**2 + 0.15**2 + 0.2**2 + 3 * 0.1**2
    wanted = {
        "mse": (4 * 0.1**2 + 2 * 0.3**2) / 6,
        "mse_neighbours": baseline / 6,
        "r2": 1 - (4 * 0.1**2 + 2 * 0.3**2) / total,
        "r2_neighbours": 1 - baseline / total,
    }
    assert reconstruction_scores(model, images) == pytest.approx(wanted, rel=1e-4)


def test_visible_neighbours_give_mean_and_deviation_back() -> None:
    """By hand: stripes 0.2 ± 0.1 and 0.4 ± 0.2 are visible, so the hidden 0.5 ± 0.3 comes back as 0.3 ± 0.15."""
    mean, height = torch.tensor([0.2, 0.5, 0.4]), torch.tensor([0.1, 0.3, 0.2])
    stripes = torch.tensor([1.0, -1.0, 1.0, -1.0])
    images = (mean[:, None] + height[:, None] * stripes).view(1, 1, 1, 12).repeat(1, 1, 4, 1)
    target = {"name": "norm_pixels", "mean": [0.0], "std": [1.0]}
    model = with_oracle(small_model((4, 12), chans=1, target=target), images)
    model.masking = Fixed(torch.tensor([[False, True, False]]))
    scores = reconstruction_scores(model, images)
    assert scores["mse"] == pytest.approx(0.2**2 + 0.15**2, rel=1e-3)
    assert scores["mse_true_statistics"] == pytest.approx(0, abs=1e-8)
    assert scores["mse_neighbours"] == pytest.approx(0.2**2 + 0.3**2, rel=1e-3)  # flat 0.3


@pytest.mark.parametrize(
    "mask", ["random", {"name": "random", "feed": "all"}, {"name": "block", "rule": "at_most", "feed": "all"}]
)
@pytest.mark.parametrize("target", ["pixels", "norm_pixels"])
def test_an_oracle_has_no_error(images: Tensor, mask: Any, target: str) -> None:
    model = with_oracle(small_model(mask=mask, target=target), images)
    scores = reconstruction_scores(model, images)
    assert scores["r2"] == pytest.approx(1, abs=1e-5)
    assert scores["mse_true_statistics" if target == "norm_pixels" else "mse"] == pytest.approx(0, abs=1e-9)
    assert scores["mse_neighbours"] > 0.05
    assert ("mse_true_statistics" in scores) == (target == "norm_pixels")


def test_prediction_is_the_models_own_at_the_hidden_places(images: Tensor) -> None:
    model = small_model(mask={"name": "block", "rule": "at_most", "feed": "all"})
    found = reconstruct(model, images, seed=3)
    model.eval()
    output = model(images, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found.mask.hidden, output.mask.hidden)
    torch.testing.assert_close(found.prediction[found.mask.hidden], output.prediction.flatten(0, -2))
    assert not found.prediction[~found.mask.hidden].any()


def test_reconstruct_leaves_the_model_as_it_was(images: Tensor) -> None:
    model = small_model()
    before = torch.get_rng_state()
    first, again = reconstruct(model.train(), images), reconstruct(model, images)
    assert model.training and model.encoder.training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.prediction, again.prediction)
    assert not first.prediction.requires_grad
    assert not torch.equal(first.mask.hidden, reconstruct(model, images, seed=1).mask.hidden)


def test_where_nothing_is_hidden_whole_images_are_scored(images: Tensor) -> None:
    """By the definition of the signal-to-noise ratio, an image at a time; predictions are clamped to [0, 1]."""
    model = small_model(mask="none", head={"name": "linear"}, target="pixels", normalizer="none")
    values = model.eval()(images).prediction
    made = model.objectives["main"].target.to_images(values, model.encoder.grid).clamp(0, 1)  # type: ignore[union-attr]
    true = images.double() / 255
    errors = [float(((one - other) ** 2).mean()) for one, other in zip(made.detach(), true, strict=True)]
    scores = reconstruction_scores(model, images)
    assert scores.keys() == {"mse", "psnr"} and scores["mse"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    ratios = [10 * math.log10(1 / error) for error in errors]
    assert scores["psnr"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)


def test_what_cannot_be_scored_is_refused(images: Tensor) -> None:
    model = small_model(normalizer="none")
    model.objectives["main"].target = Codes()  # type: ignore[union-attr]
    model.objectives["main"].compare = mimkit.losses.cross_entropy()  # type: ignore[union-attr]
    with pytest.raises(UserError, match="'Codes' is not made of pixels"):
        reconstruction_scores(model, images)
