"""What distilling costs: a step against its parts, cached teacher features, the prompting decoder against MAE's.

    python benchmarks/distill.py --teacher local-dir:FOLDER [--recipe maskdistill] [--batch N] [--rounds N] [--threads N]

All on the same random images, variants taking turns; a ratio is the median over the rounds of the ratio within a round.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import mimkit
from mimkit.model import Model
from mimkit.objective import Objective
from mimkit.train.memory import keep_large_blocks
from mimkit.train.optim import build_optimizer

STEPS = 4  # timed together


def trainer(model: Model, images: Tensor) -> Callable[[], None]:
    """One optimizer step."""
    optimizer = build_optimizer(model.train(), model.recipe.optim)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(images, generator=torch.Generator().manual_seed(0)).loss.backward()
        optimizer.step()

    return step


def with_values_at_hand(model: Model, images: Tensor) -> Model:
    """The same model whose target costs nothing: the student alone."""
    objective: Objective = model.objectives["main"]  # type: ignore[assignment]
    values = objective.wanted({"image": images})
    objective.wanted = lambda views: values  # type: ignore[method-assign]
    return model


def seconds(work: Callable[[], object]) -> float:
    """Time of one call, from several."""
    began = time.perf_counter()
    for _ in range(STEPS):
        work()
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    """Take turns, then print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--recipe", default="maskdistill")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_large_blocks()

    def build(*overrides: str) -> Model:
        torch.manual_seed(0)
        return mimkit.build(given.recipe, f"target.model={given.teacher}", *overrides)

    still = ("data.crop_scale=[1.0,1.0]", "data.crop_ratio=[1.0,1.0]", "data.color_jitter=0")
    model = build()
    images = torch.randint(0, 256, (given.batch, model.encoder.in_chans, *model.encoder.image_size), dtype=torch.uint8)
    objective: Objective = model.objectives["main"]  # type: ignore[assignment]
    visible = ("target.cls=false", "target.saliency=false", "mask=random", "mask.feed=visible", "mask.ratio=0.75")
    small = ("head.embed_dim=64", "head.depth=2", "head.num_heads=2")
    work = {
        "full step": trainer(model, images),
        "student alone": trainer(with_values_at_hand(build(), images), images),
        "teacher alone": lambda: objective.wanted({"image": images}),
        "full step, cached": trainer(build("target.cache=true", *still), images),
        "prompting decoder": trainer(with_values_at_hand(build(*visible, "head=prompting", *small), images), images),
        "MAE decoder": trainer(with_values_at_hand(build(*visible, "head=decoder", *small), images), images),
    }
    for each in work.values():
        each()
    rounds = [{name: seconds(each) for name, each in work.items()} for _ in range(given.rounds)]
    for name in work:
        print(f"{name:20} {1000 * statistics.median(one[name] for one in rounds):8.1f} ms")
    ratios = {
        "full step / (student + teacher)": lambda t: t["full step"] / (t["student alone"] + t["teacher alone"]),
        "full step / cached step": lambda t: t["full step"] / t["full step, cached"],
        "prompting decoder / MAE decoder": lambda t: t["prompting decoder"] / t["MAE decoder"],
    }
    for name, ratio in ratios.items():
        print(f"{name:34} {statistics.median(map(ratio, rounds)):.3f}")


if __name__ == "__main__":
    main()
