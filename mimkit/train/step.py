"""One optimizer step: rate, gradient, update, what moves along, and the discriminators' own step."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mimkit.errors import UserError
from mimkit.train.opponent import awaken, oppose
from mimkit.train.session import Run


def step(run: Run, views: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Learn from the views of a batch; losses and metrics by name, the gradient's norm; unread."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.rate(run.step)
    awaken(run)
    losses, norm = backward(run, views)
    run.model.before_step(run.step / run.rate.total_steps)
    update(run, losses["loss"], norm)
    losses |= oppose(run, split(run, views), len(views["image"]))
    run.step += 1
    run.model.after_step(run.step / run.rate.total_steps)
    return losses, norm


def backward(run: Run, views: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Gradient of the batch, part by part where memory is short; losses and metrics by name, the gradient's norm; unread.

    All randomness of a step depends on (seed, step) alone, so that a resumed run draws the same masks.
    """
    torch.manual_seed(step_seed(run.recipe.seed, run.step))
    generator = torch.Generator().manual_seed(step_seed(run.recipe.seed, run.step))
    run.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for part in split(run, views):
        with run.autocast():
            out = run.model(part["image"], views=part, generator=generator)
        share = len(part["image"]) / len(views["image"])
        (out.loss * share).backward()
        terms = {f"loss_{name}": value for name, value in out.losses.items()} if len(out.losses) > 1 else {}
        more = {name.removeprefix("main."): value for name, value in out.metrics.items()}
        for name, value in {"loss": out.loss, **terms, **more}.items():
            sums[name] = sums.get(name, 0) + value.detach() * share
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.train.clip_grad or float("inf"))
    return sums, norm


def split(run: Run, views: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The views of a batch in as many parts as the recipe asks for, fewer if it is small; an image's repeats stay together."""
    parts, repeats = run.recipe.train.accumulate, run.recipe.batches.repeats
    chunks = {
        name: list(zip(*(repeat.chunk(parts) for repeat in images.chunk(repeats)))) for name, images in views.items()
    }
    for number in range(len(chunks["image"])):
        yield {name: torch.cat(of[number]) if repeats > 1 else of[number][0] for name, of in chunks.items()}


def update(run: Run, loss: Tensor, norm: Tensor) -> None:
    """Step the optimizer, unless loss or gradient is not finite; count the loss."""
    run.take_step(run.optimizer, loss, norm)
    run.meter += torch.stack([loss.double(), torch.ones_like(loss, dtype=torch.float64)])
    if run.device.type == "cpu":
        check_finite(run)


def check_finite(run: Run) -> None:
    """Raise UserError if some step was not finite; on a GPU this waits for it."""
    step = int(run.first_bad)
    if step < 0:
        return
    raise UserError(
        f"step {step}: the loss or its gradient is not finite; the step was not taken, and the checkpoints in "
        f"{run.folder} are sound. Lower optim.base_lr (or optim.lr), lengthen train.warmup_epochs or set train.clip_grad"
    )


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for one step of one rank."""
    return (seed * 1_000_003 + step * 8_191 + rank) % 2**63
