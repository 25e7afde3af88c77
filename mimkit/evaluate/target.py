"""The frozen network that gives a run its target, as an encoder: it goes through the same probes as what it taught."""

from collections.abc import Sequence

from mimkit.errors import UserError
from mimkit.mask import Mask
from mimkit.model import build
from mimkit.recipe import Recipe
from mimkit.teachers.teacher import Teacher
from mimkit.types import Encoder, Features, Images, Wanted


class TargetEncoder(Encoder):
    """A teacher whose features are the patch tokens, as they are before a normalizer; it has no class token.

    like: the encoder that it teaches, which has the same images and places.
    """

    def __init__(self, teacher: Teacher, like: Encoder):
        super().__init__()
        assert teacher.dim is not None
        self.teacher, self.embed_dim, self.num_layers = teacher, teacher.dim, 0
        self.in_chans, self.image_size = like.in_chans, like.image_size
        self.patch_size, self.grid = like.patch_size, like.grid

    def forward(self, images: Images, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of the full image; `mask` and `layers` are not for teachers."""
        wanted: Wanted = self.teacher(images)
        assert wanted.values is not None
        return Features(wanted.values, grid=self.grid)


def target_encoder(recipe: Recipe) -> TargetEncoder:
    """The first target of a recipe, frozen. Raises UserError where it is no network that gives features."""
    model = build(recipe)
    target = next(iter(model.objectives.values())).target
    if not isinstance(target, Teacher) or target.dim is None:
        name = next(iter(recipe.objectives.values())).target.name
        raise UserError(
            f"of=target: the target '{name}' is no frozen network that gives features, as clip and timm are"
        )
    return TargetEncoder(target, model.encoder).requires_grad_(False).eval()
