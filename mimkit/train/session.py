"""Everything a run works on, put together before the first step."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimkit.data.batches import Batches
from mimkit.data.crops import RandomCrop
from mimkit.data.jitter import ColorJitter
from mimkit.data.open import Data, open_data
from mimkit.device import chosen_device
from mimkit.errors import UserError
from mimkit.model import Model, build
from mimkit.recipe import Recipe
from mimkit.schedule import Schedule
from mimkit.train.log import Metrics
from mimkit.train.opponent import Opponent, opponents
from mimkit.train.optim import build_optimizer, schedule
from mimkit.train.probe import Probe
from mimkit.train.run import BadFiles, begin_folder, check_same
from mimkit.types import Output
from mimkit.weights import checkpoint
from mimkit.weights.trained import build_again


@dataclass
class Run:
    """All that the loop works on.

    step: optimizer steps that are done.
    seconds: of training, probes and pictures, over all resumes.
    meter: sum of the losses since the last line of metrics, and the number of steps.
    opponents: the discriminators that learn against the model.
    first_bad: first step whose loss or gradient was not finite; -1 while there is none.
    """

    recipe: Recipe
    folder: Path
    model: Model
    optimizer: torch.optim.AdamW
    opponents: list[Opponent]
    data: Data
    batches: Batches
    rate: Schedule
    probe: Probe
    metrics: Metrics
    device: torch.device
    step: int = 0
    seconds: float = 0.0
    meter: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    first_bad: Tensor = field(default_factory=lambda: torch.tensor(-1))
    failed_saves: int = 0

    def every(self, epochs: float) -> bool:
        """Whether a multiple of `epochs` is just reached."""
        return self.step % max(1, round(epochs * self.batches.steps_per_epoch)) == 0

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.rate.total_steps

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The model's, and those of the discriminators that learn against it."""
        return [self.optimizer, *(opponent.optimizer for opponent in self.opponents)]

    def autocast(self) -> AbstractContextManager[Any]:
        """In what the model computes: in bf16 where the recipe, or a GPU, wants it."""
        precision, kind = self.recipe.train.precision, self.device.type
        half = precision == "bf16" or (precision == "auto" and kind == "cuda")
        return torch.autocast(kind, torch.bfloat16) if half else nullcontext()

    def take_step(self, optimizer: torch.optim.Optimizer, *figures: Tensor) -> None:
        """Step an optimizer, unless a figure is or was not finite: then nothing is touched, on any device without a wait."""
        bad = ~torch.isfinite(torch.stack(figures)).all()
        self.first_bad = torch.where(bad & (self.first_bad < 0), self.step + 1, self.first_bad)
        optimizer.grad_scale, optimizer.found_inf = None, (self.first_bad >= 0).float()  # type: ignore[attr-defined]
        optimizer.step()


def prepare(recipe: Recipe, folder: Path, resume: bool) -> Run:
    """Build everything; the folder is written to only once nothing can be wrong any more."""
    if resume:
        check_same(recipe, folder)
    device = chosen_device(recipe.train.device, "train.device")
    torch.manual_seed(recipe.seed)
    model = (build_again(recipe, folder) if resume else build(recipe)).to(device)
    encoder = model.encoder
    data = open_data(recipe.data.name, recipe.data.options, encoder.image_size, encoder.in_chans)
    batches = Batches(
        data.train,
        encoder.image_size,
        encoder.in_chans,
        min(recipe.batches.batch_size, len(data.train)),
        crop=RandomCrop(recipe.batches.crop_scale, recipe.batches.crop_ratio, recipe.batches.flip),
        repeats=recipe.batches.repeats,
        change=ColorJitter(strength) if (strength := recipe.batches.color_jitter) else None,
        views=recipe.batches.views,
        seed=recipe.seed,
        workers=recipe.batches.workers,
        device=device,
        max_bad=recipe.batches.max_bad,
        on_bad=BadFiles(folder).note,
    )
    rate = schedule(recipe.optim, recipe.train, batches.batch_size, batches.steps_per_epoch)
    optimizer = build_optimizer(model, recipe.optim)
    model.eval()  # nothing is to move yet
    with torch.no_grad():  # whatever is wrong with the recipe shows here
        out = model(torch.zeros(2, encoder.in_chans, *encoder.image_size, dtype=torch.uint8, device=device))
    _check_objectives(model, out, recipe.train.accumulate)
    model.train()
    if not resume:
        begin_folder(recipe, folder)
    against = opponents(model)
    optimizers = [optimizer, *(opponent.optimizer for opponent in against)]
    state = checkpoint.restore(folder / "checkpoints", model, optimizers) if resume else None
    step = state["step"] if state else 0
    run = Run(
        recipe,
        folder,
        model,
        optimizer,
        against,
        data,
        batches,
        rate,
        Probe(recipe.probe, data),
        Metrics(folder, step),
        device,
        step,
    )
    run.meter, run.first_bad = run.meter.to(device), run.first_bad.to(device)
    if state and step:  # published weights that were imported are a run at step 0
        run.seconds, run.meter = state["seconds"], torch.tensor(state["meter"], dtype=torch.float64, device=device)
    return run


def _check_objectives(model: Model, out: Output, accumulate: int) -> None:
    """Raise UserError for objectives that cannot be trained so."""
    if out.prediction is None:
        raise UserError(
            "the first objective predicts single places; one of whole images stands beside it, in objectives:"
        )
    for name, objective in model.objectives.items():
        loss: Any = objective.compare
        if accumulate > 1 and loss.across_images:
            raise UserError(
                f"train.accumulate={accumulate}: the loss of objective '{name}' compares the images of a batch with each "
                "other, and parts would be smaller batches; take accumulate=1"
            )
