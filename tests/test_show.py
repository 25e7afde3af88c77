"""Pictures: real PNGs of the expected size, whose pixels are what their titles say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mimkit
from mimkit.drawing.colours import fit_components, rgb
from mimkit.drawing.sheet import GAP, LINE, draw_sheet
from mimkit.errors import UserError
from mimkit.evaluate.reconstruction import reconstruct
from mimkit.losses import cross_entropy
from mimkit.show.curves import draw_curves, running_mean
from mimkit.show.features import _encode, draw_features
from mimkit.show.reconstruction import draw_reconstructions
from mimkit.types import Target, as_float
from tests.test_reconstruction import Codes, Oracle, small_model, with_oracle

SCALE = 9  # images of 12 x 20 become tiles of 108 x 180


class Means(Target):
    """Mean of each place's pixels and channels and two of its pixels: features, not pixels."""

    dim = 3

    def forward(self, images: Tensor) -> Tensor:
        patches = as_float(images).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        return torch.stack([patches.mean(-1), patches[..., 0], patches[..., -1]], -1)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def tile(sheet: np.ndarray, row: int, column: int, title_lines: int) -> np.ndarray:
    """A tile brought back to the image's own size (12, 20, 3); every one of its pixels must be a flat square."""
    top = GAP + LINE * title_lines + GAP + row * (12 * SCALE + GAP)
    left = GAP + column * (20 * SCALE + GAP)
    enlarged = sheet[top : top + 12 * SCALE, left : left + 20 * SCALE]
    small = enlarged[::SCALE, ::SCALE]
    assert np.array_equal(enlarged, small.repeat(SCALE, 0).repeat(SCALE, 1))
    return small


def width(columns: int) -> int:
    return columns * (20 * SCALE + GAP) + GAP


@pytest.mark.parametrize("mask", ["random", {"name": "block", "rule": "at_most", "feed": "all"}])
def test_an_oracle_pastes_the_original(tmp_path: Path, images: Tensor, mask: Any) -> None:
    model = with_oracle(small_model(target="pixels", mask=mask), images)
    draw_reconstructions(model, images, tmp_path / "new" / "picture.png")
    sheet = read(tmp_path / "new" / "picture.png")
    hidden = reconstruct(model, images).mask.hidden.view(3, 3, 5).numpy().repeat(4, 1).repeat(4, 2)
    assert sheet.shape[1] == width(4)
    for row, original in enumerate(images.permute(0, 2, 3, 1).numpy()):
        shown, masked, pasted, alone = (tile(sheet, row, column, 2) for column in range(4))
        assert np.array_equal(shown, original) and np.array_equal(pasted, original)
        assert np.array_equal(masked, np.where(hidden[row, ..., None], 128, original))
        assert np.array_equal(alone, np.where(hidden[row, ..., None], original, 128))
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "picture.png"]


def test_only_the_last_column_knows_the_true_statistics(tmp_path: Path, images: Tensor) -> None:
    draw_reconstructions(with_oracle(small_model(), images), images, tmp_path / "picture.png")
    sheet = read(tmp_path / "picture.png")
    assert sheet.shape[1] == width(5)
    for row, original in enumerate(images.permute(0, 2, 3, 1).numpy()):
        assert np.array_equal(tile(sheet, row, 4, 4), original)
        assert not np.array_equal(tile(sheet, row, 2, 4), original)


def test_features_and_codes_are_drawn_as_maps(tmp_path: Path, images: Tensor) -> None:
    model: Any = small_model(normalizer="none")
    objective = model.objectives["main"]
    objective.target = Means()
    draw_reconstructions(with_oracle(model, images), images, tmp_path / "features.png")
    assert read(tmp_path / "features.png").shape[1] == width(5)

    logits = torch.nn.functional.one_hot(torch.arange(15), 15).float().expand(3, -1, -1).clone()
    logits[:, 8:] = 0  # the code 0, wrong
    objective.target, objective.head, objective.compare = Codes(), Oracle(logits), cross_entropy()
    draw_reconstructions(model, images, tmp_path / "codes.png")
    sheet, hidden = read(tmp_path / "codes.png"), reconstruct(model, images).mask.hidden
    colours = torch.from_numpy(tile(sheet, 1, 2, 2)[::4, ::4].astype(int)).view(15, 3)
    assert (colours[~hidden[1]] == 128).all()
    assert (colours[:8][hidden[1, :8]] == torch.tensor([33, 102, 171])).all()
    assert (colours[8:][hidden[1, 8:]] == torch.tensor([240, 138, 51])).all()


@pytest.mark.parametrize("chans", [1, 2, 4, 12])
def test_any_number_of_channels_is_drawn(tmp_path: Path, chans: int) -> None:
    images = torch.randint(0, 256, (9, chans, 12, 20), dtype=torch.uint8)
    model = small_model(chans=chans)
    draw_reconstructions(model, images, tmp_path / "picture.png")
    draw_features(model.encoder, images, tmp_path / "features.png")
    shown = torch.from_numpy(tile(read(tmp_path / "picture.png"), 7, 0, 4).copy()).permute(2, 0, 1)
    drawn = min(chans, 3)
    assert torch.equal(shown[:drawn], images[7, :drawn])
    assert rgb(as_float(images)).shape == (9, 3, 12, 20)


def test_the_sheet_takes_no_more_than_eight_rows(tmp_path: Path) -> None:
    draw_reconstructions(small_model(), torch.rand(11, 3, 12, 20), tmp_path / "picture.png")
    assert read(tmp_path / "picture.png").shape[0] == GAP + (4 * LINE + GAP) + 8 * (12 * SCALE + GAP) + LINE + GAP


def test_narrow_images_leave_room_for_titles(tmp_path: Path) -> None:
    draw_sheet({"a title": torch.rand(2, 3, 40, 8)}, "a caption " * 9, tmp_path / "sheet.png")
    assert read(tmp_path / "sheet.png").shape[1] == 168 + 2 * GAP


def test_components_follow_the_largest_variance() -> None:
    """By hand: values vary along three axes with falling width, so the axes are the components."""
    wide = torch.randn(200, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 9.0, 0.1, 3.0, 0.1])
    colours = fit_components(wide)(wide)
    for component, axis in enumerate((1, 3, 0)):
        order = torch.corrcoef(torch.stack([colours[:, component], wide[:, axis]]))[0, 1]
        assert order > 0.97
    assert colours.min() == 0 and colours.max() == 1
    assert fit_components(wide[:, :1])(wide[:, :1])[:, 1:].unique().tolist() == [0.5]


def test_attention_is_the_softmax_of_the_last_blocks_queries_and_keys(images: Tensor) -> None:
    """Against the weights computed from the block's qkv."""
    encoder: Any = small_model().encoder.eval()
    features, attention = _encode(encoder, images)
    before = encoder(images, layers=(0,)).layers[0]
    block = encoder.timm_model.blocks[1]
    q, k, _ = block.attn.qkv(block.norm1(before)).view(3, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)[:, :, 0, 1:].mean(1)
    torch.testing.assert_close(attention, weights)
    torch.testing.assert_close(features.sequence, encoder(images).sequence)
    assert block.attn.fused_attn == encoder.timm_model.blocks[0].attn.fused_attn


def test_features_without_a_class_token_have_two_columns(tmp_path: Path, images: Tensor) -> None:
    for class_token, columns in ((True, 3), (False, 2)):
        encoder = small_model((12, 20), f"encoder.class_token={str(class_token).lower()}").encoder
        draw_features(encoder, images, tmp_path / "features.png")
        assert read(tmp_path / "features.png").shape[1] == width(columns)
        assert encoder.training


def test_the_running_mean_follows_the_beginning_and_smooths_the_end() -> None:
    """By hand."""
    assert running_mean(np.array([1.0, 2.0, 6.0, 7.0, 20.0]), 1).tolist() == [1, 3, 5, 11, 13.5]


def test_curves_leave_out_an_unfinished_line(tmp_path: Path) -> None:
    steps = [{"step": s, "epoch": s / 10, "loss": 1 / s, "lr": 1e-3} for s in range(1, 40)]
    probes = [{"step": s, "epoch": s / 10, "probe": "knn", "knn_top1": 20.0 + s} for s in (0, 20, 39)]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in probes[:1] + steps + probes[1:]))
    draw_curves(metrics, tmp_path / "whole.png")
    with metrics.open("a") as file:
        file.write('{"step": 40, "loss": 0.0')
    draw_curves(metrics, tmp_path / "cut.png")
    assert np.array_equal(read(tmp_path / "whole.png"), read(tmp_path / "cut.png"))
    assert read(tmp_path / "cut.png").shape[1] == 1200


def test_curves_without_a_loss_or_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "probe": "knn", "knn_top1": 20.0}\n{"st')
    with pytest.raises(UserError, match="no loss yet"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with pytest.raises(UserError, match="cannot be read"):
        draw_curves(tmp_path / "absent.jsonl", tmp_path / "loss.png")


def test_a_direction_is_drawn_whatever_its_length(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """With a cosine loss a prediction seven times as long is the same prediction, and the same picture."""
    model = mimkit.build(tiny, "target=hog", "loss=cosine")
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    draw_reconstructions(model, images, tmp_path / "once.png")
    predict: Any = model.objectives["main"].get_submodule("head.predict")
    with torch.no_grad():
        predict.weight *= 7
        predict.bias *= 7
    draw_reconstructions(model, images, tmp_path / "longer.png")
    once, longer = (read(tmp_path / name).astype(int) for name in ("once.png", "longer.png"))
    assert np.abs(once - longer).max() <= 1
