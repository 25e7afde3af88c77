"""`mimkit eval --probe segment`: from folders of images and masks to a score and a picture; mistakes; colours."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit import registry
from mimkit.drawing.colours import class_colours
from mimkit.drawing.sheet import draw_sheet
from mimkit.errors import UserError
from mimkit.evaluate.score import score
from mimkit.evaluate.segment.pairs import find_pairs
from mimkit.saved.encoder import save_encoder

COLOURS = np.array([[20, 30, 200], [200, 40, 30], [30, 200, 60]], dtype=np.uint8)
VOID = 7
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders with random weights, and folders of images whose blocks of colours are the classes."""
    root = tmp_path_factory.mktemp("place")
    save(root / "vit", "vit", **VIT)
    save(root / "swin", "swin", embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=2, patch_size=4)
    for split, count in (("train", 16), ("val", 2), ("test", 5)):
        paint(root / "scenes", f"{split}/", count, "annotations")
    paint(root / "flat", "", 11, "masks")
    return root


def save(folder: Path, name: str, std: float = 0.2, **options: Any) -> None:
    torch.manual_seed(3)
    encoder = registry.build("encoder", name, options, {"image_size": (16, 16), "feed": "all"})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter).detach().mul_(std)
    folder.mkdir()
    save_encoder(folder, encoder, name, options)


def paint(folder: Path, split: str, count: int, masks: str, mode: str = "L") -> None:
    """Images of 24 x 32, their first row without a class."""
    draw = np.random.default_rng(len(split))
    for number in range(count):
        mask = np.kron(draw.integers(0, 3, (3, 4), dtype=np.uint8), np.ones((8, 8), dtype=np.uint8))
        image, mask[0] = COLOURS[mask], VOID
        for kind, pixels in (("images", Image.fromarray(image)), (masks, Image.fromarray(mask))):
            path = folder / kind / f"{split}{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == masks and mode == "P":
                pixels = Image.frombytes("P", pixels.size, pixels.tobytes())
                pixels.putpalette([255 - part // 3 for part in range(768)])
            pixels.save(path)


def run(place: Path, *options: str, weights: str = "vit", data: str = "scenes") -> dict[str, Any]:
    lines = [*score(place / weights, ["segment"], (f"segment.data={place / data}", *options), place / "eval.json")]
    assert len(lines) == 2 and lines[0].startswith("segment ") and lines[1].startswith("written to")
    report: dict[str, Any] = json.loads((place / "eval.json").read_text())
    assert not (place / weights / "features").exists() and "data" not in report
    return report["probes"]["segment"]


LEARN = ("segment.ignore=7", "segment.size=[24,32]", "segment.epochs=30", "segment.batch_size=4", "segment.lr=0.02")


def test_colours_are_learned_and_the_same_seed_gives_the_same_figures(place: Path) -> None:
    found = run(place, *LEARN, "segment.classes=[sky,road,tree]")
    assert found["metric"] == "miou" and found["miou"] > 80 and list(found["iou"]) == ["sky", "road", "tree"]
    assert found["miou"] == pytest.approx(np.mean([*found["iou"].values()])) and found["pixel_accuracy"] > 85
    assert found["images"] == {"train": 16, "test": 5} and found["crop"] == [24, 32] and found["stride"] == [16, 22]
    picture = np.asarray(Image.open(found["picture"]))
    again = run(place, *LEARN)
    assert again["iou"] == dict(zip("012", found["iou"].values())) and picture.shape[1] == 3 * (6 * 32 + 8) + 8
    assert run(place, *LEARN, "segment.seed=1")["miou"] != found["miou"]


def test_windows_heads_and_fine_tuning_learn_as_well(place: Path) -> None:
    for options in (
        ("segment.crop=16", "segment.stride=[8,16]"),
        ("segment.head=upernet", "segment.channels=8"),
        ("segment.frozen=false", "segment.encoder_lr=0.001"),
    ):
        assert run(place, *LEARN, *options)["miou"] > 60


def test_swin_gives_a_linear_head_its_coarse_tokens_and_upernet_nothing(place: Path) -> None:
    short = ("segment.ignore=7", "segment.size=[32,32]", "segment.epochs=1")
    assert 0 < run(place, *short, weights="swin")["miou"] < 100
    with pytest.raises(UserError, match="'swin' gives no intermediate layers"):
        run(place, *short, "segment.head=upernet", weights="swin")


@pytest.mark.parametrize("masks", ["annotations", "masks", "labels"])
def test_splits_are_found_by_their_folders(tmp_path: Path, masks: str) -> None:
    for split in ("training/city/", "validation/"):
        paint(tmp_path, split, 2, masks)
    train, test = find_pairs(tmp_path)
    assert (train.name, len(train), test.name, len(test)) == ("training", 2, "validation", 2)
    assert train.masks[1] == tmp_path / masks / "training/city/01.png"
    paint(tmp_path, "test/", 3, masks)
    assert find_pairs(tmp_path)[1].name == "test"


def test_without_splits_every_tenth_image_is_held_out(place: Path) -> None:
    train, test = find_pairs(place / "flat")
    assert [path.stem for path in test.images] == ["00", "10"] and len(train) == 9 and test.name == "held-out"


def test_masks_with_a_palette_hold_indices(place: Path, tmp_path: Path) -> None:
    for mode in "LP":
        paint(tmp_path / mode, "", 11, "masks", mode)
    assert Image.open(tmp_path / "P/masks/00.png").mode == "P"
    of_l, of_p = (run(place, *LEARN, "segment.epochs=2", data=str(tmp_path / mode)) for mode in "LP")
    assert of_l["iou"] == of_p["iou"]


def broken(folder: Path, change: str) -> None:
    """A folder of ten pairs with one thing wrong."""
    if change == "empty":
        folder.mkdir()
        return
    paint(folder, "", 10, "masks")
    mask = np.asarray(Image.open(folder / "masks/03.png")).copy()
    if change == "missing":
        for name in ("03", "05"):
            (folder / f"masks/{name}.png").unlink()
    elif change == "size":
        Image.fromarray(mask[1:]).save(folder / "masks/03.png")
    elif change == "colour":
        Image.fromarray(COLOURS[mask % 3]).save(folder / "masks/03.png")
    elif change == "cut":
        data = (folder / "masks/03.png").read_bytes()
        (folder / "masks/03.png").write_bytes(data[: len(data) // 2])
    elif change == "one class":
        for path in (folder / "masks").iterdir():
            Image.fromarray(np.full_like(mask, 1)).save(path)
    elif change == "class":
        mask = np.asarray(Image.open(folder / "masks/00.png")).copy()  # held out
        mask[5, 5] = 9
        Image.fromarray(mask).save(folder / "masks/00.png")


MISTAKES = {
    "empty": ((), "has no folder images/; it should hold images/train/NAME.jpg with masks/train/NAME.png"),
    "missing": ((), "2 of 9 train images have no mask: the first is"),
    "size": ((), "masks/03.png is of 23x32 pixels and its image of 24x32"),
    "colour": ((), "masks/03.png is of mode RGB; a mask is a PNG of mode L or P"),
    "cut": ((), "masks/03.png cannot be read"),
    "one class": ((), "hold 1 classes besides segment.ignore=7"),
    "class": (
        (),
        "masks/00.png holds class 9, but the train masks hold none above 2; if 9 marks pixels without a class",
    ),
    "names": (("segment.classes=[a,b]",), "holds class 2, but segment.classes names none above 1"),
    "names twice": (("segment.classes=[a,b,a]",), "names a class twice"),
    "crop": (("segment.crop=15",), "segment.crop=15x15 is not a multiple of the patch size 4; the nearest is 16x16"),
    "data": (("data=shapes",), "segment reads no labelled images; it takes segment.data=FOLDER"),
    "diverged": ((), "loss is not finite: lower segment.lr, or the encoder's training diverged"),
}


@pytest.mark.parametrize("change", MISTAKES)
def test_a_mistake_is_one_line(place: Path, tmp_path: Path, change: str) -> None:
    broken(tmp_path / "data", change)
    options, told = MISTAKES[change]
    weights = str(tmp_path / "nan") if change == "diverged" else "vit"
    if change == "diverged":
        save(tmp_path / "nan", "vit", std=float("nan"), **VIT)
    options = ("segment.ignore=7", "segment.size=[24,32]", "segment.epochs=1", *options)
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        run(place, *options, weights=weights, data=str(tmp_path / "data"))
    assert "\n" not in str(raised.value)


def test_the_folder_is_asked_for(place: Path) -> None:
    for options, told in (
        ((), "eval: probe 'segment' needs the option 'data': folder of images and masks, segment.data=FOLDER."),
        (("segment.data=nowhere",), "segment.data=nowhere: no such folder"),
    ):
        with pytest.raises(UserError) as raised:
            list(score(place / "vit", ["segment"], options, place / "eval.json"))
        assert str(raised.value) == told


MACHADO = {  # as eyes with two kinds of cones see linear RGB (Machado et al. 2009, severity 1)
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("eyes", MACHADO)
def test_twelve_classes_and_black_are_told_apart_by_all_eyes(eyes: str) -> None:
    """Distances in CIELAB: 2.3 is just noticeable; published palettes of twelve reach 3 to 10."""
    colours = np.array([*class_colours(12), (0, 0, 0)])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(MACHADO[eyes]).T, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = seen @ np.array(to_xyz).T / (0.9505, 1, 1.089)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * root[:, 1] - 16, *(k * (root[:, i] - root[:, i + 1]) for i, k in enumerate((500, 200)))], 1)
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(13, 1)]
    assert apart.min() > 18


def test_there_are_as_many_colours_as_classes() -> None:
    colours = class_colours(150)
    assert len({tuple(round(255 * part) for part in colour) for colour in colours}) == 150
    assert colours[:12] == class_colours(12) and min(max(colour) for colour in colours) > 0.3


def test_a_legend_has_the_exact_colours_below_the_images(tmp_path: Path) -> None:
    legend = {f"class {number}": colour for number, colour in enumerate(class_colours(9))}
    tiles = {"image": torch.zeros(2, 3, 12, 16)}
    draw_sheet(tiles, "a caption", tmp_path / "with.png", legend)
    draw_sheet(tiles, "a caption", tmp_path / "without.png")
    with_legend, without = (np.asarray(Image.open(tmp_path / f"{name}.png"))[..., :3] for name in ("with", "without"))
    added = len(with_legend) - len(without)
    assert added > 0 and np.array_equal(with_legend[: -added - 40], without[:-40])
    for colour in legend.values():
        exact = (with_legend[-added - 40 :] == np.round(255 * np.array(colour)).astype(np.uint8)).all(-1)
        assert exact.sum() >= 11 * 11
