"""Export against timm: the model that timm makes of the folder gives mimkit's features."""

import json

import pytest
import timm
import torch

import mimkit
from mimkit.encoders.vit import ViT
from mimkit.errors import UserError
from mimkit.weights.export import export
from mimkit.weights.handover import save_encoder


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
