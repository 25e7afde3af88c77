"""`mimkit import`: published weights become a hand-over, by the first recipe of the method that fits, without a teacher."""

import json

import pytest
import torch

import mimkit
from mimkit import strict_yaml
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.saved.tokenizer import load_tokenizer
from mimkit.show.run import draw
from mimkit.train.loop import train
from mimkit.weights import importing
from mimkit.weights.importing import import_weights
from mimkit.weights.trained import trained_model
from tests import published
from tests.conftest import command

BEIT = {"name": "beit", "embed_dim": 24, "depth": 4, "num_heads": 3, "patch_size": 5}
TEACHER = {"name": "clip", "model": "ViT-B-16", "pretrained": "openai"}  # which nobody has at hand
RECIPES = {
    "milan": {
        "encoder": {"name": "vit", "embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5},
        "mask": {"name": "semantic", "feed": "visible"},
        "head": {"name": "prompting", "embed_dim": 40, "depth": 3, "num_heads": 5},
        "target": TEACHER,
    },
    "beit2": {
        "encoder": BEIT,
        "mask": {"name": "block", "feed": "all"},
        "head": {"name": "aggregation", "num_heads": 3},
        "target": {"name": "vq", "checkpoint": "runs/vqkd-1"},
    },
    "vqkd": {
        "encoder": BEIT | {"init_values": None, "rel_pos": "none", "abs_pos": True},
        "mask": "none",
        "head": {"name": "quantizer", "vocab_size": 30, "code_dim": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
        "target": TEACHER,
    },
    "simmim": {
        "image_size": 64,
        "encoder": {
            "name": "swin", "embed_dim": 8, "depths": [2, 2, 2], "num_heads": [2, 2, 4], "window_size": 4,
            "patch_size": 4,
        },
        "mask": {"name": "cells", "cell": 2}, "head": "linear", "target": {"name": "pixels", "order": "channel_first"},
    },
}  # fmt: skip
FILES = {
    "milan": published.milan(),
    "beit2": published.beit2(),
    "vqkd": published.vqkd(training=True),
    "simmim": published.simmim_swin(),
}


@pytest.fixture
def recipe(tmp_path):
    """Writes one of RECIPES as a file."""

    def write(method):
        tree = {"method": method, "image_size": 35, "optim": {"lr": 1e-3}, "train": {"epochs": 1}, **RECIPES[method]}
        path = tmp_path / f"{method}.yaml"
        path.write_text(strict_yaml.dump(tree))
        return path

    return write


def file(path, shapes):
    state = published.tensors(shapes)
    if "quantize.embedding.weight" in state:  # codes are directions
        state["quantize.embedding.weight"] = torch.nn.functional.normalize(state["quantize.embedding.weight"], dim=1)
    torch.save({"model": state, "epoch": 3}, path)
    return state


@pytest.mark.parametrize("method", RECIPES)
def test_an_encoder_is_handed_over(tmp_path, recipe, method):
    """By comparison with the file, and of the features with those of the encoder that was filled in Python."""
    file(tmp_path / "weights.pth", FILES[method])
    text = import_weights(tmp_path / "weights.pth", str(recipe(method)), tmp_path / "out")
    back = mimkit.load(tmp_path / "out")
    assert f'mimkit.load("{tmp_path / "out"}")' in text
    by_hand = mimkit.load(tmp_path / "out")
    for parameter in by_hand.parameters():
        torch.nn.init.zeros_(parameter)
    mimkit.load_official(by_hand, tmp_path / "weights.pth")
    images = torch.rand(2, 3, *back.image_size)
    assert torch.equal(back(images).sequence, by_hand(images).sequence)
    assert json.loads((tmp_path / "out/encoder.json").read_text())["encoder"] == RECIPES[method]["encoder"]["name"]
    assert (method == "vqkd") is (tmp_path / "out/tokenizer.json").exists() is ("target.checkpoint=" in text)


@pytest.mark.parametrize("shapes", [FILES["vqkd"], published.openmmlab_vqkd()], ids=["authors", "OpenMMLab"])
def test_a_tokenizer_is_handed_over(tmp_path, recipe, shapes):
    """Against the authors' definition by hand: the code of largest cosine with two layers of the normed tokens."""
    state = file(tmp_path / "weights.pth", shapes)
    import_weights(tmp_path / "weights.pth", str(recipe("vqkd")), tmp_path / "out")
    encoder, head = load_tokenizer(tmp_path / "out")
    features = encoder(torch.rand(2, 3, 35, 35))
    hidden = torch.tanh(features.tokens @ state["encode_task_layer.0.weight"].mT + state["encode_task_layer.0.bias"])
    vectors = hidden @ state["encode_task_layer.2.weight"].mT + state["encode_task_layer.2.bias"]
    vectors, book = torch.nn.functional.normalize(vectors, dim=-1), state["quantize.embedding.weight"]
    distance = (vectors**2).sum(-1, keepdim=True) + (book**2).sum(1) - 2 * vectors @ book.mT
    assert torch.equal(head.codes(features), distance.argmin(-1))


MAE = {
    "encoder": {"name": "vit", "embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5},
    "mask": {"name": "random", "feed": "visible"},
    "head": {"name": "decoder", "embed_dim": 40, "depth": 3, "num_heads": 5},
    "target": "pixels",
}


def test_a_file_with_its_head_is_a_run_that_has_made_no_step(tmp_path, recipe, monkeypatch):
    """Against the model that was filled in Python; and training goes on from there."""
    monkeypatch.setitem(RECIPES, "mae", MAE)
    state = file(tmp_path / "weights.pth", published.mae())
    data = ["data=shapes", "data.num_images=16", "data.num_test=8", "data.batch_size=8", "probe.every=0"]
    text = import_weights(tmp_path / "weights.pth", str(recipe("mae")), tmp_path / "out", data)
    assert f"mimkit show {tmp_path / 'out'} IMAGES" in text
    model, name = trained_model(tmp_path / "out")
    by_hand = mimkit.build(recipe("mae"))
    mimkit.load_official(by_hand, state)
    images = torch.rand(2, 3, 35, 35)
    loss, wanted = (one(images, generator=torch.Generator().manual_seed(0)).loss for one in (model, by_hand))
    assert name == "step-00000000" and torch.equal(loss, wanted)
    assert "reconstructions" in draw(tmp_path / "out", None, tmp_path / "show.png", 2)
    again = load_recipe(tmp_path / "out/recipe.yaml")
    assert train(again, tmp_path / "out", resume=True)["step"] == 2
    moved = mimkit.load(tmp_path / "out").timm_model.blocks[0].mlp.fc1.weight - state["blocks.0.mlp.fc1.weight"]
    assert 0 < moved.abs().max() < 0.1
    with pytest.raises(UserError, match="out holds a run already; choose another folder"):
        import_weights(tmp_path / "weights.pth", str(recipe("mae")), tmp_path / "out")


def test_an_encoder_alone_is_no_run(tmp_path, recipe, monkeypatch):
    """Its head would be untrained."""
    monkeypatch.setitem(RECIPES, "mae", MAE)
    file(tmp_path / "weights.pth", published.vit())
    import_weights(tmp_path / "weights.pth", str(recipe("mae")), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"encoder.json", "encoder.safetensors"}


def test_a_method_stands_for_its_recipes_the_papers_first():
    """Against the shipped recipes."""
    assert importing._recipes("mae")[:3] == [f"imagenet/mae_vit_{size}" for size in ("base", "huge", "large")]
    assert importing._recipes("mae")[-1] == "mae"
    assert importing._recipes("simmim")[:2] == ["imagenet/simmim_swin_base", "imagenet/simmim_vit_base"]
    assert all("beit2" not in name for name in importing._recipes("beit"))
    assert importing._recipes("imagenet/mae_vit_base") == ["imagenet/mae_vit_base"]


def test_the_first_recipe_that_fits_counts(tmp_path, recipe, monkeypatch):
    """By a method of two recipes: the second takes the file."""
    monkeypatch.setattr(importing, "_recipes", lambda method: [str(recipe("beit2")), str(recipe("milan"))])
    file(tmp_path / "weights.pth", FILES["milan"])
    import_weights(tmp_path / "weights.pth", "any", tmp_path / "out")
    assert json.loads((tmp_path / "out/encoder.json").read_text())["encoder"] == "vit"
    file(tmp_path / "other.pth", FILES["simmim"])
    with pytest.raises(
        UserError, match=r"none of the recipes of 'any' fits .*beit2.yaml, .*milan.yaml.*SimMIM"
    ) as error:
        import_weights(tmp_path / "other.pth", "any", tmp_path / "none")
    assert "\n" not in str(error.value)


def test_the_command(tmp_path, recipe):
    """In a process of its own: the report and how to load what was written; mistakes are one line and exit code 2."""
    file(tmp_path / "weights.pth", FILES["simmim"])
    path, out = recipe("simmim"), tmp_path / "out"
    done = command("import", tmp_path / "weights.pth", "--as", path, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SimMIM, Swin and linear head: ")
    assert "tensors of the model matched" in done.stdout and f'mimkit.load("{out}")' in done.stdout
    override = command(
        "import", tmp_path / "weights.pth", "--as", path, "-o", tmp_path / "none", "encoder.window_size=2"
    )
    assert (override.returncode, override.stdout) == (2, "")
    assert "a window of 4x4 places, here it is 2x2" in override.stderr and override.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "told"),
    [("milam", "no recipe 'milam'"), ("beit2", "does not fit the model"), ("absent.yaml", "no such file")],
)
def test_mistakes_are_one_line(tmp_path, recipe, method, told):
    """The user's mistake."""
    file(tmp_path / "weights.pth", FILES["milan"])
    with pytest.raises(UserError, match=told) as error:
        import_weights(tmp_path / "weights.pth", str(recipe(method)) if method in RECIPES else method, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
