"""How good a run's images are: their distance to held-out images, and what the model knows of held-out codes."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mimkit.data.open import open_data
from mimkit.data.source import Source
from mimkit.data.views import views
from mimkit.errors import UserError
from mimkit.evaluate.features import encode, spread
from mimkit.evaluate.frechet import frechet_distance
from mimkit.generate.painter import BATCH, Painter, open_run
from mimkit.generate.sampler import Sampling
from mimkit.saved.encoder import load
from mimkit.types import Encoder, Images

COUNTED = 10000  # training images whose codes are counted


def score(run: Path, by: Path, count: int, sampling: Sampling, seed: int) -> Iterator[str]:
    """Lines on the images of a run, measured in the features of the encoder at `by`; `count` of each kind.

    The images that the run paints stand between what its tokenizer makes of held-out images, which nothing painted from
    its codes can be expected to pass, and images of codes drawn place by place. Raises UserError.
    """
    painter, step = open_run(run)
    encoder = load(by, painter.encoder.image_size).to(painter.device)
    train, test = _sources(painter)
    held_out, counted = _views(painter, test, count), _views(painter, train, COUNTED)
    codes = torch.cat([painter.tokenizer.codes(part) for part in held_out.split(BATCH)])
    by_place = _frequencies(painter, counted)  # (L, K)
    everywhere = by_place.mean(0, keepdim=True).expand_as(by_place)
    generator = painter.generator(seed)
    count = len(held_out)
    if count < 2:
        raise UserError("--score needs two images or more, held-out ones and -n, to know how images vary")
    yield f"{run} at {step}: {count} images of each kind, {sampling.steps} steps, temperature {sampling.temperature:g}"
    yield f"Fréchet distance to held-out images, in the features of {by} (mean patch token)"
    wanted = _features(encoder, held_out)
    kinds = {
        "training images": lambda: counted[:count],
        "held-out images, decoded from codes": lambda: painter.images(codes),
        "painted": lambda: painter.images(painter.paint(*painter.blank(count), sampling, generator)),
        "codes drawn for each place": lambda: painter.images(_drawn(by_place, count, generator)),
        "codes drawn for all places alike": lambda: painter.images(_drawn(everywhere, count, generator)),
    }
    for name, images in kinds.items():
        yield f"  {name:<36} {frechet_distance(_features(encoder, images()), wanted):8.3f}"
    yield "held-out codes, nats each"
    yield f"  {'loss of the hidden ones':<36} {_loss(painter, held_out, seed):8.3f}"
    yield f"  {'entropy for each place':<36} {_entropy(by_place, codes):8.3f}"
    yield f"  {'entropy for all places alike':<36} {_entropy(everywhere, codes):8.3f}"


def _sources(painter: Painter) -> tuple[Source, Source]:
    """Training and held-out images of the run. Raises UserError where there are no held-out ones."""
    choice, encoder = painter.model.recipe.data, painter.encoder
    data = open_data(choice.name, choice.options, encoder.image_size, encoder.in_chans)
    if data.test is None:
        raise UserError(f"--score compares with held-out images, and data '{data.name}' has no test images")
    return data.train, data.test


def _views(painter: Painter, source: Source, most: int) -> Images:
    """Evaluation views of at most `most` images, on the model's device, in a random order."""
    chosen = spread(len(source), most)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).numpy()
    return views(source, painter.encoder.image_size, painter.encoder.in_chans, chosen[order]).to(painter.device)


def _frequencies(painter: Painter, images: Images) -> Float[Tensor, "L K"]:
    """How often each place has each code; one more image is counted, in which all codes occur alike."""
    places, size = painter.encoder.grid[0] * painter.encoder.grid[1], painter.tokenizer.vocab_size
    counts = torch.full((places, size), 1 / size, dtype=torch.float64, device=painter.device)
    for part in images.split(BATCH):
        codes = painter.tokenizer.codes(part).T
        counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=counts.dtype))
    return counts / counts.sum(1, keepdim=True)


def _drawn(frequencies: Float[Tensor, "L K"], count: int, generator: torch.Generator) -> Int[Tensor, "B L"]:
    """Codes of `count` images, each place for itself."""
    return torch.multinomial(frequencies, count, replacement=True, generator=generator).T


def _entropy(frequencies: Float[Tensor, "L K"], codes: Int[Tensor, "B L"]) -> float:
    """What held-out codes cost by those frequencies, in nats a code."""
    return -frequencies.log().gather(1, codes.T).mean().item()


@torch.no_grad()
def _loss(painter: Painter, images: Images, seed: int) -> float:
    """Mean cross-entropy of the codes that the recipe's own masks hide, in nats."""
    generator, total, count = torch.Generator().manual_seed(seed), 0.0, 0
    for part in images.split(BATCH):
        out = painter.model(part, generator=generator)
        assert out.prediction is not None and out.target is not None
        total += F.cross_entropy(out.prediction.float().flatten(0, -2), out.target.flatten(), reduction="sum").item()
        count += out.target.numel()
    return total / count


@torch.no_grad()
def _features(encoder: Encoder, images: Images) -> Float[Tensor, "N D"]:
    return torch.cat([encode(encoder, part, "mean").float() for part in images.split(BATCH)])
