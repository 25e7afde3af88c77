"""`mimkit eval`: probes against scikit-learn and by hand, features kept on disk, mistakes through the real command."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit import progress
from mimkit.data.open import open_data
from mimkit.data.source import Source
from mimkit.errors import UserError
from mimkit.evaluate import frozen
from mimkit.evaluate.embed import embed
from mimkit.evaluate.knn import knn_predict, top1
from mimkit.evaluate.labelled import check_classes, labels_sha256
from mimkit.evaluate.linear import fit_best
from mimkit.evaluate.score import score
from mimkit.saved.encoder import load, save_encoder
from tests.conftest import command

DATA = ("data=shapes", "data.num_images=120", "data.num_test=60")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT with random weights, as a run would hand it over."""
    return save(tmp_path_factory.mktemp("vit"), "vit", 1, embed_dim=24, depth=3, num_heads=2, patch_size=4)


def save(folder: Path, name: str, seed: int, **options: Any) -> Path:
    from mimkit import registry

    torch.manual_seed(seed)
    encoder = registry.build("encoder", name, options, {"image_size": (16, 16), "feed": "all"})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_encoder(folder, encoder, name, options)
    return folder


def scores(folder: Path, probes: str, *options: str) -> dict[str, Any]:
    lines = list(score(folder, probes.split(","), (*DATA, *options), folder / "eval.json"))
    assert lines[-1] == f"written to {folder / 'eval.json'}"
    report: dict[str, Any] = json.loads((folder / "eval.json").read_text())
    return report


def shapes() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The images and labels of DATA, 16 x 16 already, standardised by ImageNet's figures."""
    from mimkit.data.open import open_data

    data = open_data("shapes", {"num_images": 120, "num_test": 60}, (16, 16), 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    found = {}
    for split, source in (("train", data.train), ("test", data.test)):
        images = torch.stack([source.read(index) for index in range(len(source))])
        found[split] = ((images / 255 - mean) / std, torch.from_numpy(source.labels))
    return found


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_scores_of_a_timm_model_are_those_of_features_that_timm_gives(tmp_path: Path, pool: str) -> None:
    import timm
    from safetensors.torch import load_file

    save(tmp_path, "timm", 2, model="test_vit", patch_size=16)
    report = scores(tmp_path, "knn,linear", f"pool={pool}", "linear.C=0.1", "knn.k=7")
    model = timm.create_model("test_vit", img_size=16, num_classes=0, global_pool="").eval()
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    split = shapes()
    with torch.no_grad():
        tokens = {name: model.forward_features(images) for name, (images, _) in split.items()}
    by_hand = {name: x[:, 0] if pool == "cls" else x[:, 1:].mean(1) for name, x in tokens.items()}
    truth, labels = split["test"][1], split["train"][1]
    knn = top1(knn_predict(by_hand["train"], labels, by_hand["test"], 7, 0.07), truth)
    assert report["probes"]["knn"]["top1"] == knn and report["pool"] == pool
    fitted = fit_best(by_hand["train"], labels, 0.1)
    assert abs(report["probes"]["linear"]["top1"] - top1(fitted.predict(by_hand["test"]), truth)) < 2  # one image


def test_layers_are_class_token_and_mean_patch_token_of_each_block(folder: Path) -> None:
    """By timm's own intermediate outputs; the block is chosen by held-out images."""
    report = scores(folder, "layers", "layers.C=0.1")["probes"]["layers"]
    vit, (images, labels) = load(folder).timm_model, shapes()["train"]
    with torch.no_grad():
        blocks = vit.forward_intermediates(
            images, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
    features = [torch.cat([prefix[:, 0], patches.mean(1)], 1) for patches, prefix in blocks]
    held_out = [fit_best(x, labels, 0.1).held_out_top1 for x in features]
    assert [block["held_out_top1"] for block in report["blocks"]] == pytest.approx(held_out, abs=9)  # one image
    told = {path: json.loads(path.read_text()) for path in (folder / "features").glob("*.json")}
    kept = next(path for path, of in told.items() if (of["split"], of["kind"]) == ("train", "layers"))
    stored = torch.from_numpy(np.fromfile(kept.with_suffix(".f32"), np.float32)).view(120, 3, 48)
    torch.testing.assert_close(stored, torch.stack(features, 1), rtol=1e-4, atol=1e-4)
    best = max(report["blocks"], key=lambda block: block["held_out_top1"])
    assert report["top1"] == best["top1"] == report["blocks"][report["best_block"] - 1]["top1"]


def test_the_attentive_probe_learns_and_is_the_same_where_tokens_are_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("data.num_images=400", "attentive.epochs=20", "attentive.batch_size=30", "attentive.num_heads=2")
    kept = scores(folder, "attentive", *options, f"cache={tmp_path}")["probes"]["attentive"]
    assert any('"tokens"' in path.read_text() for path in tmp_path.glob("*.json"))
    assert kept["top1"] > 25  # there are ten classes
    monkeypatch.setattr(frozen, "TOKENS_LIMIT", 0)
    monkeypatch.setattr(frozen, "cached", None)
    assert scores(folder, "attentive", *options)["probes"]["attentive"]["top1"] == kept["top1"]


def test_two_extractions_have_the_same_bits(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        scores(folder, "knn,layers", f"cache={tmp_path / name}", "layers.C=0.1")
    files = {name: sorted((tmp_path / name).iterdir()) for name in ("one", "two")}
    assert len(files["one"]) == 8
    for one, two in zip(files["one"], files["two"], strict=True):
        assert one.name == two.name and one.read_bytes() == two.read_bytes()


def test_features_are_kept_until_weights_images_or_pool_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 4}
    save(tmp_path, "vit", 1, **small)
    first = scores(tmp_path, "knn")
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "extract", None)
        assert scores(tmp_path, "knn")["probes"]["knn"]["top1"] == first["probes"]["knn"]["top1"]
        for change in ("pool=cls", "data.seed=1"):
            with pytest.raises(TypeError):
                scores(tmp_path, "knn", change)
        save(tmp_path, "vit", 2, **small)
        with pytest.raises(TypeError):
            scores(tmp_path, "knn")
        save(tmp_path, "vit", 1, **small)
        cut = next((tmp_path / "features").glob("*.f32"))
        cut.write_bytes(cut.read_bytes()[:-4])
        with pytest.raises(TypeError):
            scores(tmp_path, "knn")
    assert scores(tmp_path, "knn")["probes"]["knn"] == first["probes"]["knn"] | {"seconds": ANY}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Folders of images: labelled, without labels, too few to hold any out; and encoders."""
    from PIL import Image

    root = tmp_path_factory.mktemp("places")
    draw = np.random.default_rng(0)
    for path in [
        *(f"good/{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(6)),
        *(f"flat/{i}.png" for i in range(5)),
        *(f"broken/{split}/{name}/0.png" for split in ("train", "test") for name in "ab"),
        *(f"few/{name}/0.png" for name in "ab"),
        *(f"other/{split}/{name}/0.png" for split, name in (("train", "a"), ("train", "b"), ("test", "c"))),
    ]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / path)
    (root / "good/train/a/broken.png").write_bytes(b"no image")
    for path in root.glob("broken/*/*/*"):
        path.write_bytes(b"no image")
    (root / "file").write_text("a file")
    for name in ("encoder.safetensors", "encoder.json"):
        (root / name).write_bytes((folder / name).read_bytes())
    return root


def test_unreadable_images_are_left_out_and_counted(places: Path) -> None:
    """And the real command says what it does."""
    done = command("eval", "encoder.safetensors", "data=good", cwd=places)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "encoder.safetensors on good: 13 training and 12 test images"
    assert [line.split()[0] for line in lines[2:4]] == ["knn", "linear"] and lines[-1] == "written to eval.json"
    assert "1 train images could not be read" in lines
    report = json.loads((places / "eval.json").read_text())
    assert report["unreadable"] == {"train": 1, "test": 0} and report["images"] == {"train": 13, "test": 12}


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0)
    with progress.Progress("features", 5) as bar:
        bar.advance(3)
        bar.advance(3)
    assert capsys.readouterr().err == "features: 3 of 5\nfeatures: 5 of 5\n"


MISTAKES = {
    "no probe of that name": (("--probe", "knn,liner"), "did you mean 'linear'"),
    "unknown option": (("data=good", "knn.kk=3"), "did you mean 'k'"),
    "no labels": (("data=flat",), "has no labels"),
    "weights without a run": ((), "data=PATH"),
}


MORE_MISTAKES = {
    "option out of range": (("data=good", "linear.C=0"), "greater than 0"),
    "option of a probe that does not run": (("data=good", "layers.C=1"), "--probe does not name 'layers'"),
    "value instead of options": (("data=good", "knn=3"), "knn.NAME=VALUE"),
    "unknown setting": (("data=good", "pol=cls"), "did you mean 'pool'"),
    "unknown kind of pool": (("data=good", "pool=max"), "'mean' or 'cls'"),
    "unknown option of the data": (("data=good", "data.lables=none"), "did you mean 'labels'"),
    "one split that is too small": (("data=few",), "too few to hold a tenth out"),
    "class without training images": (("data=other",), "the class 'c'"),
    "no readable image": (("data=broken",), "none of the 2 train images"),
    "cache that cannot be": (("data=good", "cache=file/x"), "cache=FOLDER"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(places: Path, name: str) -> None:
    words, told = MISTAKES[name]
    done = command("eval", "encoder.safetensors", *words, "-o", "scores.json", cwd=places)
    assert done.returncode == 2 and done.stdout == "" and told in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (places / "scores.json").exists()


@pytest.mark.parametrize("name", MORE_MISTAKES)
def test_a_mistake_is_one_line(places: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places)
    words, told = MORE_MISTAKES[name]
    with pytest.raises(UserError, match=re.escape(told)) as raised:
        list(score(Path("encoder.safetensors"), ["knn", "linear"], words, Path("scores.json")))
    assert "\n" not in str(raised.value) and not Path("scores.json").exists()


def test_what_an_encoder_does_not_give_is_told_before_any_work(tmp_path: Path) -> None:
    save(tmp_path, "swin", 0, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=2, patch_size=4)
    for probe, option, told in (
        ("layers", "pool=mean", "no intermediate layers"),
        ("knn", "pool=cls", "no class token"),
    ):
        with pytest.raises(UserError, match=told):
            list(score(tmp_path, [probe], (*DATA, option), tmp_path / "eval.json"))
    assert not (tmp_path / "features").exists()


def test_labels_that_mean_other_classes_in_the_test_are_refused() -> None:
    def images(labels: list[int], classes: list[str]) -> Source:
        return Source("images", np.array(labels), classes)

    train = images([0, 1, 0], ["cat", "dog"])
    check_classes("images", train, images([0, 1], ["cat", "dog"]))
    check_classes("images", train, images([0], ["cat"]))
    for test, told in ((images([0], ["dog"]), "'cat' among"), (images([2], ["cat", "dog", "cow"]), "the class 'cow'")):
        with pytest.raises(UserError, match=told):
            check_classes("images", train, test)
    with pytest.raises(UserError, match="of one class"):
        check_classes("images", images([1, 1], ["cat", "dog"]), train)


def test_fewer_images_are_those_that_are_evenly_spread(folder: Path, tmp_path: Path) -> None:
    """By hand: the training images 0, 17, … and the test images 0, 7, …"""
    report = scores(folder, "knn", "knn.k=3", "bank=8", "queries=10", f"cache={tmp_path}")
    assert (report["bank"], report["queries"]) == (8, 10) and report["images"] == {"train": 8, "test": 10}
    encoder, split = load(folder), {}
    for name, most in (("train", 8), ("test", 10)):
        images, labels = shapes()[name]
        index = np.unique(np.linspace(0, len(labels) - 1, most).round().astype(int))
        with torch.no_grad():
            tokens = encoder.timm_model.forward_features(images[index])[:, 1:]
        split[name] = tokens.mean(1), labels[index]
    predicted = knn_predict(*split["train"], split["test"][0], 3, 0.07)
    assert report["probes"]["knn"]["top1"] == top1(predicted, split["test"][1])


def test_votes_are_finite_at_any_temperature() -> None:
    """By hand in float64: cosines above 0.99 divided by 0.005 are beyond float32's exponential."""
    torch.manual_seed(0)
    bank, queries = (1 + 0.05 * torch.randn(count, 8) for count in (60, 20))
    labels = torch.arange(60) % 3
    unit = [torch.nn.functional.normalize(x.double(), dim=1) for x in (bank, queries)]
    cosine = unit[1] @ unit[0].T
    assert cosine.topk(5).values.min() > 0.99
    best = cosine.topk(5)
    votes = torch.zeros(20, 3, dtype=torch.float64).scatter_add_(1, labels[best.indices], (best.values / 0.005).exp())
    assert torch.equal(knn_predict(bank, labels, queries, 5, 0.005), votes.argmax(1))


def test_features_are_of_the_encoders_options_too(folder: Path, tmp_path: Path) -> None:
    """Another mean of the colours is not among the weights, and gives other features."""
    for name in ("encoder.safetensors", "encoder.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    words = ["data=shapes", "data.num_images=40", "data.num_test=20"]
    for change in (None, [0.2, 0.5, 0.8]):
        if change:
            told = json.loads((tmp_path / "encoder.json").read_text())
            told["options"]["mean"] = change
            (tmp_path / "encoder.json").write_text(json.dumps(told))
        list(score(tmp_path, ["knn"], words, tmp_path / "eval.json"))
    assert len(list((tmp_path / "features").glob("*.f32"))) == 4  # two splits, twice


def test_labels_that_change_are_seen() -> None:
    """By a fine-tuning's name, which follows from them, and by the digest in eval.json."""
    train, test = (open_data("shapes", {"num_images": 40, "num_test": 20}, (16, 16), 3).train,) * 2
    before = labels_sha256({"train": train, "test": test})
    train.labels = train.labels.copy()
    assert labels_sha256({"train": train, "test": test}) == before
    train.labels[3] += 1
    assert labels_sha256({"train": train, "test": test}) != before


def test_embed_takes_the_test_images_too(folder: Path, tmp_path: Path) -> None:
    for split, classes in (("train", "aab"), ("test", "ba")):
        for number, name in enumerate(classes):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    assert "5 features of width" in embed(folder, str(tmp_path), tmp_path / "features.npz")
    found = np.load(tmp_path / "features.npz")
    assert found["split"].tolist() == ["train"] * 3 + ["test"] * 2 and found["label"].tolist() == [0, 0, 1, 0, 1]
    assert len(found["features"]) == 5
    same = [index for index in range(5) if found["path"][index].endswith("0.png")]
    assert np.array_equal(*found["features"][same])  # the same pixels
