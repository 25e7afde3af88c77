"""`mimkit show RUN mask…`: other masks for a run's weights, one by one and side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mimkit
from mimkit.data.open import open_data
from mimkit.drawing.sheet import GAP, LINE
from mimkit.errors import UserError
from mimkit.evaluate.features import sample_views
from mimkit.evaluate.reconstruction import reconstruct
from mimkit.model import Model
from mimkit.saved.encoder import save_encoder
from mimkit.show.run import draw
from mimkit.weights import checkpoint

SIDE = 11 * 16  # of a tile


def save_run(folder: Path, recipe: dict[str, Any], *overrides: str) -> Path:
    """A run's folder as training leaves it, with weights as they were drawn."""
    torch.manual_seed(2)
    model = mimkit.build(recipe, *overrides)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(model.recipe.to_yaml())
    checkpoint.save(folder / "checkpoints", 5, model, [torch.optim.AdamW(model.parameters())], {}, keep=1)
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    return save_run(tmp_path / "run", tiny)


def shown(run: Path, *given: str, count: int = 2) -> np.ndarray:
    """The sheet, (columns, rows, height, width, 3)."""
    told = draw(run, None, run / "show.png", count, given)
    assert told == f"{run / 'show.png'}: reconstructions of {run} at step-00000005"
    with Image.open(run / "show.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    columns, rest = divmod(sheet.shape[1] - GAP, SIDE + GAP)
    assert rest == 0
    top = len(sheet) - GAP - LINE - count * (SIDE + GAP)  # a caption of one line below
    tiles = sheet[top : top + count * (SIDE + GAP), GAP:].reshape(count, SIDE + GAP, columns, SIDE + GAP, 3)
    return tiles.transpose(2, 0, 1, 3, 4)[:, :, :SIDE, :SIDE]


def test_masks_side_by_side_are_those_that_are_drawn_alone(run: Path) -> None:
    """Original, then for each ratio what is masked and the prediction pasted in."""
    ratios = ("mask.ratio=0.25", "mask.ratio=0.75")
    sheet = shown(run, "mask.ratio=0.25,0.75")
    assert len(sheet) == 5
    for number, ratio in enumerate(ratios):
        alone = shown(run, ratio)
        assert len(alone) == 5
        assert np.array_equal(sheet[0], alone[0])
        assert np.array_equal(sheet[1 + 2 * number : 3 + 2 * number], alone[1:3])
    grey = [(tiles == 128).all(-1).mean() for tiles in sheet[1::2]]
    assert grey == pytest.approx([0.25, 0.75], abs=0.02)


def test_the_mask_is_that_of_the_override_and_of_seed_0(run: Path, tiny: dict[str, Any]) -> None:
    """The run's own seed is 3. By the model itself, with the weights of the checkpoint."""

    def hidden(*overrides: str, seed: int) -> np.ndarray:
        model: Model = mimkit.build(tiny, *overrides)
        checkpoint.load_model(run / "checkpoints" / "step-00000005", model)
        data = open_data("shapes", {"num_images": 60, "num_test": 20}, (16, 16), 3)
        found = reconstruct(model, sample_views(data, model.encoder, 2), seed)
        return found.mask.hidden.view(2, 4, 4).numpy().repeat(44, 1).repeat(44, 2)

    for given, wanted in (
        ((), hidden(seed=0)),
        (("mask=grid",), hidden("mask=grid", seed=0)),
        (("mask=block", "mask.ratio=0.5", "seed=7"), hidden("mask=block", "mask.ratio=0.5", seed=7)),
    ):
        assert np.array_equal((shown(run, *given)[1] == 128).all(-1), wanted)


def test_every_combination_is_a_block(run: Path) -> None:
    assert len(shown(run, "mask=random,block", "seed=0,1,2")) == 1 + 2 * 6


def test_features_are_shown_beside_one_target(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Original and target, then for each mask what is masked, the prediction and its loss."""
    run = save_run(tmp_path / "run", tiny, "target=hog")
    sheet, alone = shown(run, "mask=random,grid"), shown(run, "mask=grid")
    assert len(sheet) == 2 + 2 * 3 and len(alone) == 5
    assert np.array_equal(sheet[:2], alone[:2]) and np.array_equal(sheet[5:], alone[2:])


REFUSED = {
    "another encoder": (("encoder.depth=1",), "only the mask"),
    "another target beside a mask": (("mask=grid", "target=hog"), r"override 'target=hog'.*only the mask"),
    "a mask that needs other weights": (("mask.feed=all",), "absent there"),
    "an option that the mask does not have": (("mask.ration=0.5",), "did you mean 'ratio'"),
    "a value out of range": (("mask.ratio=0.5,1.5",), "less than 1"),
    "more masks than a sheet holds": (("seed=" + ",".join(map(str, range(13))),), "13 masks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_weights_cannot_follow_is_refused_in_one_line(run: Path, name: str) -> None:
    given, told = REFUSED[name]
    with pytest.raises(UserError, match=told) as raised:
        draw(run, None, run / "show.png", 2, given)
    assert "\n" not in str(raised.value) and not (run / "show.png").exists()


def test_an_encoder_has_no_mask_to_change(tmp_path: Path, tiny: dict[str, Any]) -> None:
    model = mimkit.build(tiny)
    save_encoder(tmp_path, model.encoder, "vit", model.recipe.encoder.options)
    with pytest.raises(UserError, match="no mask to change"):
        draw(tmp_path / "encoder.safetensors", "shapes", tmp_path / "show.png", 2, ("mask=grid",))
