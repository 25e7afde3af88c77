"""The training loop. `fit` is the page to read: probe, batch, step, log, save, draw."""

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from mimkit.disk import write_text
from mimkit.errors import UserError
from mimkit.evaluate.features import sample_views
from mimkit.evaluate.health import health
from mimkit.evaluate.reconstruction import ToImages, reconstruction_scores
from mimkit.recipe import Recipe
from mimkit.saved.encoder import save_encoder
from mimkit.signals import StopRequest
from mimkit.train.log import Clock, TrainProgress
from mimkit.train.memory import keep_large_blocks, peak_memory
from mimkit.train.run import read_metrics
from mimkit.train.session import Run, prepare
from mimkit.train.step import check_finite, step
from mimkit.weights import checkpoint
from mimkit.weights.tokenizer import save_tokenizer

MANY_PLACES = 1024  # more are told of
PICTURES = 8  # images in the picture of reconstructions
SCORED = 256  # images whose reconstruction is scored at the end
WATCHED = 128  # images of the label-free figures
COLLAPSED = 0.98  # mean cosine between the patch tokens of an image, from which on they count as alike
SAVE_FAILURES = 3  # saves in a row that may fail (disk full) before the run stops


def train(recipe: Recipe, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Train a recipe in a run folder and give its summary; `summary["exit"]` is "done" or the signal that stopped it.

    Raises UserError for what the user can mend, the loss becoming non-finite included.
    """
    keep_large_blocks()
    with StopRequest() as stop:
        run = prepare(recipe, folder, resume)
        batches = run.batches
        with TrainProgress(run.rate.total_steps, batches.steps_per_epoch, batches.batch_size, run.step) as progress:
            greet(run, progress)
            fit(run, progress, stop)
        return finish(run, "done" if run.done else stop.name)


def greet(run: Run, progress: TrainProgress) -> None:
    """Say what is about to happen."""
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (run.model.encoder, run.model)]
    recipe, at = run.recipe, f"from step {run.step} " if run.step else ""
    progress.say(
        f"{recipe.method}: {len(run.data.train)} images of {run.data.name}, {run.rate.total_steps} steps {at}on {run.device}; "
        f"encoder {sizes[0]:.2f} M parameters, in all {sizes[1]:.2f} M; run folder {run.folder}"
    )
    if run.batches.batch_size < recipe.batches.batch_size:
        progress.say(
            f"note: there are fewer images than data.batch_size={recipe.batches.batch_size}; a batch is all of them"
        )
    height, width = run.model.encoder.grid
    if height * width > MANY_PLACES:
        progress.say(
            f"note: {height}x{width} places an image make slow steps; a larger encoder.patch_size (16 is usual for "
            "photographs) makes them far fewer"
        )
    if run.rate.warmup_steps >= run.rate.total_steps:
        progress.say("note: the warm-up is longer than the run, so the learning rate never reaches its peak")


def fit(run: Run, progress: TrainProgress, stop: StopRequest) -> None:
    """Train until all steps are done or a stop is asked for; then save."""
    clock = Clock()
    stream = run.batches.start(run.step)
    while not run.done and not stop:
        with aside(run, clock):
            probe(run, progress, stop)
        began = time.perf_counter()
        views = next(stream)
        clock.wait(time.perf_counter() - began)
        losses, norm = step(run, views)
        clock.images += run.batches.batch_size
        if run.step % run.recipe.train.log_every == 0 or run.done:
            log(run, losses, norm, clock, progress)
        with aside(run, clock):
            if run.every(run.recipe.train.checkpoint_every):
                save(run, progress)
            if run.every(run.recipe.train.pictures_every) and not run.done:
                draw(run)
    with aside(run, clock):
        if run.done:
            probe(run, progress, stop)
        save(run, progress, must=True)
        if run.done:
            draw(run)


def log(run: Run, losses: dict[str, Tensor], norm: Tensor, clock: Clock, progress: TrainProgress) -> None:
    """One line of metrics: the loss is the mean since the last line; the device is read only here."""
    check_finite(run)
    total, steps = run.meter.tolist()
    rates = clock.rates()
    terms = {name: value.item() for name, value in losses.items() if name != "loss"}
    run.metrics.write(
        step=run.step,
        epoch=round(run.step / run.batches.steps_per_epoch, 4),
        images=run.step * run.batches.batch_size,
        loss=total / steps,
        **terms,
        lr=run.rate(run.step - 1),
        grad_norm=norm.item(),
        **rates,
    )
    progress.update(run.step, total / steps, rates)
    run.seconds += time.perf_counter() - clock.began - clock.paused
    run.meter.zero_()
    clock.restart()


@contextmanager
def aside(run: Run, clock: Clock) -> Iterator[None]:
    """What happens inside is not training time."""
    began = time.perf_counter()
    yield
    spent = time.perf_counter() - began
    clock.pause(spent)
    run.seconds += spent


def save(run: Run, progress: TrainProgress, must: bool = False) -> None:
    """Checkpoint and hand-over. A full disk does not end the run at once; where it `must` be saved, or after three, it does."""
    check_finite(run)
    state = {"seconds": run.seconds, "meter": run.meter.tolist()}
    try:
        keep = run.recipe.train.keep_checkpoints
        checkpoint.save(run.folder / "checkpoints", run.step, run.model, run.optimizers, state, keep)
        save_encoder(run.folder, run.model.encoder, run.recipe.encoder.name, run.recipe.encoder.options)
        save_tokenizer(run.folder, run.model)
        run.failed_saves = 0
    except OSError as error:
        run.failed_saves += 1
        if must or run.failed_saves >= SAVE_FAILURES:
            raise UserError(
                f"the checkpoint of step {run.step} cannot be written to {run.folder}: {error.strerror}"
            ) from error
        progress.say(
            f"warning: the checkpoint of step {run.step} was not written ({error.strerror}); trying again later"
        )


def probe(run: Run, progress: TrainProgress, stop: StopRequest) -> None:
    """Score the encoder if that is due: untrained, every so many epochs, and at the end. Labels are not always there."""
    settings = run.recipe.probe
    if not settings.every or not (run.step == 0 or run.done or run.every(settings.every)):
        return
    epoch = round(run.step / run.batches.steps_per_epoch, 4)
    began = time.perf_counter()
    found = health(run.model, sample_views(run.data, run.model.encoder, WATCHED))
    figures = {name: round(value, 4) for name, value in found.items()}
    run.metrics.write(
        step=run.step, epoch=epoch, probe="health", **figures, seconds=round(time.perf_counter() - began, 2)
    )
    progress.say(f"epoch {epoch:g}: " + ", ".join(f"{name.replace('_', ' ')} {x:.3g}" for name, x in found.items()))
    if run.step and found["patch_similarity"] > COLLAPSED:
        progress.say("warning: the patch tokens of an image are nearly alike: the features collapse")
    if not run.probe.available:
        return
    began = time.perf_counter()
    score = run.probe.measure(run.model.encoder, lambda: bool(stop))
    if score is None:  # asked to stop meanwhile: measured again when the run goes on
        return
    seconds = round(time.perf_counter() - began, 2)
    run.metrics.write(step=run.step, epoch=epoch, probe="knn", knn_top1=round(score, 3), seconds=seconds)
    progress.say(f"epoch {epoch:g}: kNN top-1 {score:.1f} % ({run.probe.size}, {seconds:.0f} s)")


def draw(run: Run) -> None:
    """Refresh the pictures."""
    from mimkit.show.curves import draw_curves
    from mimkit.show.reconstruction import draw_reconstructions

    images = sample_views(run.data, run.model.encoder, PICTURES)
    draw_reconstructions(run.model, images, run.folder / "pictures" / "reconstruction.png")
    if run.done or run.step >= run.recipe.train.log_every:
        draw_curves(run.folder / "metrics.jsonl", run.folder / "pictures" / "loss.png")


def finish(run: Run, exit_reason: str) -> dict[str, Any]:
    """Write summary.json."""
    lines = read_metrics(run.folder)
    losses = [line["loss"] for line in lines if "loss" in line]
    rates = [line["images_per_s"] for line in lines if "loss" in line]
    scores = [line for line in lines if line.get("probe") == "knn"]
    watched: dict[str, Any] = next((line for line in reversed(lines) if line.get("probe") == "health"), {})
    objective: Any = next(iter(run.model.objectives.values()))
    pixels = isinstance(objective.target, ToImages)  # of other targets there is no image to score
    images = sample_views(run.data, run.model.encoder, SCORED) if run.done and pixels else None
    scored = {} if images is None else reconstruction_scores(run.model, images)
    summary = {
        "exit": exit_reason,
        "method": run.recipe.method,
        "step": run.step,
        "total_steps": run.rate.total_steps,
        "epoch": round(run.step / run.batches.steps_per_epoch, 4),
        "images": run.step * run.batches.batch_size,
        "seconds": round(run.seconds, 2),
        "images_per_s": statistics.median(rates) if rates else None,
        "loss": losses[-1] if losses else None,
        "knn_top1_untrained": scores[0]["knn_top1"] if scores else None,
        "knn_top1": scores[-1]["knn_top1"] if scores else None,
        "knn_top1_best": max((line["knn_top1"] for line in scores), default=None),
        **{name: watched[name] for name in watched if name not in ("step", "epoch", "probe", "seconds")},
        **scored,
        "bad_files": len(run.batches.bad),
        "peak_memory": peak_memory(run.device),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "encoder_parameters": sum(p.numel() for p in run.model.encoder.parameters()),
    }
    write_text(run.folder / "summary.json", json.dumps(summary, indent=1))
    return summary
