"""What a frozen teacher said of an image, kept for when the same image comes again."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from mimkit.types import Images, Wanted

CACHE_BYTES = 8 * 2**30


class Cache:
    """Results by the content of the image: an augmented image is another one, so what is given is never wrong.

    It lives on the CPU for as long as the process, and takes up no more images when it holds `limit` bytes: later ones
    go through the model each time. A kept result is given bit for bit; the model may round its last bit otherwise in
    a batch of other images.
    """

    def __init__(self, limit: int = CACHE_BYTES):
        self.rows: dict[tuple[int, ...], dict[str, Tensor]] = {}
        self.room = limit
        self._factors: Int[Tensor, "2 N"] | None = None

    def recall(self, images: Images, teach: Callable[[Images], Wanted]) -> Wanted:
        """What `teach` gives for the images; it is asked for those only that are not here yet."""
        keys = self.keys(images)
        unseen = {key: number for number, key in enumerate(keys) if key not in self.rows}
        taught: dict[tuple[int, ...], dict[str, Tensor]] = {}
        if unseen:
            told = {name: x.detach().cpu() for name, x in parts(teach(images[list(unseen.values())])).items()}
            taught = {key: {name: x[i] for name, x in told.items()} for i, key in enumerate(unseen)}
            needed = sum(x.nbytes for x in told.values())
            if needed <= self.room:
                self.room -= needed
                self.rows |= taught
        found = [taught.get(key) or self.rows[key] for key in keys]
        return Wanted(**{name: torch.stack([row[name] for row in found]).to(images.device) for name in found[0]})

    def keys(self, images: Images) -> list[tuple[int, ...]]:
        """128 bits of each image's bytes, hashed on its device: two sums of 32-bit words times odd 64-bit factors."""
        raw = images.flatten(1).contiguous().view(torch.uint8)
        words = F.pad(raw, (0, -raw.shape[1] % 4)).view(torch.int32).long()  # short words: differences keep low bits
        if self._factors is None or self._factors.shape[1] != words.shape[1] or self._factors.device != words.device:
            generator = torch.Generator().manual_seed(0)
            factors = torch.randint(-(2**63), 2**63 - 1, (2, words.shape[1]), generator=generator) | 1
            self._factors = factors.to(words.device)
        return [tuple(key) for key in torch.stack([(words * row).sum(1) for row in self._factors], 1).tolist()]


def parts(wanted: Wanted) -> dict[str, Tensor]:
    """What is there of values, cls and saliency, by name."""
    return {name: value for name, value in vars(wanted).items() if value is not None}
