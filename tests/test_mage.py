"""MAGE's encoder in the house: codes are found once, the hand-over stands for itself, what does not fit is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mimkit
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.evaluate.embed import embed
from mimkit.evaluate.score import score
from mimkit.saved.encoder import untrained
from mimkit.saved.tokenizer import load_tokenizer
from mimkit.train.loop import train
from mimkit.types import Mask
from mimkit.weights.export import export
from tests.mage import CODES, COMMON, ENCODER, HEAD, PLACES, VQKD, mage, save_vqkd

SHAPES = {"name": "shapes", "num_images": 24, "num_test": 12, "batch_size": 8}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_vqkd(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A run whose tokenizer's own folder is gone."""
    place = tmp_path_factory.mktemp("runs")
    shutil.copytree(tokenizer, place / "tokenizer")
    tree = COMMON | {
        "encoder": ENCODER | {"tokenizer": str(place / "tokenizer")}, "mask": "variable", "head": HEAD,
        "target": "codes", "data": SHAPES, "train": {"max_steps": 6, "log_every": 2}, "probe": {"every": 1},
    }  # fmt: skip
    train(load_recipe(tree), place / "run")
    shutil.rmtree(place / "tokenizer")
    return place / "run"


def test_the_tokenizer_is_frozen_and_out_of_checkpoints(tokenizer):
    model = mage(tokenizer).train()
    inside = model.encoder.tokenizer
    assert not inside.training and not inside.head.training and not any(p.requires_grad for p in inside.parameters())
    assert not any("tokenizer" in name for name in model.own_state())
    assert "encoder.timm_model.tokenizer.head.codebook" in model.state_dict()
    encoder, head = load_tokenizer(tokenizer)
    images = torch.rand(3, 3, 16, 16)
    codes = model.objectives["main"].target(images)
    assert torch.equal(codes, head.codes(encoder(images))) and len(codes.unique()) > 3
    assert model.encoder.grid == (4, 4) and model.encoder.patch_size == 4 and model.encoder.in_chans == 3
    assert model.objectives["main"].target.state_dict() == {}


def test_codes_are_found_once(tokenizer, monkeypatch):
    """By counting: the target's codes are those that the encoder reads; without a model the encoder finds them itself."""
    model = mage(tokenizer)
    found = []
    codes = type(model.encoder.tokenizer).codes
    monkeypatch.setattr(type(model.encoder.tokenizer), "codes", lambda self, x: found.append(1) or codes(self, x))
    model = mage(tokenizer)
    images = torch.rand(2, 3, 16, 16)
    model(images)
    assert len(found) == 1
    features = model.eval().encoder(images)
    assert len(found) == 2
    torch.testing.assert_close(features.sequence, model.encoder.encode(codes(model.encoder.tokenizer, images)).sequence)


def test_codes_are_the_same_in_half_precision(tokenizer):
    """Else an encoder would be trained on other codes than it is used with."""
    model = mage(tokenizer)
    images = torch.rand(8, 3, 16, 16)
    codes = model.objectives["main"].target(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.objectives["main"].target(images), codes)
        assert torch.isfinite(model(images).loss)


def test_features_of_what_is_fed(tokenizer):
    """Hidden codes cannot be told from the features; all places without a mask, the class token first."""
    model = mage(tokenizer).eval()
    codes = torch.randint(CODES, (2, PLACES))
    full = model.encoder.encode(codes, layers=(0, 1))
    assert full.sequence.shape == (2, 1 + PLACES, 24) and full.num_prefix_tokens == 1 and full.grid == (4, 4)
    assert [layer.shape for layer in full.layers] == [(2, 1 + PLACES, 24)] * 2
    assert torch.equal(full.code_embed, model.encoder.timm_model.code_embed.weight[:CODES])
    hidden = torch.arange(PLACES).expand(2, -1) < 10
    mask = Mask.from_hidden(hidden, fed=torch.arange(6, PLACES).expand(2, -1))
    others = torch.where(hidden, (codes + 1) % CODES, codes)
    some, same = (model.encoder.encode(x, mask).sequence for x in (codes, others))
    assert some.shape == (2, 11, 24) and torch.equal(some, same)
    assert not torch.allclose(some, model.encoder.encode((codes + 1) % CODES, mask).sequence)


def test_a_run_is_an_encoder_like_any_other(run, tmp_path):
    """mimkit.load, embed, eval and export need nothing but the run's folder."""
    told = json.loads((run / "encoder.json").read_text())
    assert told["options"]["tokenizer"]["vocab_size"] == CODES
    encoder = mimkit.load(run)
    images = torch.rand(2, 3, 16, 16)
    assert encoder(images).pooled.shape == (2, 24) and not encoder.tokenizer.can_decode
    lines = list(score(run, ["knn", "layers"], ["knn.k=3"], tmp_path / "eval.json"))
    assert any(line.startswith("layers") for line in lines)
    embed(run, "shapes", tmp_path / "features.npz")
    export(run, tmp_path / "copy", "safetensors")
    torch.testing.assert_close(mimkit.load(tmp_path / "copy")(images).sequence, encoder(images).sequence)
    with pytest.raises(UserError, match="encoder 'mage' has no equal in timm's registry"):
        export(run, tmp_path / "timm", "timm")


def test_the_run_learns(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["exit"] == "done" and summary["knn_top1"] is not None and 0 <= summary["code_accuracy"] <= 100


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"image_size": 32}, r"encoder 'mage': its tokenizer reads images of 16x16, image_size is 32x32: set image_size=\["),
        ({"tokenizer": "nowhere"}, r"tokenizer nowhere: no such folder; .*encoder\.tokenizer=RUN names it"),
        ({"tokenizer": {"format": 1}}, r"encoder\.tokenizer is damaged \(KeyError"),
        ({"tokenizer": {"format": 2, "out_dim": 3, "image_size": [8, 8], "encoder": {"name": "vit", "options": {}},
                        "head": {"name": "linear", "options": {}}}}, r"encoder\.tokenizer has format 2"),
    ],
)  # fmt: skip
def test_tokenizers_that_do_not_fit(tokenizer, change, wanted):
    size = change.get("image_size", 16)
    encoder = ENCODER | {"tokenizer": change.get("tokenizer", tokenizer)}
    with pytest.raises(UserError, match=wanted) as refusal:
        mage(tokenizer, image_size=size, encoder=encoder)
    assert "\n" not in str(refusal.value)


def test_another_size_than_the_tokenizers_is_refused_at_the_hand_over(run):
    with pytest.raises(UserError, match="its tokenizer reads images of 16x16, image_size is 32x32"):
        mimkit.load(run, image_size=32)


def test_channels_follow_the_tokenizer(tmp_path):
    folder = save_vqkd(tmp_path / "four", encoder=VQKD["encoder"] | {"in_chans": 4})
    model = mage(folder)
    assert model.encoder.in_chans == 4 and torch.isfinite(model(torch.rand(2, 4, 16, 16)).loss)


def test_a_cut_run_goes_on_to_the_same_weights(tokenizer, tmp_path: Path):
    """The tokenizer is in no checkpoint, and dropout draws the same."""
    tree = COMMON | {
        "encoder": ENCODER | {"tokenizer": tokenizer}, "mask": "variable", "head": HEAD, "target": "codes",
        "data": SHAPES, "train": {"max_steps": 6, "checkpoint_every": 1}, "probe": {"every": 0},
    }  # fmt: skip
    train(load_recipe(tree), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").glob("step-00000006"):
        shutil.rmtree(path)
    train(load_recipe(tree), tmp_path / "cut", resume=True)
    whole, cut = (mimkit.load(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_from_scratch_the_tokenizer_is_the_trained_one(run):
    """As in a run: the encoder's own weights are drawn, the codes are the same."""
    trained, fresh = mimkit.load(run), untrained(run)
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(fresh.tokenizer.codes(images), trained.tokenizer.codes(images))
    assert not torch.equal(fresh.timm_model.blocks[0].mlp.fc1.weight, trained.timm_model.blocks[0].mlp.fc1.weight)


def test_a_run_goes_on_without_its_tokenizers_folder(run, tmp_path):
    """The tokenizer is that of the hand-over; another one in its place is not looked at."""
    shutil.copytree(run, tmp_path / "run")
    recipe = load_recipe(run / "recipe.yaml", ["train.checkpoint_every=1"])
    state = json.loads((run / "summary.json").read_text())
    summary = train(recipe, tmp_path / "run", resume=True)
    assert summary["step"] == state["step"]
    assert torch.equal(mimkit.load(tmp_path / "run").tokenizer.head.codebook, mimkit.load(run).tokenizer.head.codebook)
