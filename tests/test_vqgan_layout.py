"""Published image tokenizers: their authors' names and shapes, each value where it belongs, read back as a tokenizer."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import mimkit
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.saved.tokenizer import load_tokenizer
from mimkit.weight_files import read_weights
from mimkit.weights import importing
from mimkit.weights.official import load_official
from mimkit.weights.published import known_layouts, recognise
from tests.published import Shapes, layer, norm, tensors
from tests.vqgan import small


def conv(name: str, out: int, into: int, side: int, bias: bool = True) -> Shapes:
    return layer(name, out, into, side, side) if bias else {f"{name}.weight": (out, into, side, side)}


def block(name: str, into: int, out: int, plain: bool) -> Shapes:
    shapes = norm(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into, 3, plain)
    shapes |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out, 3, plain)
    return shapes | (conv(f"{name}.nin_shortcut", out, into if plain else out, 1, plain) if into != out else {})


def attention(name: str, width: int) -> Shapes:
    shapes = norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.{part}", width, width, 1)
    return shapes


def middle(name: str, width: int, plain: bool) -> Shapes:
    shapes = block(f"{name}.mid.block_1", width, width, plain) | block(f"{name}.mid.block_2", width, width, plain)
    return shapes | (attention(f"{name}.mid.attn_1", width) if plain else {})


def vqgan(ch=128, mult=(1, 1, 2, 2, 4), blocks=2, z=256, dim=256, codes=1024, plain=True, training=True) -> Shapes:
    """VQGAN's state dict; `plain` False: that of MaskGIT's design as MAGE has it; `training`: with what it was trained by."""
    widths, last = [ch, *(ch * m for m in mult)], len(mult) - 1
    shapes = conv("encoder.conv_in", ch, 3, 3, plain)
    for level in range(len(mult)):
        name, into, out = f"encoder.down.{level}", widths[level], widths[level + 1]
        for number in range(blocks):
            shapes |= block(f"{name}.block.{number}", out if number else into, out, plain)
            shapes |= attention(f"{name}.attn.{number}", out) if plain and level == last else {}
        shapes |= conv(f"{name}.downsample.conv", out, out, 3) if plain and level != last else {}
    shapes |= middle("encoder", widths[-1], plain) | norm("encoder.norm_out", widths[-1])
    shapes |= conv("encoder.conv_out", z, widths[-1], 3 if plain else 1)

    shapes |= conv("decoder.conv_in", widths[-1], z, 3) | middle("decoder", widths[-1], plain)
    into = widths[-1]
    for level in reversed(range(len(mult))):
        name, out = f"decoder.up.{level}", widths[level + 1]
        for number in range(blocks + plain):
            shapes |= block(f"{name}.block.{number}", into, out, plain)
            shapes |= attention(f"{name}.attn.{number}", out) if plain and level == last else {}
            into = out
        shapes |= conv(f"{name}.upsample.conv", out, out, 3) if level else {}
    shapes |= norm("decoder.norm_out", into) | conv("decoder.conv_out", 3, into, 3)
    shapes |= {"quantize.embedding.weight": (codes, dim)}
    if plain:
        shapes |= conv("quant_conv", dim, z, 1) | conv("post_quant_conv", z, dim, 1)
    if plain and training:
        shapes |= conv("loss.discriminator.main.0", 64, 3, 4) | {
            "loss.perceptual_loss.scaling_layer.shift": (1, 3, 1, 1)
        }
    return shapes


SIZE: dict[str, Any] = {"ch": 32, "mult": (1, 1, 1), "blocks": 1, "z": 8, "codes": 16}
CASES = {
    "VQGAN tokenizer": (vqgan(**SIZE, dim=5), {}),
    "MaskGIT's VQGAN tokenizer (MAGE's)": (vqgan(**SIZE, dim=8, plain=False), {"style": "maskgit", "code_dim": 8}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_finds_its_place(name: str) -> None:
    shapes, options = CASES[name]
    state, into = tensors(shapes), small(**options)
    report = load_official(into, state)
    assert report.layout == name and report.absent == ("head.counts",)
    assert all(left.startswith("loss.") for left in report.left_over)
    encoder, head = into.encoder.timm_model.state_dict(), into.objectives["main"].head.state_dict()  # type: ignore
    for theirs, tensor in state.items():
        part, _, rest = theirs.partition(".")
        if part == "loss":
            continue
        there = {"encoder": encoder, "decoder": head, "quantize": head}.get(part, head)
        ours = {"encoder": rest, "quantize": "codebook.weight"}.get(part, theirs)
        assert torch.equal(there[ours], tensor), theirs
    assert [layout.name for layout in known_layouts() if layout.recognises(recognise(state).theirs)] == [name]
    encoder_alone = small(**options).encoder
    load_official(encoder_alone, state)
    assert torch.equal(encoder_alone.timm_model.conv_in.weight, state["encoder.conv_in.weight"])


@pytest.mark.parametrize(
    ("recipe", "shapes", "counts"),
    [("vqgan_f16", vqgan(), (144, 194)), ("vqgan_maskgit", vqgan(plain=False), (79, 88))],
)
def test_the_published_sizes_fit_the_papers_recipes(recipe: str, shapes: Shapes, counts: tuple[int, int]) -> None:
    """Numbers of tensors as counted in the authors' classes; without memory for them."""
    assert tuple(sum(name.startswith(part) for name in shapes) for part in ("encoder.", "decoder.")) == counts
    with torch.device("meta"):
        weights = recognise({name: torch.empty(shape) for name, shape in shapes.items()})
        report = load_official(importing._model(load_recipe(f"imagenet/{recipe}"), weights), weights)
    assert report.absent == ("head.counts",)


def test_an_imported_file_is_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning writes it, with the class of a callback as a key; then it is the target of another recipe."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    state = tensors(vqgan(ch=32, mult=(1, 1, 2), blocks=1, z=64, dim=32, codes=512))
    with monkeypatch.context() as written_there:
        for package in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            written_there.setitem(sys.modules, package, types.ModuleType(package))
        written_there.setattr(sys.modules[name], "ModelCheckpoint", callback, raising=False)
        torch.save({"callbacks": {callback: {}}, "state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    assert read_weights(tmp_path / "last.ckpt").keys() == state.keys()
    text = importing.import_weights(tmp_path / "last.ckpt", "vqgan", tmp_path / "out")
    assert "its codes are a target" in text
    encoder, head = load_tokenizer(tmp_path / "out")
    assert torch.equal(head.codebook.weight, state["quantize.embedding.weight"])  # type: ignore[attr-defined]
    assert head.codes(encoder(torch.rand(2, 3, 32, 32))).shape == (2, 64)
    model = mimkit.build("mae", "target=vq", f"target.checkpoint={tmp_path / 'out'}")
    assert torch.isfinite(model(torch.rand(2, 3, 32, 32)).loss)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match=r"head\.codebook\.weight \(16, 5\) there and \(16, 8\) here"):
        load_official(small(code_dim=8), tensors(CASES["VQGAN tokenizer"][0]))
    with pytest.raises(UserError, match="does not fit the model"):
        load_official(small(), tensors(CASES["MaskGIT's VQGAN tokenizer (MAGE's)"][0]))
