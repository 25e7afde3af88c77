"""Image tokenizers: VQGAN's (CompVis/taming-transformers), and those of MaskGIT's design, as MAGE publishes one."""

from mimkit.weights.layout import Layout

BOTH = frozenset({"encoder.conv_in.weight", "decoder.conv_out.bias", "quantize.embedding.weight"})
RULES = (
    (r"encoder\.(.+)", r"encoder.timm_model.\1"),
    (r"decoder\.(.+)", r"head.decoder.\1"),
    (r"quantize\.embedding\.weight", r"head.codebook.weight"),
    (r"((?:post_)?quant_conv\..+)", r"head.\1"),
)
COUNTS = r"head\.counts"  # of the codes' use in training

LAYOUTS = (
    Layout(
        "VQGAN tokenizer",
        has=BOTH | {"quant_conv.weight", "post_quant_conv.weight"},
        rename=RULES,
        absent=COUNTS,
        left_over=r"loss\..+",  # discriminator and LPIPS
        width="pixels",
    ),
    Layout(
        "MaskGIT's VQGAN tokenizer (MAGE's)",
        has=BOTH,
        lacks=frozenset({"quant_conv.weight"}),
        rename=RULES,
        absent=COUNTS,
        left_over=r"loss\..+",
        width="pixels",
    ),
)
