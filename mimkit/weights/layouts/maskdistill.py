"""MaskDistill's weights as drkostas/MaskDistill-PyTorch publishes them: a BEiT as `student` and a linear layer."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import BEIT, INDEX, prefixed, timm_names

LAYOUTS = (
    Layout(
        "MaskDistill, encoder and linear head",
        has=prefixed("student.", BEIT) | {"distill_head.weight"},
        rename=(
            timm_names("student."),
            (r"student\.mask_token", r"encoder.mask_token"),
            (r"distill_head\.(.+)", r"head.predict.\1"),
        ),
        left_over=INDEX,
    ),
)
