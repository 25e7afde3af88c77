"""A run that was trained to predict the codes that its encoder reads, as what paints images."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mimkit import registry
from mimkit.device import chosen_device
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.generate.sampler import Sampling, fill_in
from mimkit.model import Model
from mimkit.objective import Objective
from mimkit.saved.tokenizer import CodeEncoder
from mimkit.types import Mask
from mimkit.weights.trained import trained_model

BATCH = 64  # images that are painted at once


class Painter:
    """Fills in codes by a model's encoder and first head, and decodes them.

    Raises UserError where the model is not of codes, was fed visible places only, or has a tokenizer that cannot decode.
    """

    def __init__(self, model: Model):
        objective = next(iter(model.objectives.values()))
        assert isinstance(objective, Objective)
        if not isinstance(model.encoder, CodeEncoder) or not objective.target.encoder_codes:
            raise UserError(
                "images are painted by a run with encoder=mage and target=codes; `mimkit train mage` makes one"
            )
        if model.masking.feed == "visible":
            raise UserError("this run was fed visible places only, and a blank image has none: take mask=variable")
        if not model.encoder.tokenizer.can_decode:
            raise UserError(
                "this run's tokenizer makes no images of codes: take one of `mimkit train vqgan` as encoder.tokenizer"
            )
        self.model, self.objective = model.eval(), objective
        self.encoder, self.tokenizer = model.encoder, model.encoder.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def logits(self, codes: Int[Tensor, "B L"], unknown: Bool[Tensor, "B L"]) -> Float[Tensor, "B L K"]:
        """Of every code at every place, from the codes that are known."""
        mask = Mask.from_hidden(unknown, predicted=torch.ones_like(unknown), grid=self.encoder.grid)
        head = self.model.head_of(self.objective)
        prediction = self.objective.predict(self.encoder.encode(codes, mask, head.layers), mask, {})
        assert prediction.values is not None
        return prediction.values

    def paint(
        self, codes: Int[Tensor, "B L"], unknown: Bool[Tensor, "B L"], sampling: Sampling, generator: torch.Generator
    ) -> Int[Tensor, "B L"]:
        """The codes with the unknown ones drawn, some images at a time."""
        parts = zip(codes.split(BATCH), unknown.split(BATCH), strict=True)
        return torch.cat([fill_in(self.logits, *part, sampling, generator) for part in parts])

    def blank(self, count: int) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Codes of `count` images of which nothing is known."""
        unknown = torch.ones(count, self.encoder.grid[0] * self.encoder.grid[1], dtype=torch.bool, device=self.device)
        return torch.zeros_like(unknown, dtype=torch.long), unknown

    def images(self, codes: Int[Tensor, "B L"]) -> Float[Tensor, "B C H W"]:
        """What the codes decode to, in [0, 1]."""
        return torch.cat([self.tokenizer.decode(part) for part in codes.split(BATCH)])

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers on the model's device."""
        return torch.Generator(self.device).manual_seed(seed)


def open_run(run: Path) -> tuple[Painter, str]:
    """What paints, from a run's folder alone, and the name of the checkpoint.

    Raises UserError where there is no such run or it paints no images.
    """
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} holds no run (no recipe.yaml in it): encoder and head together paint images")
    encoder = load_recipe(run / "recipe.yaml").encoder.name
    if not issubclass(registry.find("encoder", encoder), CodeEncoder):
        raise UserError(
            f"{run}: its encoder '{encoder}' reads pixels, and images are painted from codes: "
            "`mimkit train mage` makes a run that does"
        )
    model, name = trained_model(run)
    return Painter(model.to(chosen_device("auto"))), name
