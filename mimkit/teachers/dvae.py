"""The encoder of DALL-E's discrete VAE, from its weights in a safetensors file. Source: DALL-E (arXiv 2102.12092, A.1)."""

import re
from collections import OrderedDict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.weight_files import fill, read_weights

STRIDE = 8  # pixels along each side of what one code stands for
GROUPS = 4  # of blocks; each further one has half the resolution and twice the width
BLOCKS = 2  # of a group


class Encoder(nn.Module):
    """Images into the logits of their codes: (B, vocab_size, H / 8, W / 8).

    width: channels of the first group. in_chans: of the images.
    """

    def __init__(self, vocab_size: int = 8192, width: int = 256, in_chans: int = 3):
        super().__init__()
        layers = OrderedDict[str, nn.Module](input=_conv(in_chans, width, 7))
        widths = [width, *(width * 2**group for group in range(GROUPS))]
        for group in range(GROUPS):
            layers[f"group_{group + 1}"] = _group(widths[group], widths[group + 1], pool=group + 1 < GROUPS)
        last = OrderedDict[str, nn.Module](relu=nn.ReLU(), conv=_conv(widths[-1], vocab_size, 1))
        layers["output"] = nn.Sequential(last)
        self.blocks = nn.Sequential(layers)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K h w"]:
        """Logits in float32; on a GPU all convolutions but the last are in half precision, as the authors'."""
        device = images.device.type
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            features = self.blocks[:-1](images)
        with torch.autocast(device, enabled=False):
            return self.blocks[-1](features.float())


def load_encoder(path: Path) -> Encoder:
    """The encoder of a safetensors file with OpenAI's names, as wide as the file says.

    Raises UserError where the file is another kind, missing or damaged, or where names or shapes are others.
    """
    if path.suffix != ".safetensors":
        raise UserError(
            f"target.weights={path}: a safetensors file is read, and OpenAI's encoder.pkl is a pickled module, which runs "
            "code: torch.load it where you trust it, and save its state_dict() with safetensors.torch.save_file"
        )
    tensors = {re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name)): x for name, x in read_weights(path).items()}
    first, last = (tensors.get(f"blocks.{name}.weight") for name in ("input", "output.conv"))
    if first is None or last is None or first.ndim != 4 or len(first) % 2:
        raise UserError(f"weights {path}: no encoder of DALL-E's discrete VAE; its names begin with blocks.input.w")
    with torch.device("meta"):
        encoder = Encoder(len(last), len(first), first.shape[1])
    fill(encoder.to_empty(device="cpu"), tensors, str(path), "the encoder of DALL-E's discrete VAE")
    return encoder


class _Block(nn.Module):
    """A residual block with a bottleneck of a quarter of its width."""

    def __init__(self, into: int, out: int):
        super().__init__()
        hidden, layers = out // 4, OrderedDict[str, nn.Module]()
        shapes = ((into, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, out, 1))
        for number, shape in enumerate(shapes, start=1):
            layers |= {f"relu_{number}": nn.ReLU(), f"conv_{number}": _conv(*shape)}
        self.id_path = nn.Identity() if into == out else _conv(into, out, 1)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        return self.id_path(x) + self.res_path(x) / (GROUPS * BLOCKS) ** 2


def _group(into: int, out: int, pool: bool) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module](block_1=_Block(into, out))
    layers |= {f"block_{number}": _Block(out, out) for number in range(2, BLOCKS + 1)}
    return nn.Sequential(layers | ({"pool": nn.MaxPool2d(2)} if pool else {}))


def _conv(into: int, out: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, side, padding=side // 2)
