"""Batches: the same for any number of workers and any start, whole epochs, bad images replaced and named."""

import io
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data.batches import Batches
from mimkit.data.crops import RandomCrop
from mimkit.data.source import Pixels, Source
from mimkit.data.sources.folder import Folder
from mimkit.data.sources.shapes import Shapes
from mimkit.data.views import views
from mimkit.errors import UserError

WHOLE = RandomCrop(scale=(1, 1), ratio=(1, 1), flip=0)


class Numbered(Source):
    """Grey images of one pixel value each, the index."""

    def __init__(self, count: int, side: int):
        super().__init__("numbered")
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def open(self, index: int) -> Pixels:
        return Pixels(torch.full((1, self.side, self.side), index, dtype=torch.uint8))


def write_photo(path: Path, number: int, size: tuple[int, int] = (61, 47)) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


@pytest.fixture
def photos(tmp_path):
    for number in range(23):
        write_photo(tmp_path / f"{number:02}.jpg", number, (61 + number, 47 + 3 * number))
    return tmp_path


def take(batches: Batches, step: int, count: int) -> torch.Tensor:
    stream = batches.start(step)
    taken = torch.stack([views["image"] for views in islice(stream, count)])
    stream.close()
    return taken


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_batches(photos, workers):
    make = lambda n: Batches(Folder(path=str(photos)), (31, 23), 3, 5, seed=3, workers=n)  # noqa: E731
    assert make(0).images is None
    assert torch.equal(take(make(workers), 2, 5), take(make(0), 2, 5))


@pytest.mark.parametrize("side", [20, 200])  # in memory, and decoded one by one
def test_a_start_at_any_step_goes_on_as_the_whole(side):
    make = lambda: Batches(Numbered(23, side), (11, 13), 1, 5, seed=1)  # noqa: E731
    whole = take(make(), 0, 13)
    for step in (1, 3, 4, 9):
        assert torch.equal(take(make(), step, 3), whole[step : step + 3])


def test_small_and_large_images_are_taken_in_the_same_order():
    small, large = (take(Batches(Numbered(23, s), (8, 8), 1, 5, crop=WHOLE), 0, 9)[..., 0, 0] for s in (20, 200))
    assert torch.equal(small, large)


def test_an_epoch_holds_each_image_once():
    batches = Batches(Numbered(23, 8), (8, 8), 1, 5, seed=2, crop=WHOLE)
    assert batches.steps_per_epoch == 4
    first, second = (take(batches, 4 * epoch, 4)[:, :, 0, 0, 0].flatten().tolist() for epoch in (0, 1))
    assert len(set(first)) == len(set(second)) == 20
    assert first != second


def test_ranks_share_one_order():
    alone = take(Batches(Numbered(23, 8), (8, 8), 1, 6, crop=WHOLE), 0, 3)
    ranks = [take(Batches(Numbered(23, 8), (8, 8), 1, 3, crop=WHOLE, rank=r, world_size=2), 0, 3) for r in (0, 1)]
    assert torch.equal(torch.cat(ranks, dim=1), alone)


def test_crops_differ_between_epochs_and_samples():
    images = take(Batches(Shapes(num_images=8), (32, 32), 3, 8), 0, 2)
    assert not torch.equal(images[0].sort(0).values, images[1].sort(0).values)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_neither_read_nor_moved(photos, workers):
    make = lambda: Batches(Folder(path=str(photos)), (16, 16), 3, 4, workers=workers)  # noqa: E731
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = take(make(), 0, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.manual_seed(2)
    np.random.seed(5)  # noqa: NPY002
    assert torch.equal(take(make(), 0, 2), first)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_and_named_once(photos, workers):
    for name in ("03.jpg", "17.jpg"):
        (photos / name).write_bytes((photos / name).read_bytes()[:300])
    told = []
    make = lambda n: Batches(  # noqa: E731
        Folder(path=str(photos)), (16, 16), 3, 4, workers=n, max_bad=0.1, on_bad=lambda *line: told.append(line)
    )
    batches = make(workers)
    images = take(batches, 0, 10)
    assert sorted(batches.bad) == [3, 17]
    assert Counter(Path(file).name for file, _ in told) == {"03.jpg": 1, "17.jpg": 1}
    assert all(reason.startswith("its ") for _, reason in told)
    assert json.dumps(told)
    assert torch.equal(take(make(0), 4, 3), images[4:7])  # the replacement does not depend on what was met before
    assert not (images.float().std((-1, -2)) < 1).any()  # none is grey


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_images_stop_with_one_line(photos, workers):
    for name in ("03.jpg", "17.jpg"):
        (photos / name).write_text("<html>not found</html>")
    with pytest.raises(
        UserError, match=r"2 of 23 images \(8.7%\) cannot be read, such as .*jpg: .*data.max_bad"
    ) as error:
        take(Batches(Folder(path=str(photos)), (16, 16), 3, 4, workers=workers), 0, 20)
    assert "\n" not in str(error.value)


def test_no_bad_image_is_allowed_where_max_bad_is_zero(photos):
    (photos / "05.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 23"):
        take(Batches(Folder(path=str(photos)), (16, 16), 3, 4, max_bad=0), 0, 20)


def test_all_images_bad_ends(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        take(Batches(Folder(path=str(tmp_path)), (16, 16), 3, 4, max_bad=1.0), 0, 1)


@pytest.mark.parametrize("side", [20, 200])
def test_wrong_number_of_channels_says_which_would_fit(side):
    class Satellite(Numbered):
        def open(self, index: int) -> Pixels:
            return Pixels(torch.zeros(12, self.side, self.side, dtype=torch.uint8))

    with pytest.raises(UserError, match=r"encoder\.in_chans=12 would fit"):
        take(Batches(Satellite(9, side), (8, 8), 3, 4), 0, 1)


def test_fewer_images_than_a_batch_says_what_would_fit():
    with pytest.raises(UserError, match=r"7 images are fewer than the 16 of one step; data.batch_size=3 would fit"):
        Batches(Numbered(7, 8), (8, 8), 1, 8, world_size=2)


def test_a_dead_worker_is_an_error_and_not_a_hang(photos):
    import os
    import signal

    import torch.multiprocessing as mp

    stream = Batches(Folder(path=str(photos)), (16, 16), 3, 4, workers=1).start(0)
    next(stream)
    for worker in mp.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"data\.workers"):
        for _ in range(1000):
            next(stream)


def test_views_are_the_covering_centre_at_any_size():
    """Against Pillow: cut the centre, resize."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)

    class One(Numbered):
        def open(self, index: int) -> Pixels:
            return Pixels(torch.from_numpy(pixels).permute(2, 0, 1))

    view = views(One(2, 0), (20, 20), 3, [1])
    expected = Image.fromarray(pixels[:, 10:40]).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.abs(view[0].permute(1, 2, 0).numpy().astype(int) - np.array(expected).astype(int)).max() <= 1


def test_views_name_what_cannot_be_read(photos):
    (photos / "01.jpg").write_bytes(b"")
    source, bad = Folder(path=str(photos)), {}
    with pytest.raises(UserError, match=r"01\.jpg: the file is empty"):
        views(source, (16, 16), 3, [0, 1, 2])
    shown = views(source, (16, 16), 3, [0, 1, 2], bad)
    assert bad == {1: "the file is empty"}
    assert not shown[1].any() and shown[0].any() and shown[2].any()


def test_a_scaled_jpeg_looks_like_the_whole_one_resized(tmp_path):
    """Against Pillow on the fully decoded image; the picture is smooth, as photographs are."""
    write_photo(tmp_path / "large.jpg", 0, (1201, 901))
    data = Folder(path=str(tmp_path)).open(0)
    assert data.pixels(3, (224, 224)).shape == (3, 226, 301)
    assert data.pixels(3, (227, 224)).shape == (3, 338, 451)
    assert data.pixels(3, (451, 601)).shape == (3, 451, 601)
    assert data.pixels(3, (452, 601)).shape == (3, 901, 1201)
    view = views(Folder(path=str(tmp_path)), (64, 64), 3, [0])[0].permute(1, 2, 0).numpy()
    whole = Image.open(io.BytesIO((tmp_path / "large.jpg").read_bytes())).crop((150, 0, 1051, 901))
    expected = np.array(whole.resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(view.astype(int) - expected.astype(int)).mean() < 2
