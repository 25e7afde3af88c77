"""What `mimkit check` says: does the recipe build, can the data be read, what does a step cost."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mimkit.data.survey import survey
from mimkit.recipe import Recipe
from mimkit.train.memory import keep_large_blocks, peak_memory
from mimkit.train.session import prepare
from mimkit.train.step import step

TIMED_STEPS = 2  # after a first one, which is slower


def report(recipe: Recipe) -> Iterator[str]:
    """Lines on model, data and cost, as they become known. Raises UserError for what is wrong."""
    keep_large_blocks()
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(recipe, Path(folder) / "run", resume=False)
        millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (run.model.encoder, run.model)]
        grid = run.model.encoder.grid
        yield f"recipe     {recipe.method}: valid; encoder {recipe.encoder.name} on {grid[0]}x{grid[1]} places"
        yield f"parameters encoder {millions[0]:.2f} M, in all {millions[1]:.2f} M"
        for split, found in survey(run.data).items():
            first, *more = str(found).splitlines()
            yield f"data       {split}: {first}"
            yield from (f"           {line}" for line in more)
        stream = run.batches.start()
        for number in range(1 + TIMED_STEPS):
            if number == 1:
                began = time.perf_counter()
            losses, _ = step(run, next(stream))
        loss = losses["loss"].item()
        rate = TIMED_STEPS * run.batches.batch_size / (time.perf_counter() - began)
        total = run.rate.total_steps * run.batches.batch_size / rate
        where = "on the GPU" if run.device.type == "cuda" else "of memory"
        cost = f"{rate:.0f} images/s, {peak_memory(run.device) / 2**30:.1f} GiB {where}"
        yield f"step       batch {run.batches.batch_size} on {run.device}: loss {loss:.4f}, {cost}"
        yield f"run        {run.rate.total_steps} steps, about {total / 60:.0f} minutes without probes"
