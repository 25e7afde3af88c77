"""The first 20 losses of every small recipe, kept in tests/golden: a change that should not change numbers leaves them.

`python -m tests.test_golden` writes them anew, to be done only with a change that means to change numbers.
"""

from pathlib import Path

import pytest
import torch

from mimkit.draft import draft, load_recipe, shipped
from mimkit.saved.encoder import save_encoder
from mimkit.train.session import prepare
from mimkit.train.step import step
from mimkit.weights.tokenizer import save_tokenizer
from tests.conftest import make_clip

FOLDER = Path(__file__).parent / "golden"
SMALL = [name for name in shipped() if "/" not in name]
TOLERANCE = {
    "vqkd": 1e-2,
    "beit2": 1e-2,
    "beit": 1e-2,
    "peco_beit": 1e-2,
    "cae": 1e-2,
    "vqgan": 1e-2,
    "peco": 1e-2,
}  # a last bit can change a code
OVERRIDES = ["train.max_steps=20", "data.batch_size=32", "data.num_images=320", "data.num_test=1", "train.device=cpu"]


def trace(name: str, folder: Path) -> list[float]:
    """Losses of 20 steps on the embedded data with one thread, batch 32; teachers are small and random."""
    given = ["data=shapes", *OVERRIDES]
    tree = draft(name).tree
    target = tree["target"]["name"] if isinstance(tree["target"], dict) else tree["target"]
    if target == "clip":
        given.append(f"target.model=local-dir:{make_clip(folder / 'clip')}")
    if target == "vq" or "tokenizer" in tree["encoder"]:  # a tokenizer of 20 steps
        trace("vqkd", folder)
        given.append(f"{'target.checkpoint' if target == 'vq' else 'encoder.tokenizer'}={folder / 'vqkd'}")
    if "perceptual" in tree.get("objectives", {}):
        trace("vqkd", folder)
        given.append(f"objectives.perceptual.loss.model={folder / 'vqkd'}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = prepare(load_recipe(name, given), folder / name, resume=False)
    stream, found = run.batches.start(), []
    for _ in range(20):
        losses, _ = step(run, next(stream))
        found.append(losses["loss"].item())
    torch.set_num_threads(threads)
    save_tokenizer(folder / name, run.model)
    save_encoder(folder / name, run.model.encoder, run.recipe.encoder.name, run.recipe.encoder.options)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_the_first_losses_are_those_on_record(name: str, tmp_path: Path) -> None:
    """Against tests/golden; 1e-4 relative, since kernels differ between processors."""
    recorded = [float(line) for line in (FOLDER / f"{name}.txt").read_text().split()]
    assert trace(name, tmp_path) == pytest.approx(recorded, rel=TOLERANCE.get(name, 1e-4))


if __name__ == "__main__":
    import tempfile

    FOLDER.mkdir(exist_ok=True)
    for recipe in SMALL:
        with tempfile.TemporaryDirectory() as place:
            (FOLDER / f"{recipe}.txt").write_text("\n".join(map(repr, trace(recipe, Path(place)))) + "\n")
