"""Any model of timm: hidden places are masked in its input, so ConvNets and hierarchical transformers learn as well.

A learned patch stands in for the pixels of every hidden place: for a ViT it is a mask token before the projection.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from mimkit.errors import UserError, nearest
from mimkit.geometry import grid_of
from mimkit.transformer import check_dense, check_images
from mimkit.types import Encoder, Features, Feed, Images, Mask, Size, Standardize


class Timm(Encoder):
    """Drives a model of timm, with timm's initial weights.

    Goes with: mask.feed=all and head=linear; where the model gives a token for each place, also head=decoder or quantizer.

    model: its name, such as convnextv2_tiny or vit_tiny_patch16_224; nothing is downloaded.
    patch_size: side of a place of the mask in pixels; null is the model's stride, a divisor of it makes finer masks.
    in_chans: channels of the images.
    drop_path: stochastic depth, rising over the blocks to this rate; refused by models that have none.
    mean: per channel in [0, 1] units; null is ImageNet's.
    std: per channel in [0, 1] units; null is ImageNet's.
    """

    num_layers = 0

    def __init__(
        self,
        *,
        image_size: Size,
        feed: Feed = "all",
        model: str,
        patch_size: Annotated[int, Gt(0)] | None = None,
        in_chans: Annotated[int, Gt(0)] = 3,
        drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        if feed != "all":
            raise UserError("encoder 'timm' reads the pixels of all places: set mask.feed=all, or take encoder=vit")
        self.image_size, self.in_chans = image_size, in_chans
        self.standardize = Standardize(in_chans, mean, std)
        self.timm_model = _create(model, image_size, in_chans, drop_path)
        self.has_cls = getattr(self.timm_model, "cls_token", None) is not None
        self.num_prefix_tokens = getattr(self.timm_model, "num_prefix_tokens", int(self.has_cls))
        stride, self.embed_dim = self._dry_run(model)
        self.patch_size = patch_size or stride
        self.grid, self._out_grid = grid_of(image_size, self.patch_size), grid_of(image_size, stride)
        if stride % self.patch_size:
            raise UserError(f"encoder.patch_size={patch_size} must divide the stride {stride} of '{model}'")
        self.mask_patch = nn.Parameter(torch.zeros(in_chans, self.patch_size, self.patch_size))  # the mean colour

    @property
    def out_grid(self) -> Size:
        """Rows and columns of the model's last feature map."""
        return self._out_grid

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features (B, N, D) as the model's `forward_features` gives them, patch tokens on `out_grid`.

        Raises UserError for images of another size or number of channels, for a mask that feeds a part of the places,
        and where intermediate layers are asked for.
        """
        check_images(self, images)
        check_dense("timm", mask, layers)
        pixels = self.standardize(images)
        if mask is not None:
            (h, w), p = self.grid, self.patch_size
            hidden = repeat(mask.hidden, "b (h w) -> b 1 (h p) (w q)", h=h, p=p, q=p)
            pixels = torch.where(hidden, self.mask_patch.repeat(1, h, w), pixels)
        sequence = self._sequence(self.timm_model.forward_features(pixels))
        if self.num_prefix_tokens and not self.has_cls:  # registers only
            return Features(sequence[:, self.num_prefix_tokens :], grid=self.out_grid)
        return Features(sequence, self.num_prefix_tokens, grid=self.out_grid)

    def _sequence(self, out: Tensor) -> Float[Tensor, "B N D"]:
        """The model's output as a sequence: tokens as they are, feature maps in raster order."""
        if out.ndim == 3:
            return out
        channels_last = getattr(self.timm_model, "output_fmt", "NCHW") == "NHWC"
        return rearrange(out, "b h w d -> b (h w) d" if channels_last else "b d h w -> b (h w) d")

    @torch.enable_grad()
    def _dry_run(self, model: str) -> tuple[int, int]:
        """The model's stride in pixels and its width, from a grey image; what the features do not need is frozen.

        Raises UserError where the model cannot read images of this size, or gives no map of tokens.
        """
        height, width = self.image_size
        training = self.timm_model.training
        try:
            out = self.timm_model.eval().forward_features(torch.zeros(1, self.in_chans, height, width))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _misfit(model, self.image_size, error) from error
        self.timm_model.train(training)
        if not isinstance(out, Tensor) or out.ndim not in (3, 4):
            raise UserError(f"timm's '{model}' gives no map of tokens: it cannot be an encoder")
        sequence = self._sequence(out)
        count = sequence.shape[1] - self.num_prefix_tokens
        stride = isqrt(height * width // max(count, 1))
        stated = self.timm_model.feature_info[-1]["reduction"] if hasattr(self.timm_model, "feature_info") else stride
        if any(side % stride or side % stated for side in self.image_size) or count * stride**2 != height * width:
            raise _misfit(model, self.image_size, f"image_size must be multiples of its stride {stated}")
        parameters = [p for p in self.timm_model.parameters() if p.requires_grad]
        needed = torch.autograd.grad(sequence.sum(), parameters, allow_unused=True)
        for parameter, grad in zip(parameters, needed, strict=True):
            parameter.requires_grad_(grad is not None)
        return stride, sequence.shape[2]


def _create(model: str, image_size: Size, in_chans: int, drop_path: float) -> Any:
    """A model of timm without its classifier, for that image size where it asks for one.

    Raises UserError for an unknown name, and where the model cannot be built so.
    """
    import timm

    if not timm.is_model(model):
        hint = nearest(model, timm.list_models())
        raise UserError(f"timm {timm.__version__} knows no model '{model}'{hint}")
    optional: dict[str, Any] = {"img_size": image_size, "drop_path_rate": drop_path}
    while True:
        try:
            return timm.create_model(model, in_chans=in_chans, num_classes=0, global_pool="", **optional)
        except TypeError as error:  # a ConvNet reads any size; some models have no stochastic depth
            unknown = next((name for name in optional if f"'{name}'" in str(error)), None)
            if unknown is None or (unknown == "drop_path_rate" and drop_path):
                raise _misfit(model, image_size, error) from error
            del optional[unknown]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _misfit(model, image_size, error) from error


def _misfit(model: str, image_size: Size, why: object) -> UserError:
    size = "x".join(map(str, image_size))
    reason = " ".join(str(why).split())[:200] or type(why).__name__
    return UserError(f"timm's '{model}' cannot encode images of {size}: {reason}")
