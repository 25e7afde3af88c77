"""What the head predicts of the image's other crop. Source: SimCLR (arXiv 2002.05709), in MAGE-C (2211.09117, section 3.3)."""

from typing import Annotated

from annotated_types import Gt

from mimkit.errors import UserError
from mimkit.types import Prediction, Target, Wanted


class Twin(Target):
    """One vector per image, with gradient: the prediction of its other crop, half a batch away (data.repeats=2).

    Goes with: head=projector, loss=info_nce with exclude_self.

    dim: width of the vectors.
    """

    loss, reads = "info_nce", "prediction"

    def __init__(self, *, repeats: int, dim: Annotated[int, Gt(0)] = 256):
        super().__init__()
        if repeats != 2:
            raise UserError("target 'twin' compares two crops of each image: set data.repeats=2")
        self.dim = dim

    def forward(self, prediction: Prediction) -> Wanted:  # type: ignore[override]
        if prediction.cls is None:
            raise UserError("target 'twin' is one vector per image, this head predicts places: take head=projector")
        return Wanted(None, cls=prediction.cls.roll(len(prediction.cls) // 2, dims=0))
