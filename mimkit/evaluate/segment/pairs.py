"""Which images and masks of a folder belong together, and which of them are for the test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimkit.data.files import EXTENSIONS, list_files
from mimkit.errors import UserError

MASK_FOLDERS = ("annotations", "masks", "labels")
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "validation")  # the first that is there
HELD_OUT = 10  # one image in so many, by name, is for the test where there are no such folders
LAYOUT = (
    "images/train/NAME.jpg with masks/train/NAME.png, likewise test/ or val/, or images/NAME.jpg with masks/NAME.png"
)


@dataclass(frozen=True)
class Pairs:
    """Files of images and of their masks, in the same order. name: of the split, for messages."""

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)


def find_pairs(folder: Path) -> tuple[Pairs, Pairs]:
    """The pairs to train on and those to test on.

    The masks lie in `annotations/`, `masks/` or `labels/` beside `images/`, each at its image's place and name as .png.
    `train/` and `test/`, else `val/`, in them are the splits; without them every tenth image by name is for the test.
    Raises UserError where the folder is laid out in another way, and where masks are missing.
    """
    if not folder.is_dir():
        raise UserError(f"segment.data={folder}: no such folder")
    images, masks = folder / "images", _first(folder, MASK_FOLDERS)
    if not images.is_dir() or masks is None:
        missing = MASK_FOLDERS if images.is_dir() else ("images",)
        raise UserError(f"segment.data={folder} has no folder {_either(missing)}; it should hold {LAYOUT}")
    train, test = _first(images, TRAIN_FOLDERS), _first(images, TEST_FOLDERS)
    if train is None and test is None:
        files = _files(images)
        held_out, rest = files[::HELD_OUT], [file for row, file in enumerate(files) if row % HELD_OUT]
        if not rest:
            raise UserError(f"{images} holds a single image: there is none to train on")
        return _paired(images, masks, "train", rest), _paired(images, masks, "held-out", held_out)
    if train is None or test is None:
        wanted = TRAIN_FOLDERS if train is None else TEST_FOLDERS
        raise UserError(f"{images} has no folder {_either(wanted)} beside the other split")
    fitted, tested = (_paired(split, masks / split.name, split.name, _files(split)) for split in (train, test))
    return fitted, tested


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    """The first folder of these names in `folder`."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"{name}/" for name in names)


def _files(folder: Path) -> list[str]:
    """The images below a folder, relative to it. Raises UserError where there are none."""
    files = list_files(str(folder), EXTENSIONS)
    if not files:
        raise UserError(f"no images in {folder}; it should hold files such as NAME.jpg or NAME.png")
    return files


def _paired(images: Path, masks: Path, name: str, files: Sequence[str]) -> Pairs:
    """Raises UserError where an image has no mask."""
    pairs = Pairs(
        name, tuple(images / file for file in files), tuple(masks / Path(file).with_suffix(".png") for file in files)
    )
    missing = [row for row, mask in enumerate(pairs.masks) if not mask.is_file()]
    if missing:
        first = missing[0]
        raise UserError(
            f"{len(missing)} of {len(files)} {name} images have no mask: the first is {pairs.images[first]}, whose mask should "
            f"be {pairs.masks[first]}"
        )
    return pairs
