"""ImageNet-1k: 1 281 167 training and 50 000 validation images, 1000 classes (Russakovsky et al. 2015)."""

from pathlib import Path

from mimkit.data.sources.folder import Folder
from mimkit.errors import UserError


class ImageNet(Folder):
    """ImageNet as torchvision lays it out: train/ and val/ in class folders; the archives are unpacked if need be.

    path: the folder with train/ and val/, or with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
        ILSVRC2012_devkit_t12.tar.gz (they cannot be downloaded without an account).
    """

    def __init__(self, *, path: str = "data/imagenet"):
        for split in ("train", "val"):
            if not (Path(path) / split).is_dir():
                unpack(path, split)
        super().__init__(path=path)


def unpack(path: str, split: str) -> None:
    """Unpacks a split's archive where it lies. Raises UserError where it is not there or not whole."""
    from torchvision import datasets

    try:
        datasets.ImageNet(path, split)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.path={path} has neither the folder {split}/ nor its archive: {reason}") from None
