"""Every shipped recipe: the papers' numbers, parameters as published, and any target on any small recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mimkit
from mimkit import overrides, registry
from mimkit.draft import draft, load_recipe, shipped
from mimkit.errors import UserError
from mimkit.model import build_encoder, build_head
from mimkit.train.loop import train
from mimkit.train.optim import build_optimizer, schedule
from tests.test_dvae import published

PAPERS = [name.removeprefix("imagenet/") for name in shipped() if name.startswith("imagenet/")]
SMALL = [name for name in shipped() if "/" not in name]
WIDTHS = {"ViT-B-16": 512, "ViT-L-14": 768}  # of OpenAI's CLIPs, after the projection

# rate at its peak, at the end, at the first step; batch, epochs, warm-up, weight decay, betas, clipping; smallest crop, jitter
SETTINGS: dict[str, tuple[Any, ...]] = {
    "simmim_swin_base": (4e-4, 4e-5, 2e-6, 2048, 800, 10, 0.05, (0.9, 0.999), 5.0, 0.67, 0.0),
    "simmim_vit_base": (4e-4, 4e-5, 2e-6, 2048, 800, 10, 0.05, (0.9, 0.999), 5.0, 0.67, 0.0),
    "maskfeat_vit_base": (1.6e-3, 8e-6, 8e-6, 2048, 300, 30, 0.05, (0.9, 0.999), 0.02, 0.5, 0.0),
    "maskfeat_vit_large": (1.6e-3, 8e-6, 8e-6, 2048, 300, 30, 0.05, (0.9, 0.999), 0.02, 0.5, 0.0),
    "maskdistill_vit_base": (1.5e-3, 1e-5, 0.0, 2048, 300, 10, 0.05, (0.9, 0.999), 3.0, 0.2, 0.4),
    "milan_vit_base": (2.4e-3, 0.0, 0.0, 4096, 400, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "milan_vit_large": (2.4e-3, 0.0, 0.0, 4096, 400, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "vqkd_vit_base": (2e-4, 1e-5, 0.0, 512, 100, 10, 1e-4, (0.9, 0.99), None, 0.08, 0.0),
    "beit2_vit_base": (1.5e-3, 1e-5, 0.0, 2048, 1600, 10, 0.05, (0.9, 0.999), 3.0, 0.2, 0.4),
    "beit2_vit_large": (1.5e-3, 1e-5, 0.0, 2048, 1600, 10, 0.05, (0.9, 0.999), 3.0, 0.2, 0.4),
    "beit_vit_base": (1.5e-3, 1e-5, 0.0, 2048, 800, 10, 0.05, (0.9, 0.999), 3.0, 0.08, 0.4),
    "beit_vit_base_plain": (1.5e-3, 1e-5, 0.0, 2048, 800, 10, 0.05, (0.9, 0.999), 3.0, 0.08, 0.4),
    "beit_vit_large": (1.5e-3, 1e-5, 0.0, 2048, 800, 10, 0.05, (0.9, 0.999), 3.0, 0.08, 0.4),
    "peco_beit_vit_base": (1.5e-3, 1e-5, 0.0, 2048, 800, 10, 0.05, (0.9, 0.999), 3.0, 0.08, 0.4),
    "cae_vit_base": (1.5e-3, 1e-5, 0.0, 2048, 800, 20, 0.05, (0.9, 0.999), 3.0, 0.08, 0.0),
    "cae_vit_large": (1.5e-3, 1e-5, 0.0, 2048, 1600, 40, 0.05, (0.9, 0.999), 3.0, 0.08, 0.0),
    "eva_vit_giant": (1e-3, 1e-5, 0.0, 4096, 150, 2, 0.05, (0.9, 0.98), 3.0, 0.2, 0.0),
    "eva02_vit_base": (1.5e-3, 1e-5, 0.0, 2048, 150, 1, 0.05, (0.9, 0.98), 3.0, 0.2, 0.0),
    "eva02_vit_tiny": (3e-3, 1e-5, 0.0, 4000, 240, 1, 0.05, (0.9, 0.98), 3.0, 0.2, 0.0),
    "eva_l": (2.4e-3, 1e-5, 0.0, 4096, 150, 2, 0.05, (0.9, 0.95), 3.0, 0.2, 0.0),
    "crossmae_vit_small": (2.4e-3, 0.0, 0.0, 4096, 800, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "crossmae_vit_base": (2.4e-3, 0.0, 0.0, 4096, 800, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "crossmae_vit_large": (2.4e-3, 0.0, 0.0, 4096, 800, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "data2vec_vit_base": (2e-3, 1e-5, 0.0, 2048, 800, 10, 0.05, (0.9, 0.999), 3.0, 0.08, 0.4),
    "data2vec_vit_large": (1e-3, 1e-5, 0.0, 4096, 800, 80, 0.05, (0.9, 0.999), 3.0, 0.08, 0.4),
    "cmae_vit_base": (2.4e-3, 0.0, 2.4e-7, 4096, 1600, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "mage_vit_base": (2.4e-3, 0.0, 0.0, 4096, 1600, 40, 0.05, (0.9, 0.95), 3.0, 0.2, 0.0),
    "mage_vit_large": (2.4e-3, 0.0, 0.0, 4096, 1600, 40, 0.05, (0.9, 0.95), 3.0, 0.2, 0.0),
    "vqgan_f16": (5.4e-5, 5.4e-5, 5.4e-5, 12, 8, 0, 0.0, (0.5, 0.9), None, 1.0, 0.0),
    "vqgan_maskgit": (5.4e-5, 5.4e-5, 5.4e-5, 12, 8, 0, 0.0, (0.5, 0.9), None, 1.0, 0.0),
    "peco_f16": (5.4e-5, 5.4e-5, 5.4e-5, 12, 8, 0, 0.0, (0.5, 0.9), None, 1.0, 0.0),
    "mae_vit_base": (2.4e-3, 0.0, 0.0, 4096, 800, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "mae_vit_large": (2.4e-3, 0.0, 0.0, 4096, 800, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
    "mae_vit_huge": (2.4e-3, 0.0, 0.0, 4096, 800, 40, 0.05, (0.9, 0.95), None, 0.2, 0.0),
}


def paper(name: str) -> Any:
    return load_recipe(f"imagenet/{name}", ["data=shapes"])


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings(name: str) -> None:
    """As the authors state them for their batch, absolute."""
    recipe = paper(name)
    optim, run, batches = recipe.optim, recipe.train, recipe.batches
    rate = schedule(optim, run, batches.batch_size, steps_per_epoch=5)
    peak, last, first, batch, epochs, warmup, *rest = SETTINGS[name]
    assert (batches.batch_size, run.epochs, run.warmup_epochs) == (batch, epochs, warmup)
    found = [rate(step) for step in (5 * warmup, 5 * epochs, 0)]
    assert found == pytest.approx([peak, last, first], rel=1e-9, abs=1e-12)
    assert [
        optim.weight_decay, optim.betas, run.clip_grad, batches.crop_scale[0], batches.color_jitter
    ] == rest  # fmt: skip
    square = name in ("vqgan_f16", "vqgan_maskgit", "peco_f16")  # the whole image as it is
    frame = ((1.0, 1.0), 0.0) if square else ((3 / 4, 4 / 3), 0.5)
    assert (batches.crop_scale[1], batches.crop_ratio, batches.flip) == (1.0, *frame)


def plain_vit(width: int, depth: int, places: int, patch: int, learned: int, biases: int, scales: int) -> int:
    """Trainable numbers of a ViT counted from its layout: class token, `learned` positions, patch embedding, final norm;
    attention with `biases` of q, k and v, MLP of four times the width, two norms, `scales` layer scales.
    """
    block = 12 * width**2 + (biases + 1 + 4 + 1) * width + (4 + scales) * width
    return width * (1 + learned * (places + 1) + 3 * patch**2 + 1 + 2) + depth * block


def shared_table(side: int, heads: int) -> int:
    return ((2 * side - 1) ** 2 + 3) * heads


def transformer_decoder(encoder: int, width: int, depth: int, out: int) -> int:
    """Embedding, mask token, blocks, norm, prediction."""
    return (encoder + 1) * width + width + depth * (12 * width**2 + 13 * width) + 2 * width + (width + 1) * out


def regressor_and_decoder(width: int, depth: int, codes: int) -> int:
    """CAE's: mask token, `depth` blocks of each kind, two norms, prediction; a block of the regressor has two norms more."""
    block = 12 * width**2 + (2 + 1 + 4 + 1) * width + (4 + 2) * width
    return width + depth * (2 * block + 4 * width) + 4 * width + (width + 1) * codes


BASE_TABLE = shared_table(14, 12)
PARAMETERS = {
    "mae_vit_base": 111_655_680,  # these five: the authors' own models or logs
    "crossmae_vit_base": 127_034_268,
    "beit2_vit_base": 106_143_056,
    "eva_vit_giant": 1_012_229_632,
    "eva_l": 316_576_768,
    "beit_vit_base": plain_vit(768, 12, 196, 16, 0, 2, 2) + BASE_TABLE + 768 + 769 * 8192,
    "beit_vit_large": plain_vit(1024, 24, 196, 16, 0, 2, 2) + shared_table(14, 16) + 1024 + 1025 * 8192,
    "beit_vit_base_plain": plain_vit(768, 12, 196, 16, 1, 2, 0) + 768 + 769 * 8192,
    "cae_vit_base": plain_vit(768, 12, 196, 16, 0, 2, 2) + regressor_and_decoder(768, 4, 8192),
    "cae_vit_large": plain_vit(1024, 24, 196, 16, 0, 2, 2) + regressor_and_decoder(1024, 4, 8192),
    "cmae_vit_base": plain_vit(768, 12, 196, 16, 0, 3, 0) + transformer_decoder(768, 512, 8, 768),
    "mae_vit_large": plain_vit(1024, 24, 196, 16, 0, 3, 0) + transformer_decoder(1024, 512, 8, 768),
    "mae_vit_huge": plain_vit(1280, 32, 256, 14, 0, 3, 0) + transformer_decoder(1280, 512, 8, 588),
    "milan_vit_base": plain_vit(768, 12, 196, 16, 0, 3, 0) + transformer_decoder(768, 512, 8, 512),
    "milan_vit_large": plain_vit(1024, 24, 196, 16, 0, 3, 0) + transformer_decoder(1024, 512, 8, 512),
    "maskfeat_vit_base": plain_vit(768, 12, 196, 16, 1, 3, 0) + 768 + 769 * 108,
    "maskfeat_vit_large": plain_vit(1024, 24, 196, 16, 1, 3, 0) + 1024 + 1025 * 108,
    "simmim_vit_base": plain_vit(768, 12, 196, 16, 0, 2, 2) + BASE_TABLE + 768 + 769 * 768,
    "maskdistill_vit_base": plain_vit(768, 12, 196, 16, 0, 2, 2) + BASE_TABLE + 768 + 769 * 768,
    "data2vec_vit_base": plain_vit(768, 12, 196, 16, 0, 2, 2) + BASE_TABLE + 768 + 769 * 768,
    "data2vec_vit_large": plain_vit(1024, 24, 196, 16, 0, 2, 2) + shared_table(14, 16) + 1024 + 1025 * 1024,
}


def built(name: str, width: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Encoder and head of a paper's recipe for a target of that width, without memory."""
    recipe = paper(name)
    choice = recipe.objectives["main"].head
    with torch.device("meta"):
        masking, encoder = build_encoder(recipe)
    with torch.device(
        "cpu" if choice.name == "aggregation" else "meta"
    ):  # which computes its rates of stochastic depth
        return encoder, build_head(choice, encoder, masking.feed, width)


def trainable(*parts: torch.nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)


def width_of(name: str) -> int:
    """Of the authors' target."""
    target, encoder = paper(name).objectives["main"].target, paper(name).encoder.options
    if target.name == "clip":
        return WIDTHS[target.options["model"]] if target.options["proj"] else 768
    codes_or_features = {"timm": 1024, "vq": 8192, "dvae": 8192, "hog": 108}
    if target.name == "ema":
        return 1024 if encoder["size"] == "large" else 768
    return codes_or_features.get(target.name, 3 * encoder["patch_size"] ** 2)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_the_authors(name: str) -> None:
    assert trainable(*built(name, width_of(name))) == PARAMETERS[name]


def test_simmims_swin_is_as_large_as_that_of_transformers() -> None:
    from transformers import SwinConfig, SwinForMaskedImageModeling

    config = SwinConfig(
        image_size=192, patch_size=4, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=6,
        encoder_stride=32,
    )  # fmt: skip
    with torch.device("meta"):
        other = SwinForMaskedImageModeling(config)
    assert trainable(*built("simmim_swin_base", 48)) == trainable(other)


def test_the_tokenizer_has_its_layout() -> None:
    """VQ-KD: encoder and decoder are ViTs with learned positions and q and v biases; the codebook is no parameter."""
    encoder, head = built("vqkd_vit_base", 512)
    assert trainable(encoder) == plain_vit(768, 12, 196, 16, 1, 2, 0) + 768  # and our mask token, which nothing uses
    decoder = plain_vit(768, 3, 196, 1, 1, 2, 0) + (32 - 3) * 768  # 32 channels a place
    assert trainable(head) == (769 * 768 + 769 * 32) + decoder + (769 * 768 + 769 * 512)


def test_what_does_not_decay_where_the_authors_say_so() -> None:
    """BEiT v2: tokens' class and nothing else; SimMIM's Swin: the mask token; MaskFeat and CAE: all decay."""
    kept: dict[str, set[str]] = {}
    for name in ("beit2_vit_base", "simmim_swin_base", "maskfeat_vit_base", "cae_vit_base", "vqkd_vit_base"):
        both = torch.nn.ModuleDict(dict(zip(("encoder", "head"), built(name, 64))))
        names = {id(p): key for key, p in both.named_parameters()}
        group = build_optimizer(both, paper(name).optim).param_groups[0]["params"]
        kept[name] = {names[id(p)].removeprefix("encoder.") for p in group if p.ndim > 1}
    assert kept == {
        "beit2_vit_base": {"timm_model.cls_token"},
        "simmim_swin_base": {"mask_token"},
        "maskfeat_vit_base": set(),
        "cae_vit_base": set(),
        "vqkd_vit_base": {
            "timm_model.cls_token", "timm_model.pos_embed", "head.decoder.cls_token", "head.decoder.pos_embed"
        },
    }  # fmt: skip


TARGETS = registry.names("target")  # before a test brings a plug-in's
SHRUNK = ["image_size=16", "data.num_images=16", "data.num_test=4", "data.batch_size=8", "train.device=cpu"]
REFUSED = {("simmim", "ema"): "needs a token for each place"} | {
    ("milan", target): "follows a target's saliency"
    for target in ("pixels", "norm_pixels", "hog", "timm", "vq", "dvae", "ema")
}
REFUSED |= {(name, "momentum"): "target 'momentum'" for name in SMALL}
REFUSED |= {(name, "codes"): "this one reads pixels" for name in SMALL}
REFUSED |= {(name, "twin"): "compares two crops of each image" for name in SMALL}
for name in ("vqgan", "peco"):
    REFUSED |= {(name, target): "head 'vq_decoder' paints pixels" for target in ("clip", "timm", "vq", "dvae", "hog")}
    REFUSED[name, "ema"] = r"gives no outputs of its blocks: set target\.layers=0"
READ_CODES = ("mage", "mage_c")
for name in READ_CODES:
    REFUSED |= {(name, target): "predicts the codes that the encoder reads" for target in {*TARGETS} - {"momentum"}}
    del REFUSED[name, "codes"], REFUSED[name, "vq"]
REFUSED["mage", "twin"] = "compares two crops of each image"


@pytest.fixture(scope="module")
def tokenizer(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the small tokenizer after two steps, and beside it DALL-E's."""
    folder = tmp_path_factory.mktemp("runs") / "vqkd-1"
    short = ["train.max_steps=2", "probe.every=0", f"target.model=local-dir:{clip_folder}"]
    train(load_recipe("vqkd", ["data=shapes", *SHRUNK, *short]), folder)
    save_file(published(), folder / "dalle.safetensors")
    return folder


def swapped(target: str, clip_folder: Path, tokenizer: Path) -> list[str]:
    """The overrides that a user would give."""
    needed = {
        "clip": [f"target.model=local-dir:{clip_folder}"],
        "timm": ["target.model=test_vit", "target.pretrained=false"],
        "vq": [f"target.checkpoint={tokenizer}"],
        "dvae": [
            f"target.weights={tokenizer / 'dalle.safetensors'}", "target.view=tokens", "data.views.tokens.image_size=32"
        ],
    }  # fmt: skip
    return [f"target={target}", *needed.get(target, [])]


def try_step(recipe: Any) -> None:
    """A finite loss and gradients, or UserError."""
    torch.manual_seed(0)
    model = mimkit.build(recipe)
    out = model(torch.rand(4, 3, 16, 16))
    assert torch.isfinite(out.loss) and out.prediction.shape[:-1] == out.target.shape[: out.prediction.ndim - 1]
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert any(p.grad is not None for p in model.encoder.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_every_small_recipe_takes_every_target(name: str, clip_folder: Path, tokenizer: Path) -> None:
    """One word swaps it: head, normalizer and loss follow. Otherwise one line says why not."""
    own = overrides.section(draft(name).tree, ("target",))
    own = own if isinstance(own, str) else own["name"]
    more = [f"encoder.tokenizer={tokenizer}"] if name in READ_CODES else []
    more += [f"objectives.perceptual.loss.model={tokenizer}"] if name == "peco" else []
    for target in TARGETS:
        recipe = load_recipe(name, ["data=shapes", *SHRUNK, *more, *swapped(target, clip_folder, tokenizer)])
        main = recipe.objectives["main"]
        if target != own:
            component: Any = registry.find("target", target)
            assert (main.normalizer.name, main.loss.name) == (component.normalizer, component.loss)
        if (name, target) in REFUSED:
            with pytest.raises(UserError, match=REFUSED[name, target]) as caught:
                try_step(recipe)
            assert "\n" not in str(caught.value)
        else:
            try_step(recipe)


def test_masks_that_follow_saliency_go_with_any_teacher(clip_folder: Path, tokenizer: Path) -> None:
    for more in (["target=timm", "target.model=test_vit", "target.pretrained=false", "target.saliency=true"],
                 ["target=pixels", "mask=random"]):  # fmt: skip
        try_step(load_recipe("milan", ["data=shapes", *SHRUNK, *more]))


@pytest.mark.parametrize("name", ["beit2", "data2vec", "simmim"])
def test_small_recipes_train(name: str, tokenizer: Path, tmp_path: Path) -> None:
    """BEiT v2 from the tokenizer's run, as its header says; a moving target; a hierarchical encoder."""
    more = [f"target.checkpoint={tokenizer}"] if name == "beit2" else []
    recipe = load_recipe(name, ["data=shapes", *SHRUNK, "train.max_steps=2", *more])
    assert train(recipe, tmp_path / "run")["step"] == 2
