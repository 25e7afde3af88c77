"""MAGE's published files: names and shapes as its authors' class makes them, and where each tensor belongs."""

import re
import shutil
from math import prod

import pytest
import torch

import mimkit
from mimkit import strict_yaml
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.generate.painter import Painter, open_run
from mimkit.model import build_encoder, build_head
from mimkit.weights.importing import import_weights
from mimkit.weights.published import known_layouts, recognise
from tests.mage import CODES, COMMON, ENCODER, HEAD, mage, save_vqgan
from tests.published import layer, mae, norm, prefixed, tensors

TOKENIZER = {"ch": 128, "mult": (1, 1, 2, 2, 4), "blocks": 2, "dim": 256, "codes": 1024}
SMALL = {"ch": 32, "mult": (1, 1, 1), "blocks": 1, "dim": 8, "codes": CODES}
NET = "encoder.timm_model"


def residual(name, before, after):
    shapes = norm(f"{name}.norm1", before) | norm(f"{name}.norm2", after)
    shapes |= {f"{name}.conv1.weight": (after, before, 3, 3), f"{name}.conv2.weight": (after, after, 3, 3)}
    return shapes | ({f"{name}.nin_shortcut.weight": (after, after, 1, 1)} if before != after else {})


def coder(ch, mult, blocks, dim, up):
    """MaskGIT's encoder, or its decoder with the levels passed the other way round."""
    deepest, width, stages = ch * mult[-1], ch * mult[-1] if up else ch, "up" if up else "down"
    shapes = {"conv_in.weight": (deepest, dim, 3, 3) if up else (ch, 3, 3, 3)}
    shapes |= {"conv_in.bias": (deepest,)} if up else {}
    levels = list(enumerate(mult))
    for level, multiple in reversed(levels) if up else levels:
        for number in range(blocks):
            shapes |= residual(f"{stages}.{level}.block.{number}", width, ch * multiple)
            width = ch * multiple
        if up and level:
            shapes |= layer(f"up.{level}.upsample.conv", width, width, 3, 3)
    for block in ("block_1", "block_2"):
        shapes |= residual(f"mid.{block}", deepest, deepest)
    shapes |= norm("norm_out", width)
    return shapes | (layer("conv_out", 3, width, 3, 3) if up else layer("conv_out", dim, width, 1, 1))


def tokenizer_shapes(ch, mult, blocks, dim, codes):
    shapes = prefixed("encoder.", coder(ch, mult, blocks, dim, up=False))
    shapes |= prefixed("decoder.", coder(ch, mult, blocks, dim, up=True))
    return prefixed("vqgan.", shapes | {"quantize.embedding.weight": (codes, dim)})


def tokens_shapes(width, places, codes):
    shapes = {"word_embeddings.weight": (codes + 1001, width), "position_embeddings.weight": (places + 1, width)}
    shapes |= {"position_ids": (1, places + 1), **norm("LayerNorm", width)}
    return prefixed("token_emb.", shapes)


def mage_shapes(width, depth, decoder, decoder_depth, side, patch, codes):
    shapes = mae(width=width, depth=depth, decoder=decoder, decoder_depth=decoder_depth, side=side, patch=patch)
    shapes |= tokens_shapes(width, side**2, codes) | {"decoder_pos_embed_learned": (1, side**2 + 1, decoder)}
    mlm = layer("fc", width, decoder) | norm("ln", width) | {"bias": (1, 1, codes + 1001)}
    return shapes | prefixed("mlm_layer.", mlm)


TINY = {"width": 24, "depth": 2, "decoder": 16, "decoder_depth": 2, "side": 4, "patch": 4, "codes": CODES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_vqgan(tmp_path_factory.mktemp("tokenizer"))


def published(**more):
    state = tensors(mage_shapes(**TINY) | tokenizer_shapes(**SMALL) | more)
    return state | {"token_emb.position_ids": torch.arange(17)[None]}


def test_the_numbers_of_tensors():
    """As counted in the authors' class: 265 without the tokenizer, 168 in it."""
    base = {"width": 768, "depth": 12, "decoder": 768, "decoder_depth": 8, "side": 16, "patch": 16, "codes": 1024}
    assert len(mage_shapes(**base)) == 265 and len(tokenizer_shapes(**TOKENIZER)) == 168


def test_every_tensor_finds_its_place(folder):
    state, model = published(), mage(folder)
    report = mimkit.load_official(model, state)
    assert report.layout == "MAGE, encoder, decoder and tokenizer"
    ours = model.state_dict()
    words, rows = state["token_emb.word_embeddings.weight"], [*range(CODES), CODES + 76, CODES + 1000]
    assert torch.equal(ours[f"{NET}.code_embed.weight"], words[rows])
    assert torch.equal(ours[f"{NET}.pos_embed"][0], state["token_emb.position_embeddings.weight"])
    head = "objectives.main.head"
    assert torch.equal(ours[f"{head}.bias"], state["mlm_layer.bias"][0, 0, :CODES])
    for mine, theirs in {
        f"{NET}.embed_norm.bias": "token_emb.LayerNorm.bias",
        f"{NET}.blocks.1.attn.qkv.weight": "blocks.1.attn.qkv.weight",
        f"{NET}.norm.weight": "norm.weight",
        f"{NET}.tokenizer.encoder.timm_model.mid.block_2.conv1.weight": "vqgan.encoder.mid.block_2.conv1.weight",
        f"{NET}.tokenizer.head.decoder.up.1.upsample.conv.bias": "vqgan.decoder.up.1.upsample.conv.bias",
        f"{NET}.tokenizer.head.codebook.weight": "vqgan.quantize.embedding.weight",
        f"{head}.embed.weight": "decoder_embed.weight",
        f"{head}.pos_embed": "decoder_pos_embed_learned",
        f"{head}.blocks.1.mlp.fc2.bias": "decoder_blocks.1.mlp.fc2.bias",
        f"{head}.norm.weight": "decoder_norm.weight",
        f"{head}.predict.0.weight": "mlm_layer.fc.weight",
        f"{head}.predict.2.bias": "mlm_layer.ln.bias",
    }.items():
        assert torch.equal(ours[mine], state[theirs]), mine
    unused = r"token_emb.position_ids|cls_token|mask_token|pos_embed|decoder_pos_embed|(patch_embed|decoder_pred)\..+"
    assert all(re.fullmatch(unused, name) for name in report.left_over) and len(report.left_over) == 9
    assert report.absent == (f"{NET}.tokenizer.head.counts",)


def test_a_fine_tuned_file_fills_the_encoder(folder):
    shapes = {name: shape for name, shape in mage_shapes(**TINY).items()
              if not name.startswith(("decoder", "mlm", "norm", "mask"))}  # fmt: skip
    state = tensors(shapes | tokenizer_shapes(**SMALL) | norm("fc_norm", 24) | layer("head", 10, 24))
    model = mage(folder)
    assert mimkit.load_official(model.encoder, state).layout == "MAGE, fine-tuned (no final norm)"
    assert torch.equal(model.encoder.timm_model.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_one_layout_recognises_them(fine_tuned):
    state = published(**norm("fc_norm", 24)) if fine_tuned else published()
    for name in [name for name in state if fine_tuned and name.startswith(("decoder", "mlm", "norm"))]:
        del state[name]
    theirs = recognise(state).theirs
    found = [layout.name for layout in known_layouts() if layout.recognises(theirs)]
    assert len(found) == 1 and found[0].startswith("MAGE")


def test_another_vocabulary_is_refused(folder):
    state = published(**mage_shapes(**TINY | {"codes": CODES + 4}))
    with pytest.raises(
        UserError, match=r"of another shape: encoder\.timm_model\.code_embed\.weight \(1017, 24\) there and"
    ):
        mimkit.load_official(mage(folder), state)


@pytest.mark.parametrize(("size", "width", "depth"), [("base", 768, 12), ("large", 1024, 24)])
def test_the_papers_models_have_the_authors_shapes(size, width, depth):
    """Trainable numbers: those of the authors' class without what it does not use: MAE's left-overs and 999 classes."""
    tokenizer = load_recipe("imagenet/vqgan_maskgit", ["data=shapes"])
    told = {
        "format": 1, "out_dim": 768, "image_size": [256, 256],
        "encoder": vars(tokenizer.encoder), "head": vars(tokenizer.objectives["main"].head),
    }  # fmt: skip
    recipe = load_recipe(f"imagenet/mage_vit_{size}", ["data=shapes"])
    recipe.encoder.options["tokenizer"] = told
    with torch.device("meta"):
        masking, encoder = build_encoder(recipe)
        head = build_head(recipe.objectives["main"].head, encoder, masking.feed, 1024)
    shapes = mage_shapes(width, depth, width, 8, 16, 16, 1024)
    unused = r"token_emb.position_ids|cls_token|mask_token|pos_embed|decoder_pos_embed|(patch_embed|decoder_pred)\..+"
    wanted = sum(prod(shape) for name, shape in shapes.items() if not re.fullmatch(unused, name))
    trained = sum(p.numel() for part in (encoder, head) for p in part.parameters() if p.requires_grad)
    assert trained == wanted - 999 * width - 1001
    theirs = tokenizer_shapes(**TOKENIZER)
    ours = sum(p.numel() for p in encoder.tokenizer.parameters())
    assert ours == sum(map(prod, theirs.values())) and encoder.grid == (16, 16) and encoder.patch_size == 16


def test_import_of_the_authors_file(folder, tmp_path):
    """The tokenizer first, as its folder must be there; then the file, whose tokenizer takes its place."""
    state = published()
    torch.save({"model": state, "epoch": 1}, tmp_path / "mage.pth")
    tree = COMMON | {
        "encoder": ENCODER | {"tokenizer": "runs/vqgan-1"},
        "mask": "variable",
        "head": HEAD,
        "target": "codes",
    }
    (tmp_path / "recipe.yaml").write_text(strict_yaml.dump(tree))
    told = import_weights(
        tmp_path / "mage.pth", str(tmp_path / "recipe.yaml"), tmp_path / "out", [f"encoder.tokenizer={folder}"]
    )
    assert told.startswith(f"{tmp_path / 'out'}: load the encoder with mimkit.load") and "target=vq" not in told
    encoder = mimkit.load(tmp_path / "out")
    assert torch.equal(encoder.tokenizer.head.codebook.weight, state["vqgan.quantize.embedding.weight"])
    assert encoder(torch.rand(2, 3, 16, 16)).pooled.shape == (2, 24)


def test_the_authors_file_paints(folder, tmp_path):
    """With the very logits of a model that was filled in Python, its tokenizer's folder gone."""
    torch.save({"model": published()}, tmp_path / "mage.pth")
    tree = COMMON | {"encoder": ENCODER, "mask": "variable", "head": HEAD, "target": "codes"}
    (tmp_path / "recipe.yaml").write_text(strict_yaml.dump(tree))
    tokenizer = save_vqgan(tmp_path / "tokenizer")
    options = [f"encoder.tokenizer={tokenizer}"]
    import_weights(tmp_path / "mage.pth", str(tmp_path / "recipe.yaml"), tmp_path / "out", options)
    by_hand = Painter(mimkit.build(tmp_path / "recipe.yaml", *options))
    mimkit.load_official(by_hand.model, tmp_path / "mage.pth")
    shutil.rmtree(tokenizer)
    painter, name = open_run(tmp_path / "out")
    assert name == "step-00000000"
    codes, unknown = painter.blank(2)
    assert torch.equal(painter.logits(codes, unknown), by_hand.logits(codes, unknown))
