"""The rule of names: module = component, signature = schema; plug-ins are equals."""

import inspect
from pathlib import Path

import pytest

from mimkit import registry
from mimkit.errors import UserError

ALL = [(role, name) for role in registry.ROLES for name in registry.names(role)]

MEAN_COLOUR = '''
"""Mean colour of each patch."""
from jaxtyping import Float
from torch import Tensor

from mimkit.types import Images, Target, as_float, patchify


class MeanColour(Target):
    """Mean colour of each patch, (B, L, C) in [0, 1].

    gain: factor of the values.
    """

    normalizer, loss = "none", "l1"

    def __init__(self, *, patch_size: int = 16, in_chans: int = 3, gain: float = 1.0):
        super().__init__()
        self.patch_size, self.dim, self.gain = patch_size, in_chans, gain

    def forward(self, images: Images) -> Float[Tensor, "B L C"]:
        return self.gain * patchify(as_float(images), self.patch_size).mean(dim=2)
'''


@pytest.mark.parametrize(("role", "name"), ALL)
def test_every_option_is_typed_documented_and_keyword_only(role: str, name: str) -> None:
    component = registry.find(role, name)
    assert inspect.getdoc(component), "a component has a docstring"
    for option in registry.options(component, registry.ROLES[role].facts).values():
        assert option.annotation is not inspect.Parameter.empty, option.name
        assert option.doc, f"{role} {name}: no docstring line for '{option.name}'"
    kinds = {p.kind for p in inspect.signature(component).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}


def test_the_first_members_are_there() -> None:
    assert {"random", "block", "grid", "none"} <= set(registry.names("mask"))
    assert {"mse", "l1", "smooth_l1", "cosine", "cross_entropy"} <= set(registry.names("loss"))
    assert {"none", "per_patch", "l2", "layer_norm"} <= set(registry.names("normalizer"))
    assert {"shapes", "folder", "parquet", "array", "cifar10", "cifar100", "stl10", "imagenet"} <= set(
        registry.names("data")
    )


def test_a_plugin_file_adds_a_target_under_its_own_name(tmp_path: Path, tiny: dict[str, object]) -> None:
    """The style guide's smallest target, against the mean of each patch by average pooling."""
    import torch
    import torch.nn.functional as F

    import mimkit

    plugin = tmp_path / "mean_colour_here.py"
    plugin.write_text(MEAN_COLOUR)
    model = mimkit.build(tiny, "target=mean_colour_here", "target.gain=2", plugins=[plugin])
    images = torch.rand(2, 3, 16, 16)
    out = model(images)
    pooled = 2 * F.avg_pool2d(images, 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.target, out.mask.select(pooled))
    assert model.recipe.objectives["main"].loss.name == "l1"
    assert out.prediction.shape == out.target.shape == (2, 12, 3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken", "import nothing_that_exists", "cannot be imported: ModuleNotFoundError"),
        ("empty", "x = 1", "defines no component"),
        ("pixels", MEAN_COLOUR, "a target named 'pixels' exists already"),
        ("two", MEAN_COLOUR + "\n\nclass Other(MeanColour):\n    pass\n", "must define one public subclass of Target"),
    ],
)
def test_a_wrong_plugin_is_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        registry.load_plugin(path)
    assert "\n" not in str(caught.value)


def test_a_missing_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        registry.load_plugin(tmp_path / "nowhere.py")
