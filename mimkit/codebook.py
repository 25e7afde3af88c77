"""Parts of a quantizer: the nearest code, moving averages of the codes and their k-means start, codes out of use.

Vectors are (rows, d), codes (K, d). Where both are of unit length (`nearest`, `moved`, `kmeans`), the nearest code is
the one of largest cosine. Source: VQ-KD (BEiT v2, arXiv 2208.06366, section 3.1); k-means start and averages as in its
published code.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

SIMILARITIES = 2**24  # computed at once: 64 MiB of float32


def nearest(vectors: Float[Tensor, "rows d"], codes: Float[Tensor, "K d"]) -> Int[Tensor, "rows"]:
    """Index of the code of largest cosine, the first of equal ones; never in half precision."""
    with torch.autocast(vectors.device.type, enabled=False):
        chunks = vectors.split(max(1, SIMILARITIES // len(codes)))
        return torch.cat([(chunk @ codes.t()).argmax(dim=1) for chunk in chunks])


def nearest_l2(vectors: Float[Tensor, "rows d"], codes: Float[Tensor, "K d"]) -> Int[Tensor, "rows"]:
    """Index of the code of smallest Euclidean distance, the first of equal ones; never in half precision."""
    with torch.autocast(vectors.device.type, enabled=False):
        chunks = vectors.split(max(1, SIMILARITIES // len(codes)))
        lengths = codes.square().sum(1)
        return torch.cat([torch.addmm(lengths, chunk, codes.t(), alpha=-2).argmin(dim=1) for chunk in chunks])


def totals(
    vectors: Float[Tensor, "rows d"], index: Int[Tensor, "rows"], size: int, all_ranks: bool = False
) -> tuple[Float[Tensor, "K d"], Float[Tensor, "K"]]:
    """Sum and number of the vectors that fell to each of `size` codes, here or over `all_ranks`."""
    counted = F.pad(vectors, (0, 1), value=1.0)
    total = counted.new_zeros(size, counted.shape[1]).index_add_(0, index, counted)
    if all_ranks and _ranks() > 1:
        dist.all_reduce(total)
    return total[:, :-1], total[:, -1]


def moved(
    codes: Float[Tensor, "K d"], sums: Float[Tensor, "K d"], counts: Float[Tensor, "K"], decay: float
) -> Float[Tensor, "K d"]:
    """Codes moved towards the mean direction of their vectors, all by the same share, and brought back to unit length.

    Unlike the usual moving average of sums and counts, a code moves as far for one vector as for a thousand; one
    without vectors stays.
    """
    towards = F.normalize(sums, dim=1)
    return torch.where(counts[:, None] > 0, F.normalize(decay * codes + (1 - decay) * towards, dim=1), codes)


def kmeans(vectors: Float[Tensor, "rows d"], size: int, iterations: int = 10) -> Float[Tensor, "K d"]:
    """Cosine k-means from random rows; an empty cluster keeps its mean.

    Several ranks get the same codes: those of all their vectors, which rank 0 gathers (each rank has as many) and
    clusters.
    """
    if _ranks() > 1:
        parts = [torch.empty_like(vectors) for _ in range(_ranks())]
        dist.all_gather(parts, vectors.contiguous())
        vectors = torch.cat(parts)
    codes = random_rows(vectors, size)
    if _leads():
        for _ in range(iterations):
            codes = moved(codes, *totals(vectors, nearest(vectors, codes), size), decay=0.0)
    return from_first_rank(codes)


def random_rows(vectors: Float[Tensor, "rows d"], size: int) -> Float[Tensor, "K d"]:
    """`size` rows, no row twice if there are enough. Drawn on the CPU, so that they are the same on every device."""
    rows = len(vectors)
    index = torch.randperm(rows)[:size] if rows >= size else torch.randint(rows, (size,))
    return vectors[index.to(vectors.device, non_blocking=True)]


def in_use(counts: Float[Tensor, "K"]) -> Bool[Tensor, "K"]:
    """Whether a code's (moving) count of vectors is above a hundredth of the average code's."""
    return counts > counts.mean() / 100


def revive(codes: Float[Tensor, "K d"], counts: Float[Tensor, "K"], vectors: Float[Tensor, "rows d"]) -> None:
    """Let codes out of use become random vectors; they begin with the average count. Source: SoundStream (2107.03312)."""
    dead = ~in_use(counts)
    fresh = from_first_rank(random_rows(vectors, len(codes)))
    codes.copy_(torch.where(dead[:, None], fresh, codes))
    counts.copy_(torch.where(dead, counts.mean(), counts))


def from_first_rank(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The values of rank 0, written into those of the other ranks."""
    if _ranks() > 1:
        dist.broadcast(values, src=0)
    return values


def straight_through(vectors: Float[Tensor, "*any"], quantized: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The quantized vectors; their gradient goes to `vectors` as it is."""
    return vectors + (quantized - vectors).detach()


def perplexity(counts: Float[Tensor, "K"]) -> Float[Tensor, ""]:
    """exp(entropy) of a histogram: as many codes, evenly used, would be as hard to guess."""
    return torch.special.entr(counts / counts.sum()).sum().exp()


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _leads() -> bool:
    return _ranks() == 1 or dist.get_rank() == 0
