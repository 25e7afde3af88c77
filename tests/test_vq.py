"""A tokenizer is trained, handed over, and used as the target of the next run; what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from mimkit.targets.vq import VQ
from safetensors.torch import load_file, save_file

import mimkit
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.model import Model
from mimkit.saved.tokenizer import load_tokenizer
from mimkit.train.loop import train
from mimkit.weights.tokenizer import save_tokenizer

HEAD = {"name": "quantizer", "vocab_size": 16, "code_dim": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
FACTS = {"in_chans": 3, "image_size": (16, 16), "patch_size": 4, "grid": (4, 4)}


def tokenizer(tiny, **encoder) -> Model:
    """A tokenizer with a filled codebook."""
    torch.manual_seed(3)
    tree = tiny | {"mask": "none", "target": "pixels", "head": HEAD, "encoder": tiny["encoder"] | encoder}
    model = mimkit.build(tree)
    model(torch.rand(20, model.encoder.in_chans, 16, 16))
    return model


@pytest.fixture
def folder(tmp_path, tiny) -> Path:
    save_tokenizer(tmp_path, tokenizer(tiny))
    return tmp_path


def test_the_target_gives_the_codes_of_the_tokenizer(tmp_path, tiny):
    """By comparison with the model in memory, for floats and bytes; mean and std are the tokenizer's own."""
    model = tokenizer(tiny, mean=[0.5, 0.4, 0.3], std=[0.5, 0.6, 0.7], drop_path=0.3)
    save_tokenizer(tmp_path, model)
    state = torch.random.get_rng_state()
    target = VQ(checkpoint=str(tmp_path), **FACTS)
    assert torch.equal(torch.random.get_rng_state(), state)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    head = model.eval().objectives["main"].head
    with torch.no_grad():
        wanted = head.codes(model.encoder(images.float() / 255))
        hidden = mimkit.Mask.from_hidden(torch.zeros(6, 16, dtype=torch.bool))
        assert torch.equal(target(images).values, wanted) and torch.equal(target(images.float() / 255).values, wanted)
        assert torch.equal(head.codes(model.encoder(images, hidden)), wanted)
    assert wanted.shape == (6, 16) and wanted.dtype == torch.int64 and len(wanted.unique()) > 4
    assert (
        target.vocab_size == 16 and target.dim is None and (target.normalizer, target.loss) == ("none", "cross_entropy")
    )
    assert not target.train().training and not target.encoder.training
    assert not any(p.requires_grad for p in target.parameters())


def test_images_of_another_size_are_resized_and_grey_is_repeated(folder, tiny):
    """By torch's own interpolation: 24 pixels with patches of 6 lie on the tokenizer's 4x4 grid."""
    target = VQ(checkpoint=str(folder), **FACTS | {"in_chans": 1, "image_size": (24, 24), "patch_size": 6})
    images = torch.rand(3, 1, 24, 24)
    small = torch.nn.functional.interpolate(images, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    encoder, head = load_tokenizer(folder)
    assert torch.equal(target(images).values, head.codes(encoder(small.expand(-1, 3, -1, -1))))


def test_the_files_say_how_to_build_it(folder, tiny):
    told = json.loads((folder / "tokenizer.json").read_text())
    assert (told["format"], told["encoder"]["name"], told["head"]["name"]) == (1, "vit", "quantizer")
    assert told["head"]["options"]["vocab_size"] == told["vocab_size"] == 16
    assert (told["image_size"], told["in_chans"], told["out_dim"]) == ([16, 16], 3, 48)
    names = load_file(folder / "tokenizer.safetensors").keys()
    assert {"head.codebook", "head.counts", "head.encode.2.weight", "encoder.timm_model.norm.weight"} <= names
    save_tokenizer(folder / "none", mimkit.build(tiny))  # its head gives no codes
    assert not (folder / "none").exists()


def test_a_run_hands_its_tokenizer_to_the_next(tmp_path, tiny):
    """Both stages from recipes; the second learns the codes."""
    short = {"probe": {"every": 0}, "train": {"max_steps": 20, "log_every": 5}}
    first = train(load_recipe(tiny | short | {"mask": "none", "target": "pixels", "head": HEAD}), tmp_path / "one")
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert first["exit"] == "done" and lines[-1]["loss"] < lines[0]["loss"]
    assert {"perplexity", "codes_used", "loss_main", "loss_main.commitment"} <= lines[-1].keys()
    target = {"name": "vq", "checkpoint": str(tmp_path / "one")}
    mask = {"name": "block", "count": 8, "feed": "all"}
    second = tiny | short | {"target": target, "mask": mask, "head": "linear"}
    train(load_recipe(second), tmp_path / "two")
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not (tmp_path / "two" / "tokenizer.json").exists()
    model = mimkit.build(load_recipe(second))
    assert model.objectives["main"].head.predict.out_features == 16
    with pytest.raises(
        UserError, match=r"two holds no tokenizer\.safetensors; a run with head=quantizer or vq_decoder writes it"
    ):
        mimkit.build(second | {"target": target | {"checkpoint": str(tmp_path / "two")}})


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({"grid": (2, 2), "patch_size": 8}, r"4x4 codes an image, .* 2x2 places: .*\[32,32\] or encoder.patch_size=4$"),
        ({"grid": (3, 5), "patch_size": 5, "image_size": (15, 25)}, r"3x5 places: set image_size=\[20,20\]$"),
        ({"in_chans": 4}, r"reads 3 channels \(or 1, repeated\), encoder\.in_chans=4"),
    ],
)
def test_what_does_not_fit_the_student_is_refused(folder, facts, wanted):
    with pytest.raises(UserError, match=wanted) as refusal:
        VQ(checkpoint=str(folder), **FACTS | facts)
    assert "\n" not in str(refusal.value)


def change(folder, **values):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def codes_of_another_size(folder):
    tensors = load_file(folder / "tokenizer.safetensors")
    save_file(tensors | {"head.codebook": torch.zeros(9, 4)}, folder / "tokenizer.safetensors")


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json is damaged"),
        (lambda f: change(f, head=3), r"tokenizer\.json is damaged"),
        (lambda f: change(f, format=2), "has format 2, this mimkit reads 1"),
        (lambda f: change(f, head={"name": "linear", "options": {}}), "head 'linear' gives no codes"),
        (lambda f: change(f, head={"name": "quantizer", "options": {"vocab": 3}}), "no option 'vocab'"),
        (lambda f: change(f, encoder={"name": "vti", "options": {}}), "unknown encoder 'vti'"),
        (codes_of_another_size, r"'head\.codebook' is \(9, 4\) there and \(16, 4\) in the tokenizer"),
        (lambda f: (f / "tokenizer.safetensors").write_bytes(b"no"), "damaged"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    ],
)
def test_damaged_files_are_refused(folder, damage, wanted):
    damage(folder)
    with pytest.raises(UserError, match=wanted) as refusal:
        load_tokenizer(folder)
    assert "\n" not in str(refusal.value)


def test_a_weights_file_points_to_the_import(tmp_path):
    (tmp_path / "vqkd.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"`mimkit import .*vqkd\.pth --as vqkd -o FOLDER`"):
        load_tokenizer(tmp_path / "vqkd.pth")
    with pytest.raises(UserError, match="nowhere: no such folder; `mimkit train vqkd` makes one"):
        load_tokenizer(tmp_path / "nowhere")
