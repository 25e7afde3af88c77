"""Frozen models as targets, against OpenCLIP's and timm's own forward passes; the cache; what is refused."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from mimkit.targets.clip import CLIP
from mimkit.targets.timm import Timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.transforms.functional import resize

import mimkit
from mimkit.errors import UserError
from mimkit.teachers.cache import Cache
from mimkit.teachers.teacher import Teacher
from mimkit.types import Wanted
from tests.conftest import TINY, command


def teacher(target: dict[str, Any], size: tuple[int, int] = (16, 16), **encoder: Any) -> Any:
    """The built target next to a tiny encoder with 4-px patches."""
    tree = copy.deepcopy(TINY) | {"image_size": list(size), "target": target}
    tree["encoder"] |= encoder
    return mimkit.build(tree).objectives["main"].target


def clip(folder: Path, size: tuple[int, int] = (16, 16), **options: Any) -> Any:
    return teacher({"name": "clip", "model": f"local-dir:{folder}"} | options, size)


def vit(size: tuple[int, int] = (16, 16), **options: Any) -> Any:
    return teacher({"name": "timm", "model": "test_vit", "pretrained": False} | options, size)


def photos(*shape: int, seed: int = 0) -> Tensor:
    """Smooth uint8 images, so that resizing means something."""
    batch, channels, height, width = shape
    noise = torch.rand(batch, channels, height // 4 + 1, width // 4 + 1, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bilinear").mul(255).byte()


def standardized(images: Tensor, target: Any) -> Tensor:
    return (images - torch.tensor(target["mean"]).view(-1, 1, 1)) / torch.tensor(target["std"]).view(-1, 1, 1)


def with_attention(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Torch's own attention weights, averaged over the heads: the class token's row without itself."""
    return attention(tokens, tokens, tokens, need_weights=True, average_attn_weights=True)[1][:, 0, 1:]


@pytest.mark.parametrize("size", [(16, 16), (24, 40)], ids=["native", "resampled"])
def test_clip_is_openclips_image_tower(clip_folder: Path, size: tuple[int, int]) -> None:
    """All tokens through ln_post and proj; the class token equals `encode_image`, at other grids with its resized positions."""
    oracle = open_clip.create_model(f"local-dir:{clip_folder}", force_image_size=size).eval()
    target = clip(clip_folder, size, cls=True, saliency=True)
    images = photos(3, 3, *size)
    stated = json.loads((clip_folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    pixels = standardized(images / 255, stated)
    with torch.inference_mode():
        wanted = target(images)
        tower = oracle.visual
        tokens = tower.conv1(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([tower.class_embedding.expand(3, 1, -1), tokens], 1) + tower.positional_embedding
        states = [tower.ln_pre(tokens)]
        for block in tower.transformer.resblocks:
            states.append(block(states[-1]))
        tokens = tower.ln_post(states[-1]) @ tower.proj
        torch.testing.assert_close(wanted.cls, oracle.encode_image(pixels), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(wanted.values, tokens[:, 1:], rtol=1e-5, atol=1e-6)
        looks = with_attention(block.attn, block.ln_1(states[-2]))
        torch.testing.assert_close(wanted.saliency, looks, rtol=1e-5, atol=1e-7)
        early = clip(clip_folder, size, layer=-2, norm=False, proj=False, saliency=True)(images)
        torch.testing.assert_close(early.values, states[-2][:, 1:], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(early.saliency, looks, rtol=1e-5, atol=1e-7)
    assert target.dim == 20 and early.values.shape[-1] == 24 and early.cls is None
    assert (target.normalizer, target.loss) == ("l2", "cosine") and not hasattr(target, "text")


def test_images_are_resized_to_the_teachers_patches(clip_folder: Path) -> None:
    """8-px patches of the student, 4-px patches of the teacher: it reads the image at half the size."""
    target = teacher({"name": "clip", "model": f"local-dir:{clip_folder}"}, (32, 48), patch_size=8)
    images = photos(2, 3, 32, 48)
    small = resize(images / 255, [16, 24], interpolation=3, antialias=True).clamp(0, 1)  # 3: bicubic
    assert target.input_size == (16, 24)
    torch.testing.assert_close(target(images).values, target(small).values)


def test_a_published_tag_brings_its_activation(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenAI's weights were trained with QuickGELU, which the configuration of the plain name does not say."""
    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    weights = clip_folder / "open_clip_model.safetensors"
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(config))
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(weights))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    oracle = open_clip.CLIP(**config, quick_gelu=True).eval()
    open_clip.load_checkpoint(oracle, str(weights))
    target = teacher({"name": "clip", "cls": True})
    images = photos(2, 3, 16, 16)
    stated = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    with torch.no_grad():
        expected = oracle.encode_image(standardized(images / 255, stated))
        torch.testing.assert_close(target(images).cls, expected, rtol=1e-5, atol=1e-6)
        plain = teacher({"name": "clip", "pretrained": str(weights), "cls": True})(images)
    assert not torch.allclose(plain.cls, expected, rtol=1e-3)


def test_timm_vit_is_timms_own_forward(tmp_path: Path) -> None:
    """Weights of a file at their own size (160 px), positions resampled by timm's rule, registers and class token apart."""
    model = timm.create_model("test_vit", num_classes=7)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, mean=float(parameter.ndim == 1) * 0.5)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    target = vit((16, 24), pretrained=str(tmp_path / "weights.pth"), cls=True, saliency=True)
    oracle = timm.create_model("test_vit", img_size=(64, 96), num_classes=0).eval()
    weights = {name: x for name, x in model.state_dict().items() if not name.startswith("head")}
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], [4, 6], [10, 10])
    oracle.load_state_dict(weights)
    images = photos(2, 3, 64, 96)
    with torch.inference_mode():
        pixels = standardized(images / 255, oracle.pretrained_cfg)
        wanted, tokens = target(images), oracle.forward_features(pixels)
        torch.testing.assert_close(wanted.values, tokens[:, 1:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(wanted.cls, tokens[:, 0], rtol=1e-5, atol=1e-5)
        second, before_last = oracle.forward_intermediates(
            pixels, indices=[2, 4], output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )
        block = oracle.blocks[-1]
        attention = nn.MultiheadAttention(64, block.attn.num_heads, batch_first=True)
        attention.in_proj_weight.copy_(block.attn.qkv.weight)
        attention.in_proj_bias.copy_(block.attn.qkv.bias)
        looks = with_attention(attention, block.norm1(torch.cat([before_last[1], before_last[0]], 1)))
        torch.testing.assert_close(wanted.saliency, looks, rtol=1e-5, atol=1e-7)
        early = vit((16, 24), pretrained=str(tmp_path / "weights.pth"), layer=2, norm=False)(images)
        torch.testing.assert_close(early.values, second[0], rtol=1e-5, atol=1e-5)
    assert target.dim == 64 and (target.normalizer, target.loss) == ("layer_norm", "smooth_l1")


@pytest.mark.parametrize(("model", "layer", "side"), [("test_resnet", -1, 32), ("test_convnext", -2, 16)])
def test_timm_convnet_is_a_stages_feature_map(model: str, layer: int, side: int) -> None:
    target = teacher({"name": "timm", "model": model, "pretrained": False, "layer": layer}, (12, 20))
    images = photos(2, 3, 3 * side, 5 * side)
    with torch.inference_mode():
        pixels = standardized(images / 255, target.timm_model.pretrained_cfg)
        maps = target.timm_model.forward_intermediates(pixels, intermediates_only=True)
        assert maps[layer].shape[-2:] == (3, 5) and target.dim == maps[layer].shape[1]
        torch.testing.assert_close(target(images).values.transpose(1, 2).unflatten(2, (3, 5)), maps[layer])
        if layer == -1:
            torch.testing.assert_close(maps[-1], target.timm_model.forward_features(pixels))


def test_teachers_are_the_same_at_every_build_and_leave_the_generator_alone(clip_folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = Timm(in_chans=3, grid=(4, 4), model="test_vit", pretrained=False)
    CLIP(in_chans=3, grid=(4, 5), model=f"local-dir:{clip_folder}")
    assert torch.equal(torch.rand(3), expected)
    second = Timm(in_chans=3, grid=(4, 4), model="test_vit", pretrained=False)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_grey_images_are_repeated_and_autocast_on_the_cpu_is_left_out(clip_folder: Path) -> None:
    target, grey = clip(clip_folder), photos(2, 1, 16, 16)
    colour = target(grey.expand(-1, 3, -1, -1)).values
    assert torch.equal(target(grey).values, colour)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(target(grey).values, colour)


@pytest.mark.parametrize("as_float", [False, True], ids=["bytes", "floats"])
@pytest.mark.parametrize("size", [(16, 16), (5, 7)])
def test_the_cache_gives_what_was_seen_bit_for_bit(as_float: bool, size: tuple[int, int]) -> None:
    class Counting(Teacher):
        asked = 0

        def encode(self, images: Tensor) -> Wanted:
            self.asked += len(images)
            values = (images * images).flatten(2).sin()
            return Wanted(values.transpose(1, 2), values.mean(2), values.exp().mean(1))

    def model(cache: bool) -> Counting:
        return Counting(3, size, (0.5,) * 3, (0.5,) * 3, cache).eval()

    cached, plain = model(True), model(False)
    images = photos(6, 3, *size, seed=3)
    images = images / 255 if as_float else images
    flipped = images.flip(3)
    for batch, asked in [(images[:4], 4), (images[[5, 2, 5, 0]], 5), (flipped[:3], 8), (images, 9), (flipped[:3], 9)]:
        with torch.inference_mode():
            got, expected = cached(batch), plain(batch)
        assert cached.asked == asked
        for name in ("values", "cls", "saliency"):
            assert torch.equal(getattr(got, name), getattr(expected, name))
    assert not cached.state_dict()


def test_the_cache_tells_images_apart_by_one_bit_and_stops_at_its_limit() -> None:
    images = photos(1, 3, 16, 16).expand(64, -1, -1, -1).clone()
    changed = images.flatten(1)
    for row in range(64):  # every change in the highest byte of a word, where sums of products lose most
        changed[row, 3 + 4 * row] ^= 128
        changed[row, 7 + 4 * row] ^= 128
    cache = Cache(limit=3 * 16 * 4)
    keys = cache.keys(images)
    assert len(set(keys)) == 64 and all(len(key) == 2 for key in keys)
    asked: list[int] = []

    def teach(batch: Tensor) -> Wanted:
        asked.append(len(batch))
        return Wanted(batch[:, :1, 0, :].float())  # 16 floats an image

    for _ in range(2):
        cache.recall(images[:2], teach)
        cache.recall(images[2:5], teach)
    assert asked == [2, 3, 3] and len(cache.rows) == 2


OPEN_CLIP = {"name": "clip", "model": "local-dir:FOLDER"}
TIMM = {"name": "timm", "model": "test_vit", "pretrained": False}


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (OPEN_CLIP | {"norm": False}, "target.proj=true reads normalised tokens: take target.norm=true too"),
        (OPEN_CLIP | {"layer": 3}, "target.layer=3: .* has blocks 0 to 2, or -3 to -1"),
        (OPEN_CLIP | {"model": "local-dir:nowhere"}, "nowhere: needs open_clip_config.json and weights"),
        (OPEN_CLIP | {"model": "ViT-B-61"}, "OpenCLIP has no 'ViT-B-61'; did you mean 'ViT-B-16'"),
        (OPEN_CLIP | {"model": "ViT-B-16", "pretrained": "opena1"}, "no tag of ViT-B-16; did you mean 'openai'.*laion2b"),
        (OPEN_CLIP | {"model": "ViT-B-16", "pretrained": None}, "target.pretrained=None: no file and no tag"),
        (OPEN_CLIP | {"model": "ViT-B-16-SigLIP", "pretrained": "webli"}, "is another network: take target=timm"),
        (OPEN_CLIP | {"model": "RN50"}, "is another network: take target=timm"),
        (OPEN_CLIP | {"model": "coca_ViT-B-32", "pretrained": "laion2b_s13b_b90k"}, "pools before it normalises"),
        (OPEN_CLIP | {"model": "ViT-B-16", "pretrained": "FILE"}, "no image tower as target.model says .*Missing key"),
        (OPEN_CLIP | {"model": "ViT-B-16"}, "no network; pass target.model=local-dir:FOLDER or target.pretrained=FILE"),
        (TIMM | {"model": "test_vti"}, "timm has no 'test_vti'; did you mean 'test_vit'"),
        (TIMM | {"model": "test_vit.r160_in2k"}, "Invalid pretrained tag"),
        (TIMM | {"model": "test_vit.r160_in2k", "pretrained": True}, "no weights of .*test_vit.r160_in1k"),
        (TIMM | {"pretrained": True}, "no network; pass target.pretrained=FILE"),
        (TIMM | {"pretrained": "FILE"}, "target.model=test_vit target.pretrained=.*Missing key"),
        (TIMM | {"pretrained": "nowhere.pth"}, "weights nowhere.pth: no such file"),
        (TIMM | {"layer": 6}, "target.layer=6: 'test_vit' has 0 to 5, or -6 to -1"),
        (TIMM | {"model": "test_resnet", "cls": True}, "'test_resnet' has no class token"),
        (TIMM | {"model": "test_resnet", "saliency": True}, "needs a plain ViT with a class token"),
        (TIMM | {"model": "cait_xxs24_224"}, "gives no 4x4 features .* it fits a grid of 14x14 only"),
        (TIMM | {"model": "inception_v3"}, "gives no 4x4 features for images of 128x128 .it gives 4.$"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    target: dict[str, Any], says: str, clip_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    places = {"FOLDER": str(clip_folder), "FILE": str(clip_folder / "open_clip_model.safetensors")}
    for word, place in places.items():
        target = {key: x.replace(word, place) if isinstance(x, str) else x for key, x in target.items()}
    with pytest.raises(UserError, match=says) as refusal:
        teacher(target)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_other_numbers_of_channels_are_refused(clip_folder: Path) -> None:
    with pytest.raises(UserError, match=r"reads 3 channels .or 1, repeated., encoder.in_chans=4"):
        teacher({"name": "clip", "model": f"local-dir:{clip_folder}"}, in_chans=4)


def test_without_a_network_the_command_says_what_to_pass(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, where downloading would try again and again: the hub is a port at which nobody listens."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    start = time.monotonic()
    done = command("train", tiny_file, "target=clip", "--out", tmp_path / "run")
    assert done.returncode == 2 and time.monotonic() - start < 40
    assert "no network; pass target.model=local-dir:FOLDER or target.pretrained=FILE" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
