"""HOG: figures of the authors' own code, ramps, and a loop over the pixels of a small image."""

import math

import pytest
import torch
from mimkit.targets.hog import HOG

import mimkit
from mimkit.errors import UserError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def waves(side=224):
    """img[c, y, x] = sin(0.1 x + 0.2 y + c) + 0.01 x (c + 1), as if standardised already."""
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    return torch.stack([torch.sin(0.1 * x + 0.2 * y + c) + 0.01 * x * (c + 1) for c in range(3)])[None]


@pytest.mark.parametrize(
    ("window", "total", "first"),
    [(16, 2794.699, [0.23214, 0.11359, 0.09604, 0.00548]), (0, 2803.752, [0.25039, 0.11826, 0.12727, 0.00939])],
)
def test_figures_of_the_authors_code(window, total, first):
    """Against the HOG of OpenMMLab's MaskFeat (window 16) and of SlowFast's (none) on the same image."""
    target = HOG(image_size=(224, 224), patch_size=16, gaussian_window=window, **PLAIN)
    values = target(waves())
    assert values.shape == (1, 196, 108) and target.dim == 108
    assert values.sum().item() == pytest.approx(total, abs=2e-3)
    assert values[0, 0, :4].tolist() == pytest.approx(first, abs=6e-6)


@pytest.mark.parametrize(("axis", "bin_"), [(1, 4), (0, 0)], ids=["rightwards", "downwards"])
def test_a_ramp_falls_into_the_authors_bin(axis, bin_):
    """Brightness rising to the right is bin 4 of 9, rising downwards bin 0, in each cell and channel."""
    ramp = torch.linspace(0, 1, 32).view((-1, 1) if axis == 0 else (1, -1)).expand(2, 3, 32, 32)
    histograms = HOG(image_size=(32, 32), patch_size=16)(ramp).view(2, 4, 3, 9, 2, 2)
    wanted = torch.zeros(9)
    wanted[bin_] = 1
    torch.testing.assert_close(histograms, wanted.view(9, 1, 1).expand_as(histograms))


def by_hand(image, patch, cell, bins, window):
    """The definition, pixel by pixel in Python floats: (L, C·bins·k·k)."""
    channels, height, width = image.shape
    k, (rows, columns) = patch // cell, (height // patch, width // patch)

    def pixel(c, y, x):  # reflected at the border without repeating it
        y, x = abs(y), abs(x)
        return float(image[c, min(y, 2 * height - 2 - y), min(x, 2 * width - 2 - x)])

    sums = torch.zeros(rows, columns, channels, bins, k, k, dtype=torch.float64)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                smooth = ((-1, 1), (0, 2), (1, 1))
                gx = sum(n * (pixel(c, y + d, x - 1) - pixel(c, y + d, x + 1)) for d, n in smooth)
                gy = sum(n * (pixel(c, y - 1, x + d) - pixel(c, y + 1, x + d)) for d, n in smooth)
                weight = 1.0
                if window:
                    away = [(n % window - (window - 1) / 2) / (window / 2) for n in (y, x)]
                    weight = math.exp(-0.5 * (away[0] ** 2 + away[1] ** 2))
                bin_ = math.floor(math.atan2(gx, gy) / math.pi * bins) % bins
                inside = (y % patch // cell, x % patch // cell)
                sums[y // patch, x // patch, c, bin_, *inside] += weight * math.hypot(gx, gy)
    return (sums / sums.norm(dim=3, keepdim=True)).reshape(rows * columns, -1)


@pytest.mark.parametrize(
    ("channels", "size", "options"),
    [
        (3, (16, 24), {"patch_size": 8, "gaussian_window": 16}),  # the window is cut at the right edge
        (1, (10, 15), {"patch_size": 5, "cell_size": 5, "gaussian_window": 0}),
        (4, (12, 6), {"patch_size": 6, "cell_size": 2, "gaussian_window": 5, "bins": 6}),
    ],
)
def test_pixel_by_pixel(channels, size, options):
    """Oblong images, other numbers of channels, bins and cells, odd windows."""
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    values = HOG(image_size=size, in_chans=channels, **options, **scale)(image.float())[0]
    cell = options.get("cell_size", options["patch_size"] // 2)
    wanted = by_hand(image[0].float(), options["patch_size"], cell, options.get("bins", 9), options["gaussian_window"])
    torch.testing.assert_close(values, wanted.float(), rtol=1e-5, atol=1e-5)


def test_flat_images_give_zeros():
    """By definition: no gradient, no direction, and no division by zero."""
    assert not HOG(image_size=(16, 16), patch_size=8)(torch.full((1, 3, 16, 16), 0.3)).any()


def test_float32_under_autocast():
    """Autocast changes nothing: bytes in, the same float32 out."""
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    target = HOG(image_size=(32, 48), patch_size=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = target(images)
    assert values.dtype == torch.float32 and torch.equal(values, target(images))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"patch_size": 5}, r"target\.cell_size=2 must divide the patch of 5 pixels; fits: 1, 5$"),
        ({"patch_size": 8, "cell_size": 3}, r"cell_size=3 must divide the patch of 8 pixels; fits: 1, 2, 4, 8$"),
        ({"patch_size": 1}, r"fits: 1$"),
    ],
)
def test_cells_that_do_not_fit_are_told(options, told):
    with pytest.raises(UserError, match=told):
        HOG(image_size=(40, 40), **options)


def test_a_model_predicts_the_histograms_of_hidden_places(tiny):
    """The loss is the mean square against the loop above; normalizer and loss follow the target."""
    tiny |= {"image_size": [16, 24], "mask": {"name": "random", "ratio": 0.5, "feed": "all"}, "head": "linear"}
    model = mimkit.build(tiny | {"target": "hog"})
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    out = model(images, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([by_hand(image, 4, 2, 9, 16) for image in images])[out.mask.hidden].float()
    torch.testing.assert_close(out.target.flatten(0, 1), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss, (out.prediction.flatten(0, 1) - wanted).square().mean(), rtol=1e-5, atol=0)
