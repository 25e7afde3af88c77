"""VQ-KD tokenizers (BEiT v2, microsoft/unilm): from training, with its teacher and scaling, or cut down for use."""

from mimkit.weights.layout import Layout
from mimkit.weights.layouts._parts import BEIT, prefixed, timm_names

LAYOUTS = (
    Layout(
        "VQ-KD tokenizer",
        has=prefixed("encoder.", BEIT) | {"quantize.embedding.weight", "encode_task_layer.0.weight"},
        rename=(
            timm_names("encoder."),
            (r"encoder\.fc_norm\.(.+)", r"encoder.timm_model.norm.\1"),
            timm_names("decoder.", "head.decoder"),
            (r"decoder\.fc_norm\.(.+)", r"head.decoder.norm.\1"),
            (r"encode_task_layer\.(.+)", r"head.encode.\1"),
            (r"decode_task_layer\.(.+)", r"head.decode.\1"),
            (r"quantize\.embedding\.weight", r"head.codebook"),
            (r"quantize\.cluster_size", r"head.counts"),
        ),
        absent=r"encoder\.mask_token",
        left_over=r"(?:loss|teacher|scaling).*|quantize\.embedding\.(?:cluster_size|embed_avg|initted)",
        width="head.decode.2.bias",
    ),
)
