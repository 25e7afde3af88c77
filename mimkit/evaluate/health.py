"""Is the encoder learning, or collapsing? Figures that need no labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mimkit.evaluate.reconstruction import explained, reconstruct
from mimkit.model import Model
from mimkit.types import Images


@torch.no_grad()
def health(model: Model, images: Images, seed: int = 0) -> dict[str, float]:
    """Label-free figures of images (B, C, H, W), in eval mode; features are those of the full images.

    effective_rank: of the pooled features, see there; at most the number of images less one, and the width.
    patch_similarity: mean cosine between the patch tokens of an image; near 1 they no longer tell places apart.
    r2: share of the variance of the normalised target at the predicted places that the prediction explains; of a loss
        that compares directions, of the directions. For targets of codes instead code_accuracy, in percent.
    """
    found = reconstruct(model, images, seed)
    training = model.training
    features = model.encoder.eval()(images.to(found.images.device))
    model.encoder.train(training)
    told = {
        "effective_rank": effective_rank(features.pooled.float()),
        "patch_similarity": patch_similarity(features.tokens.float()),
    }
    predicted, wanted = found.prediction[found.mask.predicted], found.target[found.mask.predicted]
    if not wanted.is_floating_point():
        return told | {"code_accuracy": 100 * (predicted.argmax(-1) == wanted).float().mean().item()}
    wanted = found.objective.normalized(wanted)
    if found.objective.compare.direction_only:
        predicted, wanted = F.normalize(predicted, dim=-1), F.normalize(wanted, dim=-1)
    return told | {"r2": explained(predicted, wanted)}


def effective_rank(features: Float[Tensor, "N D"]) -> float:
    """exp of the entropy of the centred features' normalised singular values: along how many directions they spread.

    Source: Roy and Vetterli (EUSIPCO 2007); as a measure of encoders, RankMe (arXiv 2210.02885). 1 where all are equal.
    """
    values = torch.linalg.svdvals(features - features.mean(0))
    return torch.special.entr(values / values.sum().clamp_min(1e-12)).sum().exp().item()


def patch_similarity(tokens: Float[Tensor, "B L D"]) -> float:
    """Mean cosine over all pairs of different patch tokens of an image, mean over the images; 1 for a single token."""
    count = tokens.shape[1]
    if count == 1:
        return 1.0
    total = F.normalize(tokens, dim=-1).sum(1).square().sum(-1)  # over all pairs, each token with itself included
    return ((total - count) / (count * (count - 1))).mean().item()
