"""The fine-tuned network against timm's own classifier, the authors' rates of its layers by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mimkit import registry
from mimkit.errors import UserError
from mimkit.evaluate.finetune.classifier import Classifier, build_optimizer
from mimkit.evaluate.finetune.probe import Finetune
from mimkit.evaluate.finetune.run import build_encoder
from mimkit.saved.encoder import load, save_encoder
from mimkit.types import Encoder

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 4}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", SMALL),
    "beit": ("beit", SMALL | {"init_values": 0.1, "rel_pos": "shared"}),
    "swin": (
        "swin", {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 1), "window_size": 2, "patch_size": 4, "in_chans": 3},
    ),
    "timm": ("timm", {"model": "test_convnext"}),
}  # fmt: skip


def saved(folder: Path, kind: str) -> Path:
    """An encoder with random weights as a run would hand it over; its weights file."""
    name, options = ENCODERS[kind]
    torch.manual_seed(1)
    encoder = registry.build("encoder", name, options, {"image_size": (32, 32), "feed": "all"})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_encoder(folder, encoder, name, options)
    return folder / "encoder.safetensors"


def encoder_of(folder: Path, kind: str, **options: Any) -> Encoder:
    return build_encoder(Finetune(**options), saved(folder, kind))


def test_logits_are_those_of_timms_classifier_with_the_same_weights(tmp_path: Path) -> None:
    """Mean of the patch tokens before the norm, `fc_norm`, linear: VisionTransformer(global_pool="avg") as MAE drives it."""
    from functools import partial

    from timm.models.vision_transformer import VisionTransformer

    model = Classifier(encoder_of(tmp_path, "vit"), "mean", 7).eval()
    for part in (model.fc_norm, model.head):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.5)
    theirs = VisionTransformer(
        32, 4, embed_dim=24, depth=3, num_heads=2, num_classes=7, global_pool="avg", norm_layer=partial(nn.LayerNorm, eps=1e-6)
    ).eval()  # fmt: skip
    inner = {name: x for name, x in model.encoder.timm_model.state_dict().items() if not name.startswith("norm.")}
    rest = {name: x for name, x in model.state_dict().items() if name.startswith(("fc_norm.", "head."))}
    theirs.load_state_dict({**inner, **rest})
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(model.encoder.standardize(images)), rtol=1e-5, atol=1e-5)


def test_the_class_token_and_what_gives_no_layers_are_pooled_after_the_encoders_own_norm(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    vit, swin = (encoder_of(tmp_path / kind, kind).eval() for kind in map(made(tmp_path), ("vit", "swin")))
    with torch.no_grad():
        for encoder, pool, wanted in (
            (vit, "cls", vit.timm_model.forward_features(vit.standardize(images))[:, 0]),
            (swin, "mean", swin.timm_model.forward_features(swin.standardize(images)).mean((1, 2))),
        ):
            model = Classifier(encoder, pool, 5).eval()
            nn.init.normal_(model.head.weight)
            torch.testing.assert_close(model(images), wanted @ model.head.weight.T, rtol=1e-4, atol=1e-4)
        with pytest.raises(UserError, match="no class token"):
            Classifier(swin, "cls", 5)(images)


def made(root: Path) -> Any:
    def make(name: str) -> str:
        (root / name).mkdir()
        return name

    return make


def scales(model: Classifier) -> dict[str, tuple[float, float]]:
    """Share of the rate and weight decay of every parameter that is trained, by name."""
    optimizer = build_optimizer(model, 0.05, 0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter].removeprefix("encoder.timm_model."): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(found) == len(names)
    return found


def test_rates_of_a_vits_layers_are_those_of_mae_and_beit(tmp_path: Path) -> None:
    """By hand: decay ** (depth + 1 - i), i = 0 for what embeds, l + 1 for block l, depth + 1 for the rest; depth is 3."""
    found = scales(Classifier(encoder_of(tmp_path, "beit"), "mean", 7))
    by_hand = {
        "cls_token": (1 / 16, 0.0),
        "patch_embed.proj.weight": (1 / 16, 0.05),
        "patch_embed.proj.bias": (1 / 16, 0.0),
        "blocks.0.attn.qkv.weight": (1 / 8, 0.05),
        "blocks.0.gamma_1": (1 / 8, 0.0),
        "blocks.1.attn.relative_position_bias_table": (1 / 4, 0.05),
        "blocks.2.norm2.weight": (1 / 2, 0.0),
        "norm.weight": (1.0, 0.0),
        "fc_norm.weight": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }
    assert {name: found[name] for name in by_hand} == by_hand
    (tmp_path / "vit").mkdir()
    vit = Classifier(encoder_of(tmp_path / "vit", "vit"), "mean", 7)
    assert scales(vit)["pos_embed"] == (1 / 16, 0.0) and all(p.requires_grad for p in vit.parameters())


def test_rates_of_swins_layers_are_those_of_simmim(tmp_path: Path) -> None:
    """By hand for stages of 2 and 1 blocks; the patch merging has the rate of the last block before it."""
    found = scales(Classifier(encoder_of(tmp_path, "swin"), "mean", 7))
    by_hand = {
        "patch_embed.proj.weight": (1 / 16, 0.05),
        "layers.0.blocks.0.mlp.fc1.weight": (1 / 8, 0.05),
        "layers.0.blocks.1.mlp.fc1.weight": (1 / 4, 0.05),
        "layers.0.blocks.1.attn.relative_position_bias_table": (1 / 4, 0.0),
        "layers.1.downsample.reduction.weight": (1 / 4, 0.05),
        "layers.1.blocks.0.mlp.fc1.weight": (1 / 2, 0.05),
        "norm.weight": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
    }
    assert {name: found[name] for name in by_hand} == by_hand


def test_a_models_last_block_has_the_rate_below_the_classifiers(tmp_path: Path) -> None:
    """Any model of timm that tells its layers; one that does not is refused unless all rates are equal."""
    found = scales(Classifier(encoder_of(tmp_path, "timm"), "mean", 7))
    blocks = [scale for name, (scale, _) in found.items() if name.startswith("stages.3.blocks")]
    assert (
        max(blocks) == 1 / 2 and found["head.weight"][0] == 1.0 and found["stem.0.weight"][0] == min(found.values())[0]
    )
    model = Classifier(encoder_of(tmp_path, "timm"), "mean", 7)
    model.encoder.timm_model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"finetune\.layer_decay=1"):
        build_optimizer(model, 0.05, 0.5)
    assert {group["lr_scale"] for group in build_optimizer(model, 0.05, 1).param_groups} == {1.0}


def test_a_shared_table_becomes_one_for_each_block_and_the_features_stay(tmp_path: Path) -> None:
    """By the features of the encoder as it was loaded."""
    encoder = encoder_of(tmp_path, "beit").eval()
    names = encoder.timm_model.state_dict().keys()
    assert sum(name.endswith("relative_position_bias_table") for name in names) == 3
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).sequence, load(tmp_path)(images).sequence, rtol=1e-5, atol=1e-5)
    larger = build_encoder(Finetune(image_size=40), tmp_path / "encoder.safetensors")
    assert larger.timm_model.blocks[2].attn.relative_position_bias_table.shape == ((2 * 10 - 1) ** 2 + 3, 2)


def test_stochastic_depth_and_random_weights(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "vit", drop_path=0.2)
    assert [block.drop_path1.drop_prob for block in encoder.timm_model.blocks[1:]] == pytest.approx([0.1, 0.2])
    fresh = build_encoder(Finetune(init="random", drop_path=0.2), tmp_path / "encoder.safetensors")
    given, xavier = (each.timm_model.blocks[0].attn.qkv.weight.abs().max() for each in (encoder, fresh))
    assert xavier <= (6 / (24 + 72)) ** 0.5 < given  # Xavier's bound, and normal ones
    assert fresh.timm_model.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)
