"""timm's models as teachers: by name, with published weights, a file's, or random ones."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mimkit.errors import UserError, nearest
from mimkit.teachers.published import fixed_seed, one_line, published_weights
from mimkit.weight_files import read_weights


def load_timm(name: str, pretrained: bool | str, role: str = "target") -> Any:
    """The timm model at its own size, without classifier.

    role: whose options `model` and `pretrained` are, for messages. Raises UserError where model or weights cannot be had.
    """
    import timm

    if ":" not in name and not timm.is_model(name):
        hint = nearest(name.partition(".")[0], timm.list_models()) or ";"
        raise UserError(f"{role}.model: timm has no '{name}'{hint} timm.list_models() tells all names")
    if pretrained is True and ":" not in name and not timm.is_model_pretrained(name):
        tags = ", ".join(timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)) or "none"
        raise UserError(f"{role}.model: timm has no weights of '{name}' (has: {tags}); or take {role}.pretrained=false")
    instead = f"{role}.pretrained=FILE, or {role}.pretrained=false for random weights"
    download = published_weights(name, instead) if pretrained is True else nullcontext()
    try:
        overlay = _overlay(name, Path(pretrained), role) if isinstance(pretrained, str) else None
        with fixed_seed(), download:
            model: Any = timm.create_model(name, pretrained is not False, num_classes=0, pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # timm raises what it likes
        raise UserError(f"{role}.model={name} {role}.pretrained={pretrained}: {one_line(error)}") from error
    model.pretrained_cfg.pop("state_dict", None)
    return model.eval()


def _overlay(name: str, path: Path, role: str) -> dict[str, Any]:
    """Lets timm load a file's weights in place of published ones: renamed and resized by its rules, and every one needed."""
    import timm

    if ":" in name:
        raise UserError(f"{role}.pretrained={path}: '{name}' brings its own weights; take {role}.pretrained=true")
    stated: Any = timm.get_pretrained_cfg(name)
    classifier = stated.classifier or ()
    layers = (classifier,) if isinstance(classifier, str) else classifier
    unused = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    weights = {name: value for name, value in read_weights(path).items() if name not in unused}
    return {"state_dict": weights, "num_classes": 0, "label_offset": 0, "custom_load": False}
