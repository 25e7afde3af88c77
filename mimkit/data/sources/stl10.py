"""STL-10: 5 000 training, 8 000 test and 100 000 unlabelled images, 96×96 RGB, 10 classes (Coates et al. 2011)."""

from typing import Any

from mimkit.data.sources._torchvision import TorchvisionSource, load


class STL10(TorchvisionSource):
    """STL-10 by torchvision.

    path: the folder that holds the files; they are downloaded to it where there is a network.
    unlabeled: whether to train on the 100 000 unlabelled images, too; their label is -1.
    """

    def __init__(self, *, path: str = "data", unlabeled: bool = True):
        self.unlabeled = unlabeled
        super().__init__(path=path)

    def dataset(self, path: str, split: str) -> Any:
        """See TorchvisionSource."""
        from torchvision import datasets

        return load(datasets.STL10, path, split="train+unlabeled" if split == "train" and self.unlabeled else split)
