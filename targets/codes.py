"""The codes that the encoder itself reads. Source: MAGE (arXiv 2211.09117, section 3)."""

from jaxtyping import Int
from torch import Tensor

from mimkit.errors import UserError
from mimkit.saved.tokenizer import CodeEncoder
from mimkit.types import Encoder, Images, Target


class Codes(Target):
    """Codes (B, L) of the tokenizer inside the encoder, for encoders that read codes (mage)."""

    loss, encoder_codes = "cross_entropy", True

    def __init__(self, *, encoder: Encoder):
        super().__init__()
        if not isinstance(encoder, CodeEncoder):
            raise UserError(
                "target 'codes' is what an encoder of codes reads, this one reads pixels: take encoder=mage"
            )
        self.codes_of = encoder.tokenizer.codes  # a method, so that the tokenizer stays the encoder's part alone
        self.vocab_size = encoder.tokenizer.vocab_size

    def forward(self, images: Images) -> Int[Tensor, "B L"]:
        return self.codes_of(images)
