"""Export against timm: the model that timm makes of the folder gives mimkit's features."""

import json

import pytest
import timm
import torch

import mimkit
from mimkit import registry
from mimkit.encoders.vit import ViT
from mimkit.errors import UserError
from mimkit.saved.encoder import save_encoder
from mimkit.weights.export import export

MEAN, OTHER_TABLE = "it gives the mean of the patch tokens", "made of it gives other features"
VIT = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 5}
SWIN = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "patch_size": 4}


def run_folder(path, image_size=(35, 55), **options):
    torch.manual_seed(3)
    options = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 5, **options}
    encoder = ViT(image_size=image_size, **options)
    for parameter in encoder.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5)
    torch.nn.init.normal_(encoder.timm_model.patch_embed.proj.weight, std=1e-4)  # so small that the norms' eps shows
    path.mkdir()
    save_encoder(path, encoder, "vit", options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": False},
        {"in_chans": 4, "mean": (0.1, 0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7, 0.8)},
        {"mlp_ratio": 2.5, "pos_embed": "learned", "image_size": (35, 35)},
    ],
    ids=["oblong", "no class token", "four channels", "narrow mlp"],
)
def test_timm_gives_equal_features(tmp_path, options):
    """Against timm.create_model on images that are normalised as its pretrained_cfg says."""
    run, out = run_folder(tmp_path / "run", **options), tmp_path / "out"
    encoder = mimkit.load(run)
    text = export(run, out, "timm")
    assert f'timm.create_model("local-dir:{out}", pretrained=True)' in text
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    config = timm.data.resolve_data_config({}, model=model)
    assert config["input_size"] == (encoder.in_chans, *encoder.image_size)
    images = torch.rand(2, encoder.in_chans, *encoder.image_size)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    features = encoder(images)
    torch.testing.assert_close(model.forward_features((images - mean) / std), features.sequence, atol=1e-5, rtol=0)
    torch.testing.assert_close(model((images - mean) / std), features.pooled, atol=1e-5, rtol=0)
    assert model.num_classes == 0


ENCODERS = {  # encoder, options, image size, what the pooled feature is
    "beit": ("beit", VIT, (35, 55), MEAN),
    "beit, one table each": ("beit", VIT | {"rel_pos": "block", "init_values": None}, (35, 55), MEAN),
    "beit, absolute": ("beit", VIT | {"rel_pos": "none", "abs_pos": True, "in_chans": 4}, (35, 55), MEAN),
    "beit, a table that could be square": ("beit", VIT | {"patch_size": 4}, (20, 52), OTHER_TABLE),
    "swin": ("swin", SWIN, (32, 64), MEAN),
    "swin, four channels": ("swin", SWIN | {"in_chans": 4, "mean": (0.5,) * 4, "std": (0.5,) * 4}, (32, 32), MEAN),
    "vit of timm": ("timm", {"model": "test_vit"}, (32, 64), MEAN),
    "EVA-02 of timm": ("timm", {"model": "eva02_tiny_patch14_224"}, (28, 56), MEAN),
    "ConvNeXt of timm": ("timm", {"model": "test_convnext"}, (64, 96), "timm's own pooling"),
    "ResNet of timm": ("timm", {"model": "test_resnet", "in_chans": 4}, (64, 96), MEAN),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_every_encoder_goes_to_timm(tmp_path, case):
    """Against timm.create_model: patch tokens always, and their mean where timm can pool so."""
    name, options, image_size, told = ENCODERS[case]
    options = all_options(name, options)
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    torch.manual_seed(3)
    encoder = registry.build("encoder", name, options, {"image_size": image_size, "feed": "all"}).eval()
    for parameter in encoder.parameters():
        if parameter.ndim == 1 or "table" in case:
            torch.nn.init.normal_(parameter, mean=0.5)
    save_encoder(run, encoder, name, options)
    if told is OTHER_TABLE:
        with pytest.raises(UserError, match=OTHER_TABLE):
            export(run, out, "timm")
        return
    assert told in export(run, out, "timm")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    config = timm.data.resolve_data_config({}, model=model)
    images = torch.rand(2, encoder.in_chans, *image_size)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    pixels, features = (images - mean) / std, mimkit.load(run)(images)
    torch.testing.assert_close(
        model.forward_features(pixels).flatten(), by_timm(encoder, images).flatten(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(encoder(images).sequence, features.sequence, atol=1e-5, rtol=1e-5)
    if told is MEAN:
        torch.testing.assert_close(model(pixels), features.pooled, atol=1e-4, rtol=1e-4)


def by_timm(encoder, images):
    return encoder.timm_model.forward_features(encoder.standardize(images))


def all_options(name, given):
    """With the defaults of the rest, as a recipe has them."""
    known = registry.options(registry.find("encoder", name), registry.ROLES["encoder"].facts)
    return {option: given.get(option, known[option].default) for option in known}


def test_timms_training_adds_a_classifier(tmp_path):
    """Against timm's own option: a new head on the exported weights."""
    export(run_folder(tmp_path / "run"), tmp_path / "out", "timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7)
    assert model(torch.rand(2, 3, 35, 55)).shape == (2, 7)


@pytest.mark.parametrize("name", ["", "encoder.safetensors"])
def test_safetensors_is_what_load_reads(tmp_path, name):
    """By round trip."""
    run, out = run_folder(tmp_path / "run"), tmp_path / "deep" / "out"
    text = export(run / name, out, "safetensors")
    assert f'mimkit.load("{out}")' in text
    assert {path.name for path in out.iterdir()} == {"encoder.json", "encoder.safetensors"}
    images = torch.rand(2, 3, 35, 55)
    assert torch.equal(mimkit.load(out)(images).sequence, mimkit.load(run)(images).sequence)


def test_impossible_exports_are_told(tmp_path):
    """The user's mistake in one line."""
    run = run_folder(tmp_path / "run")
    with pytest.raises(UserError, match="--to tim: unknown form; did you mean 'timm'"):
        export(run, tmp_path / "out", "tim")
    with pytest.raises(UserError, match="no such run folder"):
        export(tmp_path / "nowhere", tmp_path / "out", "timm")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(run, tmp_path / "file", "timm")
    assert json.loads((run / "encoder.json").read_text())["encoder"] == "vit"
