"""Frozen models as targets: what a teacher reads, where it computes, what it remembers, how its weights are found.

Its resolution is the encoder's grid times its own patch size, so that its features lie on the encoder's places: nothing
but the image is resized (MaskDistill, arXiv 2210.10615; EVA, arXiv 2211.07636).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.types import Images, Size, Standardize, Target, Wanted, as_float

CACHE_BYTES = 8 * 2**30
HUB_TIMEOUT = 5  # seconds


class Teacher(Target):
    """A frozen model as a target. A subclass builds the model and writes `encode`.

    in_chans: channels of the images; one is repeated, other numbers than the model's are refused.
    input_size: rows and columns that the model reads; images of another size are resized (bicubic, antialiased).
    mean, std: what the model was trained with, per channel in [0, 1] units.
    cache: whether each image's result is kept and given again; see `Cache`.
    model_chans: channels that the model reads.
    """

    def __init__(
        self,
        in_chans: int,
        input_size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        cache: bool,
        model_chans: int = 3,
    ):
        super().__init__()
        if in_chans not in (1, model_chans):
            raise UserError(
                f"the target's model reads {model_chans} channels (or 1, repeated), encoder.in_chans={in_chans}: "
                "take a target made of the images themselves, such as norm_pixels"
            )
        self.input_size, self.model_chans = input_size, model_chans
        self.standardize = Standardize(model_chans, mean, std)
        self.cache = Cache() if cache else None

    def encode(self, images: Float[Tensor, "B C H W"]) -> Wanted:
        """What the model gives for standardised images of `input_size`, for all places of the encoder's grid."""
        raise NotImplementedError

    def forward(self, images: Images) -> Wanted:
        """`encode` of the images, in float32: computed in it on a CPU, under the surrounding autocast on a GPU."""
        return self.cache.recall(images, self._teach) if self.cache else self._teach(images)

    def _teach(self, images: Images) -> Wanted:
        pixels = as_float(images)
        if tuple(pixels.shape[-2:]) != self.input_size:
            pixels = F.interpolate(pixels, self.input_size, mode="bicubic", antialias=True).clamp(0, 1)
        with torch.autocast("cpu", enabled=False):
            wanted = self.encode(self.standardize(pixels.expand(-1, self.model_chans, -1, -1)))
        return Wanted(**{name: x.float() if x.is_floating_point() else x for name, x in _parts(wanted).items()})


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
            parts = {name: x.detach().cpu() for name, x in _parts(teach(images[list(unseen.values())])).items()}
            taught = {key: {name: x[i] for name, x in parts.items()} for i, key in enumerate(unseen)}
            needed = sum(x.nbytes for x in parts.values())
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


def class_attention(
    tokens: Float[Tensor, "B N D"],
    weight: Float[Tensor, "qkv D"],
    bias: Float[Tensor, " qkv"] | None,
    num_heads: int,
    num_prefix_tokens: int = 1,
    norms: tuple[nn.Module, nn.Module] | None = None,
) -> Float[Tensor, "B L"]:
    """How much the class token looks at each place: softmax over all tokens, mean over the heads, prefix tokens cut off.

    The rows are not brought to sum 1 again. Source: MILAN (arXiv 2208.06049).

    tokens: what the attention reads. weight, bias: of its fused query, key and value. norms: of queries and keys.
    """
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    with torch.autocast(tokens.device.type, enabled=False):  # few products, and an exponential follows
        reads = zip((tokens[:, :1].float(), tokens.float()), weight.chunk(3), biases, strict=False)
        query, key = (rearrange(F.linear(x, w, b), "b n (h d) -> b h n d", h=num_heads) for x, w, b in reads)
        if norms:
            query, key = norms[0](query), norms[1](key)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(-1).mean(1)[:, 0, num_prefix_tokens:]


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the module is given first at each call, as long as the context lasts."""
    seen: list[Tensor] = []
    with module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        yield seen


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Weights drawn inside are the same at every build, and the generator is afterwards as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


@contextmanager
def published_weights(name: str, instead: str) -> Iterator[None]:
    """Around what may download. Without a network the local cache is looked through at once, without retries.

    Raises UserError, saying what to pass `instead`, where the weights cannot be had.
    """
    from huggingface_hub import constants, get_session

    offline = constants.HF_HUB_OFFLINE
    try:
        if not offline:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # whatever its HTTP library raises: the hub cannot be reached
        constants.HF_HUB_OFFLINE = True
    reached = not constants.HF_HUB_OFFLINE
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error) if reached else "neither in the local cache nor to be downloaded: no network"
        raise UserError(f"weights of {name}: {reason}; pass {instead}") from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def one_line(error: Exception) -> str:
    """What an exception says, on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


def _parts(wanted: Wanted) -> dict[str, Tensor]:
    return {name: value for name, value in vars(wanted).items() if value is not None}
