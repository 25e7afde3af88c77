"""The parts of segmentation: heads against transformers' BEiT, IoU against scikit-learn, windows and crops by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor, nn

from mimkit.errors import UserError
from mimkit.evaluate.segment.crops import Crops
from mimkit.evaluate.segment.data import MaskedImages
from mimkit.evaluate.segment.geometry import Geometry, geometry
from mimkit.evaluate.segment.heads import Linear, UperNet
from mimkit.evaluate.segment.metric import Confusion
from mimkit.evaluate.segment.network import Segmenter, pixel_loss, train
from mimkit.evaluate.segment.pairs import Pairs
from mimkit.evaluate.segment.windows import sliding_logits
from mimkit.types import Features
from tests.encoders import make, pictures


def test_upernet_is_beits() -> None:
    """Against transformers' BeitForSemanticSegmentation, whose head and rescaling are the authors': logits and gradients."""
    from transformers import BeitConfig, BeitForSemanticSegmentation

    width, grid = 8, (4, 6)
    config = BeitConfig(
        hidden_size=width, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, num_labels=5,
        out_indices=[1, 2, 3, 4], use_auxiliary_head=False, image_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = BeitForSemanticSegmentation(config).double().train()
    ours = UperNet(width, 4, 16, 5, width).double().train()
    of_head = [*theirs.decode_head.parameters()]  # the classifier first
    pairs = list(zip(ours.parameters(), [*theirs.fpn.parameters(), *of_head[2:], *of_head[:2]], strict=True))
    with torch.no_grad():
        for mine, other in pairs:
            mine.copy_(other.copy_(torch.randn_like(other) * 0.3))
    sequences = [torch.randn(3, 25, width, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    maps = [sequence[:, 1:].mT.unflatten(2, grid) for sequence in sequences]
    wanted = theirs.decode_head(list(theirs.fpn(tuple(maps))))
    found = ours(Features(sequences[3], 1, grid, layers=tuple(sequences)))
    assert found.shape == (3, 5, 16, 24)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(wanted)
    by_ours = torch.autograd.grad((found * weight).sum(), [*(mine for mine, _ in pairs), *sequences])
    by_theirs = torch.autograd.grad((wanted * weight).sum(), [*(other for _, other in pairs), *sequences])
    for mine, other in zip(by_ours, by_theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("depth", "patch", "layers", "finest"),
    [(12, 16, (2, 5, 8, 11), (28, 20)), (6, 8, (1, 2, 4, 5), (14, 10)), (2, 4, (0, 0, 1, 1), (7, 5))],
)
def test_upernets_finest_map_has_places_of_four_pixels(
    depth: int, patch: int, layers: tuple[int, ...], finest: tuple[int, int]
) -> None:
    head = UperNet(8, depth, patch, 3, 4)
    assert head.layers == layers
    sequence = torch.randn(2, 35, 8)
    assert head(Features(sequence, 0, (7, 5), layers=(sequence,) * 4)).shape == (2, 3, *finest)


def test_the_linear_head_normalises_over_all_tokens_of_the_batch() -> None:
    """By hand, in float64."""
    torch.manual_seed(1)
    head = Linear(6, 4).double().train()
    sequence = torch.randn(3, 1 + 10, 6, dtype=torch.float64)
    tokens = sequence[:, 1:]
    normed = (tokens - tokens.mean((0, 1))) / (tokens.var((0, 1), unbiased=False) + 1e-5).sqrt()
    wanted = normed @ head.classify.weight[:, :, 0, 0].T + head.classify.bias
    found = head(Features(sequence, 1, (2, 5)))
    torch.testing.assert_close(found, wanted.mT.unflatten(2, (2, 5)))


def test_iou_is_scikit_learns() -> None:
    """Pixels without a class left out, class 4 in neither, class 3 in the truth only, in two batches."""
    draw = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (6, 7, 5), generator=draw).byte()
    predicted = torch.randint(0, 3, (6, 7, 5), generator=draw)
    truth[torch.rand(truth.shape, generator=draw) < 0.2] = 9
    found = Confusion(5, ignore=9)
    found.add(predicted[:2], truth[:2])
    found.add(predicted[2:], truth[2:])
    counted = truth != 9
    flat = truth[counted].numpy(), predicted[counted].numpy()
    assert found.iou[:4] == pytest.approx(100 * jaccard_score(*flat, average=None, labels=range(4)))
    assert found.iou[4] is None and found.iou[3] == 0
    assert found.miou == pytest.approx(100 * jaccard_score(*flat, average="macro"))
    assert found.pixel_accuracy == pytest.approx(100 * accuracy_score(*flat))


def test_the_loss_counts_only_pixels_with_a_class() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    masks = torch.randint(0, 3, (2, 4, 5)).byte()
    masks[0, :2], masks[1] = 1, 1  # here 1 is no class
    counted = masks[0] != 1
    wanted = F.cross_entropy(logits[0].permute(1, 2, 0)[counted], masks[0][counted].long())
    torch.testing.assert_close(pixel_loss(logits, masks, 1), wanted)
    nothing = pixel_loss(logits, torch.full_like(masks, 1), 1)
    nothing.backward()
    assert nothing == 0 and logits.grad is not None and not logits.grad.any()


def position_dependent(images: Tensor) -> Tensor:
    """Logits that change with the place in the window, so that it matters which windows cover a pixel."""
    _, _, h, w = images.shape
    ramp = torch.arange(h * w, dtype=torch.float32).view(h, w)
    return torch.stack([images.sum(1) * ramp, images.mean(1) - ramp.T.reshape(h, w)], dim=1)


def test_one_window_is_a_plain_forward() -> None:
    images = torch.rand(2, 3, 8, 12)
    torch.testing.assert_close(sliding_logits(position_dependent, images, (8, 12), (5, 8)), position_dependent(images))


def test_windows_are_shifted_inside_and_averaged() -> None:
    """Against a loop over pixels that asks each window in turn."""
    images = torch.rand(2, 3, 11, 9)
    found = sliding_logits(position_dependent, images, (4, 5), (3, 2))
    tops, lefts = (0, 3, 6, 7), (0, 2, 4)  # 9 would leave the image
    for y in range(11):
        for x in range(9):
            cover = [(top, left) for top in tops for left in lefts if top <= y < top + 4 and left <= x < left + 5]
            each = [
                position_dependent(images[:, :, top : top + 4, left : left + 5])[:, :, y - top, x - left]
                for top, left in cover
            ]
            torch.testing.assert_close(found[:, :, y, x], torch.stack(each).mean(0))


COLOURS = np.array([[20, 30, 200], [200, 40, 30], [30, 200, 60]], dtype=np.uint8)


@pytest.fixture
def painted(tmp_path: Path) -> MaskedImages:
    """Images of unlike sizes whose colours say the class, and their masks."""
    from PIL import Image

    draw, images, masks, sizes = np.random.default_rng(0), [], [], []
    for number in range(7):
        height, width = 24 + 4 * number, 40 + 3 * number
        blocks = draw.integers(0, 3, (-(-height // 8), -(-width // 8)), dtype=np.uint8)
        mask = np.kron(blocks, np.ones((8, 8), dtype=np.uint8))[:height, :width]
        images.append(tmp_path / f"{number}-image.png")
        masks.append(tmp_path / f"{number}.png")
        Image.fromarray(COLOURS[mask]).save(images[-1])
        Image.fromarray(mask).save(masks[-1])
        sizes.append((height, width))
    return MaskedImages(Pairs("train", tuple(images), tuple(masks)), np.array(sizes), np.zeros((7, 256), dtype=bool))


def test_whole_images_and_masks_are_pillows_at_another_size(painted: MaskedImages) -> None:
    from PIL import Image

    images, masks = painted.whole(np.array([4, 1]), (17, 26), 3)
    for row, index in enumerate((4, 1)):
        image, mask = Image.open(painted.pairs.images[index]), Image.open(painted.pairs.masks[index])
        wanted = np.asarray(image.resize((26, 17), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(images[row].permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1
        assert np.array_equal(masks[row].numpy(), np.asarray(mask.resize((26, 17), Image.Resampling.NEAREST)))


def test_crops_show_the_same_place_of_image_and_mask(painted: MaskedImages) -> None:
    crops = Crops(painted, (32, 48), (16, 24), 3, batch_size=4, seed=5)
    right = []
    for step in range(5):
        images, masks = crops.batch(step)
        assert images.shape == (4, 3, 16, 24) and masks.shape == (4, 16, 24)
        distance = (images.permute(0, 2, 3, 1)[..., None, :].float() - torch.from_numpy(COLOURS)).square().sum(-1)
        right.append((distance.argmin(-1) == masks).float().mean())
    assert torch.stack(right).mean() > 0.93  # all but pixels on edges; mirrored or shifted ones agree to a third


def test_crops_depend_on_seed_and_step_alone(painted: MaskedImages) -> None:
    def drawn(seed: int, step: int) -> Tensor:
        return Crops(painted, (32, 48), (16, 24), 3, batch_size=3, seed=seed).batch(step)[0]

    assert torch.equal(drawn(1, 9), drawn(1, 9))
    assert not torch.equal(drawn(1, 9), drawn(1, 8)) and not torch.equal(drawn(1, 9), drawn(2, 9))


def test_each_image_is_met_once_an_epoch(painted: MaskedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    read = MaskedImages.read

    def noted(self: MaskedImages, indices: np.ndarray, *rest: Any) -> tuple[Tensor, Tensor]:
        met.extend(indices.tolist())
        return read(self, indices, *rest)

    monkeypatch.setattr(MaskedImages, "read", noted)
    crops = Crops(painted, (32, 48), (16, 24), 3, batch_size=3, seed=0)
    for step in range(7):
        crops.batch(step)
    epochs = [met[:7], met[7:14], met[14:21]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]


def test_boxes_are_crops_at_scales_from_a_half_to_two() -> None:
    """Of images that stand for 100 x 80: a crop of 50 x 20 shows 50/s x 20/s of them, and is never larger than they are."""
    images = MaskedImages(Pairs("train", (), ()), np.zeros((0, 2)), np.zeros((0, 256), dtype=bool))
    sizes = np.tile([[200, 400]], (4000, 1))
    draws = np.random.default_rng(0).random((4000, 4))
    boxes, flips = Crops(images, (100, 80), (50, 20), 3, 2, 0).boxes(sizes, draws)
    scale = 0.5 + 1.5 * draws[:, 0]
    assert (
        np.abs(boxes[:, 2] - 200 * 0.5 / scale).max() <= 0.5 and np.abs(boxes[:, 3] - 400 * 0.25 / scale).max() <= 0.5
    )
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    assert (boxes[:, 0] + boxes[:, 2] == 200).any() and (boxes[:, 1] == 0).any() and 0.45 < flips.mean() < 0.55
    whole, _ = Crops(images, (100, 80), (100, 80), 3, 2, 0).boxes(sizes, draws)
    assert whole[:, 2].max() == 200 and whole[:, 3].max() == 400  # scales below 1 are raised: nothing is padded


@pytest.mark.parametrize("frozen", [True, False])
def test_only_what_trains_is_trained(painted: MaskedImages, frozen: bool) -> None:
    """Frozen, the encoder stays in eval mode with the same bits; else it changes, and so does the head in both."""
    encoder = make("timm-vit").requires_grad_(False)
    encoder.timm_model.requires_grad_(not frozen)
    network = Segmenter(encoder, Linear(encoder.embed_dim, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes: list[bool] = []
    encoder.register_forward_hook(lambda module, given, out: modes.append(module.training))
    train(
        network,
        Crops(painted, (32, 48), (32, 48), 3, 4, 0),
        epochs=2,
        rates=(0.01, 0.001),
        weight_decay=0.1,
        ignore=255,
    )
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(modes) is not frozen and {"head.classify.weight", "head.norm.running_mean"} <= changed
    assert any(name.startswith("encoder.") for name in changed) is not frozen


@pytest.mark.parametrize("case", ["swin", "timm-convnext", "beit-shared"])
def test_logits_have_the_images_size_whatever_the_grid(case: str) -> None:
    encoder = make(case)
    network = Segmenter(encoder, Linear(encoder.embed_dim, 3)).eval()
    nn.init.normal_(network.head.classify.weight)
    images = pictures(encoder)
    found = network(images)
    tokens = encoder(images).tokens @ network.head.classify.weight[:, :, 0, 0].T / (1 + 1e-5) ** 0.5
    coarse = (tokens + network.head.classify.bias).mT.unflatten(2, encoder.out_grid)
    torch.testing.assert_close(found, F.interpolate(coarse, encoder.image_size, mode="bilinear"), rtol=1e-4, atol=1e-4)


def test_sizes_follow_from_the_encoder_and_from_each_other() -> None:
    encoder = make("beit-shared")  # 35 x 55, patch 5
    assert geometry(encoder, None, None, None) == Geometry((35, 55), (35, 55), (24, 37))
    assert geometry(encoder, 60, None, None) == Geometry((60, 60), (60, 60), (40, 40))
    assert geometry(encoder, (61, 99), (30, 45), 10) == Geometry((61, 99), (30, 45), (10, 10))
    for options, told in (
        ((63, None, None), "segment.size=63x63 is not a multiple of the patch size 5; the nearest is 65x65"),
        (((60, 90), (31, 44), None), "segment.crop=31x44 is not a multiple of the patch size 5; the nearest is 30x45"),
        ((60, 65, None), "segment.crop=65x65 is larger than the images, segment.size=60x60"),
        ((60, 30, 35), "segment.stride=35x35 is longer than segment.crop=30x30"),
    ):
        with pytest.raises(UserError, match=told):
            geometry(encoder, *options)
