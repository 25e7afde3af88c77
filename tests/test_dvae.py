"""DALL-E's discrete VAE as a target: its logits step by step in float64, its file, the view that it reads."""

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mimkit.targets.dvae import DVAE
from safetensors.torch import save_file
from torch import Tensor

import mimkit
from mimkit.errors import UserError
from mimkit.teachers.dvae import Encoder

CODES, WIDTH = 12, 8


def published(codes: int = CODES, width: int = WIDTH, chans: int = 3) -> dict[str, Tensor]:
    """Random weights by OpenAI's names, in their shapes and with their initial scale."""
    generator, widths = torch.Generator().manual_seed(3), [width, width, 2 * width, 4 * width, 8 * width]
    shapes = {"input": (width, chans, 7), "output.conv": (codes, 8 * width, 1)}
    for group in range(1, 5):
        for block in (1, 2):
            name, into, out = f"group_{group}.block_{block}", widths[group - (block == 1)], widths[group]
            sides = ((out // 4, into, 3), (out // 4, out // 4, 3), (out // 4, out // 4, 3), (out, out // 4, 1))
            shapes |= {f"{name}.res_path.conv_{number}": shape for number, shape in enumerate(sides, start=1)}
            shapes |= {f"{name}.id_path": (out, into, 1)} if into != out else {}
    found = {}
    for name, (out, into, side) in shapes.items():
        scale = (into * side**2) ** -0.5
        found[f"blocks.{name}.w"] = torch.randn(out, into, side, side, generator=generator) * scale
        found[f"blocks.{name}.b"] = torch.randn(out, generator=generator) * 0.3
    return found


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(published(), tmp_path / "dalle.safetensors")
    return tmp_path / "dalle.safetensors"


def target(weights: Path, **more) -> DVAE:
    return DVAE(**{"in_chans": 3, "grid": (2, 3), "weights": str(weights), **more})


def logits_of(images: Tensor, w: dict[str, Tensor]) -> Tensor:
    """The network from its description, in float64."""
    w = {name: x.double() for name, x in w.items()}

    def conv(x: Tensor, name: str) -> Tensor:
        kernel = w[f"blocks.{name}.w"]
        return F.conv2d(x, kernel, w[f"blocks.{name}.b"], padding=(kernel.shape[-1] - 1) // 2)

    x = conv(0.8 * images.double() + 0.1, "input")
    for group in range(1, 5):
        for block in (1, 2):
            name, path = f"group_{group}.block_{block}", x
            for number in (1, 2, 3, 4):
                path = conv(path.relu(), f"{name}.res_path.conv_{number}")
            x = (conv(x, f"{name}.id_path") if f"blocks.{name}.id_path.w" in w else x) + path / 64
        x = F.max_pool2d(x, 2) if group < 4 else x
    return conv(x.relu(), "output.conv")


def test_codes_and_logits_by_hand(weights):
    """Floats and bytes, oblong images; the codes in raster order."""
    ours = target(weights)
    images = torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    wanted = logits_of(images.double() / 255, published())
    logits = ours.encoder(ours.standardize(images))
    assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max()
    codes = wanted.argmax(1).view(4, 6)
    assert len(codes.unique()) > 1
    for form in (images, images.float() / 255):
        assert torch.equal(ours(form).values, codes)
    assert (ours.vocab_size, ours.dim, ours.normalizer, ours.loss) == (CODES, None, "none", "cross_entropy")


def test_under_autocast_the_codes_are_those_of_float32(weights):
    ours, images = target(weights), torch.rand(4, 3, 16, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(images).values, logits_of(images, published()).argmax(1).flatten(1))


def test_the_published_encoder_has_its_layout():
    """Against the names and shapes of OpenAI's file: 53.8 M numbers."""
    with torch.device("meta"):
        ours = Encoder().state_dict()
        wanted = {
            name.removesuffix(".w").removesuffix(".b") + (".weight" if name.endswith("w") else ".bias"): x.shape
            for name, x in published(8192, 256).items()
        }
    assert {name: x.shape for name, x in ours.items()} == wanted
    assert ours["blocks.group_4.block_2.res_path.conv_4.weight"].shape == (2048, 512, 1, 1)


def test_it_is_trained_on_through_a_view_of_its_size(weights):
    """A recipe with patches of 4 px and a view of 8 px a place; the codes are of that view."""
    tree = {
        "method": "beit", "image_size": [8, 12], "optim": {"lr": 1e-3}, "train": {"epochs": 1},
        "encoder": {"name": "beit", "embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4},
        "mask": {"name": "random", "ratio": 0.5, "feed": "all"}, "head": "linear",
        "target": {"name": "dvae", "weights": str(weights), "view": "tokens"},
        "data": {"name": "shapes", "views": {"tokens": {"image_size": [16, 24]}}},
    }  # fmt: skip
    model = mimkit.build(tree)
    images = torch.rand(2, 3, 8, 12)
    out = model(images)
    codes = logits_of(model.views(images)["tokens"], published()).argmax(1).flatten(1)
    assert torch.equal(out.target, codes[out.mask.hidden].view(out.target.shape))
    assert torch.isfinite(out.loss) and out.prediction.shape[-1] == CODES


@pytest.mark.parametrize(
    ("view", "wanted"),
    [
        (
            "image",
            r"the view 'image' has 8x12: set data\.views=\{tokens: \{image_size: \[16,24\]\}\} and target\.view=t",
        ),
        ("small", r"reads 16x24 pixels .* 'small' has 8x12: set data\.views=\{small: \{image_size: \[16,24\]\}\}"),
    ],
)
def test_a_view_of_another_size_is_refused(weights, view, wanted):
    with pytest.raises(UserError, match=wanted) as refusal:
        target(weights, view=view)(torch.rand(2, 3, 8, 12))
    assert "\n" not in str(refusal.value)


def test_pickled_modules_are_not_opened(tmp_path):
    """Nothing of the file runs, and the message says how to convert it."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "encoder.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"save its state_dict\(\) with safetensors\.torch\.save_file$") as refusal:
        target(tmp_path / "encoder.pkl")
    assert "\n" not in str(refusal.value) and not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda w: {}, r"no encoder of DALL-E's discrete VAE|no state dict"),
        (lambda w: {"blocks.input.w": w["blocks.input.w"]}, "no encoder of DALL-E's discrete VAE"),
        (lambda w: w | {"blocks.output.conv.b": torch.zeros(3)}, r"'blocks\.output\.conv\.bias' is \(3,\) there and \(12,\)"),
        (lambda w: w | {"decoder.w": torch.zeros(3)}, r"'decoder\.weight' is \(3,\) there and absent"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, change, wanted):
    save_file(change(published()), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=wanted) as refusal:
        target(tmp_path / "other.safetensors")
    assert "\n" not in str(refusal.value)


def test_a_missing_file_and_other_channels_are_refused(weights):
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such file"):
        target("nowhere.safetensors")
    with pytest.raises(UserError, match=r"reads 3 channels \(or 1, repeated\), encoder\.in_chans=4"):
        target(weights, in_chans=4)
    assert target(weights, in_chans=1)(torch.rand(2, 1, 16, 24)).values.shape == (2, 6)
