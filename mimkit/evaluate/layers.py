"""Linear probe of every block's output. Source: BEiT (arXiv 2106.08254), whose own linear evaluation reads them so."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from mimkit.evaluate.frozen import Frozen, Score
from mimkit.evaluate.knn import top1
from mimkit.evaluate.linear import fit_best
from mimkit.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Logistic regression on each block's output, before the final norm: class token and mean patch token side by side.

    The best block is the one that is best on the held-out training images, so that the test images choose nothing.

    C: as in linear.
    """

    C: Annotated[float, Gt(0)] | None = None

    def __call__(self, frozen: Frozen) -> Score:
        """Top-1 of the best block on the test images; that of each block, counted from 1, is in the details."""
        train, test = frozen.labelled("train", "layers"), frozen.labelled("test", "layers")
        blocks = []
        with Progress("linear probes of blocks", train.features.shape[1]) as progress:
            for block in range(train.features.shape[1]):
                features = train.features[:, block].to(frozen.device)
                fitted = fit_best(features, train.labels.to(frozen.device), self.C)
                score = top1(fitted.predict(test.features[:, block]), test.labels)
                blocks.append({"top1": score, "C": fitted.C, "held_out_top1": fitted.held_out_top1})
                progress.advance(1)
        best = max(range(len(blocks)), key=lambda block: blocks[block]["held_out_top1"])
        each = " ".join(f"{found['top1']:.1f}" for found in blocks)
        note = f"block {best + 1} of {len(blocks)} is best on held-out images; all: {each}"
        return Score(blocks[best]["top1"], note, {"best_block": best + 1, "blocks": blocks})
