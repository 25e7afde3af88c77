"""CIFAR-100: 50 000 training and 10 000 test images, 32×32 RGB, 100 classes (Krizhevsky 2009)."""

from typing import Any

from mimkit.data.sources._torchvision import TorchvisionSource, load


class CIFAR100(TorchvisionSource):
    """CIFAR-100 by torchvision.

    path: the folder that holds the files; they are downloaded to it where there is a network.
    """

    def __init__(self, *, path: str = "data"):
        super().__init__(path=path)

    def dataset(self, path: str, split: str) -> Any:
        """See TorchvisionSource."""
        from torchvision import datasets

        return load(datasets.CIFAR100, path, train=split == "train")
