"""`mimkit generate`: sheets of real pixels, given places keep their codes, scores in a known order, mistakes in one line."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mimkit
from mimkit.cli import generate
from mimkit.draft import load_recipe
from mimkit.drawing.sheet import GAP, LINE
from mimkit.errors import UserError
from mimkit.generate.painter import Painter, open_run
from mimkit.generate.regions import open_picture, region
from mimkit.generate.sampler import Sampling
from mimkit.generate.score import score
from mimkit.train.loop import train
from tests.mage import CODES, COMMON, ENCODER, HEAD, PLACES, mage, save_vqgan, save_vqkd

SHAPES = {"name": "shapes", "num_images": 40, "num_test": 20, "batch_size": 8}
SCALE = 11  # of 16 pixels to at least 168


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose tokenizer's own folder is gone."""
    place = tmp_path_factory.mktemp("runs")
    tokenizer = save_vqgan(place / "tokenizer")
    tree = COMMON | {
        "encoder": ENCODER | {"tokenizer": tokenizer}, "mask": "variable", "head": HEAD, "target": "codes",
        "data": SHAPES, "train": {"max_steps": 4}, "probe": {"every": 0},
    }  # fmt: skip
    train(load_recipe(tree), place / "run")
    shutil.rmtree(tokenizer)
    return place / "run"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def tile(sheet, row, column, title_lines=1):
    """A tile at the images' own size, as numbers in [0, 1]."""
    top = GAP + LINE * title_lines + GAP + row * (16 * SCALE + GAP)
    left = GAP + column * (16 * SCALE + GAP)
    enlarged = sheet[top : top + 16 * SCALE, left : left + 16 * SCALE]
    small = enlarged[::SCALE, ::SCALE]
    assert np.array_equal(enlarged, small.repeat(SCALE, 0).repeat(SCALE, 1))
    return torch.from_numpy(small.copy()).permute(2, 0, 1)


def as_bytes(images):
    return images.mul(255).round().byte()


def test_samples_are_what_the_sampler_paints(run, tmp_path, capsys):
    generate(run, tmp_path / "samples.png", count=5, steps=3, temperature=2.0, seed=7)
    assert "5 images painted by" in capsys.readouterr().out
    painter, step = open_run(run)
    assert step == "step-00000004" and not painter.model.training
    codes = painter.paint(*painter.blank(5), Sampling(3, 2.0), painter.generator(7))
    assert codes.shape == (5, PLACES) and codes.min() >= 0 and codes.max() < CODES
    sheet, images = read(tmp_path / "samples.png"), as_bytes(painter.images(codes))
    shown = [tile(sheet, row, column) for column in range(3) for row in range(2)][:5]
    assert torch.equal(torch.stack(shown), images) and len(images.flatten(1).unique(dim=0)) == 5


def test_logits_see_known_codes_alone(run):
    painter, _ = open_run(run)
    codes, unknown = torch.randint(CODES, (2, PLACES)), torch.arange(PLACES).expand(2, -1) % 3 == 0
    logits = painter.logits(codes, unknown)
    others = torch.where(unknown, (codes + 1) % CODES, codes)
    assert logits.shape == (2, PLACES, CODES) and torch.equal(logits, painter.logits(others, unknown))
    assert not torch.allclose(logits, painter.logits((codes + 1) % CODES, unknown))


@pytest.mark.parametrize("word", ["center", "border"])
def test_a_picture_painted_in_part(run, tmp_path, picture, word):
    """What is kept is kept as codes; the sheet shows the picture, its decoded codes, what is kept, the versions."""
    generate(run, tmp_path / "painted.png", picture=picture, mask=word, count=7, steps=4)
    painter, _ = open_run(run)
    original = torch.from_numpy(read(picture).copy()).permute(2, 0, 1)
    codes = painter.tokenizer.codes(original[None])
    middle = torch.zeros(4, 4, dtype=torch.bool)
    middle[1:3, 1:3] = True
    unknown = (middle if word == "center" else ~middle).flatten()[None]
    versions = painter.paint(codes.expand(7, -1), unknown.expand(7, -1), Sampling(4, 6.0), painter.generator(0))
    assert torch.equal(versions[:, ~unknown[0]], codes[:, ~unknown[0]].expand(7, -1))
    assert len(versions.unique(dim=0)) > 1
    sheet = read(tmp_path / "painted.png")
    assert torch.equal(tile(sheet, 0, 0, 2), original)
    assert torch.equal(tile(sheet, 0, 1, 2), as_bytes(painter.images(codes))[0])
    hidden = unknown.view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(tile(sheet, 0, 2, 2), torch.where(hidden, 128, original))
    images = as_bytes(painter.images(versions))
    assert torch.equal(tile(sheet, 0, 3, 2), images[0]) and torch.equal(tile(sheet, 1, 3, 2), images[1])
    assert torch.equal(tile(sheet, 0, 6, 2), images[6])


def test_a_mask_from_a_file_is_every_place_with_a_white_pixel(tmp_path, picture):
    """Pixels from 128 on; the picture's crop is the mask's."""
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[0, 5], pixels[15, 15], pixels[8, 8] = 128, 255, 127
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    places = region(str(tmp_path / "mask.png"), open_picture(picture), (16, 16), (4, 4))
    assert places.nonzero().flatten().tolist() == [1, 15]
    wide = np.zeros((16, 32), dtype=np.uint8)
    wide[:, 8:12] = 255  # the first column of places of the central square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    places = region(str(tmp_path / "wide.png"), open_picture(tmp_path / "wide.png"), (16, 16), (4, 4))
    assert places.nonzero().flatten().tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [("left", [0, 1, 5, 6, 10, 11]), ("top", [0, 1, 2, 3, 4]), ("center", [6, 7, 8]), ("right", [3, 4, 8, 9, 13, 14])],
)
def test_words_on_an_oblong_grid(picture, word, wanted):
    """By hand, on 3 x 5 places; a column in the very middle is on neither side."""
    assert region(word, open_picture(picture), (12, 20), (3, 5)).nonzero().flatten().tolist() == wanted


def test_scores(run, tmp_path):
    """Every number is there; the tokenizer's own images are nearer than codes drawn at random; entropies by hand."""
    lines = list(score(run, run, 20, Sampling(3, 6.0), seed=0))
    numbers = {line[2:38].strip(): float(line[38:]) for line in lines if line.startswith("  ")}
    assert len(numbers) == 8 and all(np.isfinite(list(numbers.values())))
    assert numbers["held-out images, decoded from codes"] < numbers["codes drawn for all places alike"]
    assert "20 images of each kind" in lines[0]
    painter, _ = open_run(run)
    data = mimkit.data.open.open_data("shapes", {"num_images": 40, "num_test": 20}, (16, 16), 3)
    train, test = (painter.tokenizer.codes(source.as_tensor(3)) for source in (data.train, data.test))
    shares = (torch.bincount(train.flatten(), minlength=CODES).double() + PLACES / CODES) / (41 * PLACES)
    wanted = -shares.log()[test].mean().item()
    assert numbers["entropy for all places alike"] == pytest.approx(wanted, abs=1e-3)
    assert numbers["loss of the hidden ones"] > 0


def test_what_cannot_paint(run, tmp_path, picture, tiny):
    train(load_recipe(tiny | {"train": {"max_steps": 1}, "probe": {"every": 0}}), tmp_path / "pixels")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((8, 16), dtype=np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(tmp_path / "black.png")
    out, paint = tmp_path / "out.png", {"picture": picture}
    mistakes = {
        r"pixels: its encoder 'vit' reads pixels": (tmp_path / "pixels", {}),
        r"empty holds no run": (tmp_path / "empty", {}),
        r"nowhere holds no run": (tmp_path / "nowhere", {}),
        r"--from IMAGE and --mask MASK go together": (run, paint),
        r"--mask centre: no such file, nor one of the words center, border": (run, paint | {"mask": "centre"}),
        r"small\.png is 8x16 pixels, the picture is 16x16": (run, paint | {"mask": str(tmp_path / "small.png")}),
        r"black\.png leaves nothing to paint": (run, paint | {"mask": str(tmp_path / "black.png")}),
        r"none\.png cannot be read: No such file": (run, {"picture": tmp_path / "none.png", "mask": "center"}),
        r"text\.png: it is not an image": (run, {"picture": tmp_path / "text.png", "mask": "center"}),
        r"nobody: no such run folder": (run, {"score": tmp_path / "nobody"}),
    }
    for wanted, (folder, options) in mistakes.items():
        with pytest.raises(UserError, match=wanted) as refusal:
            generate(folder, out, **options)
        assert "\n" not in str(refusal.value) and not out.exists()


def test_models_that_cannot_paint(tmp_path):
    silent, speaking = save_vqkd(tmp_path / "silent"), save_vqgan(tmp_path / "speaking")
    with pytest.raises(
        UserError, match="this run's tokenizer makes no images of codes: take one of `mimkit train vqgan`"
    ):
        Painter(mage(silent))
    with pytest.raises(UserError, match="images are painted by a run with encoder=mage and target=codes"):
        Painter(mage(speaking, target="pixels", head="linear", mask={"name": "random", "feed": "all"}, loss="mse"))
    with pytest.raises(UserError, match="this run was fed visible places only"):
        Painter(mage(speaking, mask={"name": "random", "feed": "visible"}))
