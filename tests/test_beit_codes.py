"""BEiT whole, from a tokenizer's codes to the gradients, against transformers; the tokenizer's view; CAE's encoder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BeitConfig, BeitForMaskedImageModeling

import mimkit
from mimkit.encoders.beit import Beit
from mimkit.errors import UserError
from mimkit.saved.encoder import save_encoder
from mimkit.saved.tokenizer import load_tokenizer
from mimkit.types import Mask, Standardize
from mimkit.weights.tokenizer import save_tokenizer
from tests.test_cae import positions
from tests.test_simmim_oracle import GEOMETRY, WIDTH, gap, randomised, renamed

CODES = 30
ENCODER = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 5}
HEAD = {"name": "quantizer", "vocab_size": CODES, "code_dim": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Codes of 4x4 places of images of 10 px."""
    torch.manual_seed(4)
    plain = {"method": "m", "optim": {"lr": 1e-3}, "train": {"epochs": 1}}
    encoder = {"name": "vit", "embed_dim": 12, "depth": 1, "num_heads": 2, "patch_size": 4}
    model = mimkit.build(
        plain | {"image_size": 16, "encoder": encoder, "mask": "none", "head": HEAD, "target": "pixels"}
    )
    model.train()(torch.rand(40, 3, 16, 16))
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, model)
    return folder


def beit(tokenizer: Path, view: str = "image"):
    return mimkit.build(
        {
            "method": "beit", "image_size": 20, "optim": {"lr": 1e-3}, "train": {"epochs": 1},
            "encoder": {"name": "beit", **ENCODER}, "head": {"name": "linear", "init": "cut"},
            "mask": {"name": "block", "rule": "at_most", "feed": "all"},
            "target": {"name": "vq", "checkpoint": str(tokenizer), "view": view},
            "data": {"name": "shapes", "views": {"small": {"image_size": 16}}},
        }
    )  # fmt: skip


def test_beit_equals_the_oracle(tokenizer):
    """Codes of a view of its own; unequal numbers of hidden places; the mean over all of them in the batch."""
    config = BeitConfig(
        **WIDTH, **GEOMETRY, vocab_size=CODES, use_mask_token=True, use_shared_relative_position_bias=True
    )
    theirs = randomised(BeitForMaskedImageModeling(config))
    model = beit(tokenizer, view="small").eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.load_state_dict(renamed({name: p.detach() for name, p in theirs.named_parameters()}, model), strict=False)
    images, hidden = torch.rand(4, 3, 20, 20), torch.arange(16) < torch.tensor([[6], [5], [6], [3]])
    out = model(images, mask=Mask.from_hidden(hidden))
    encoder, head = load_tokenizer(tokenizer)
    codes = head.codes(encoder(model.views(images)["small"]))[hidden]
    assert len(codes.unique()) > 3 and torch.equal(out.target, codes)

    wanted = theirs(pixel_values=Standardize(3)(images), bool_masked_pos=hidden, labels=codes)
    wanted.loss.backward()
    out.loss.backward()
    assert gap(out.prediction, wanted.logits[hidden]) < 1e-5
    assert gap(out.loss, wanted.loss) < 1e-5
    theirs_by_our_names = renamed({name: p.grad for name, p in theirs.named_parameters()}, model)
    assert theirs_by_our_names.keys() == set(trained)
    gaps = {name: gap(model.get_parameter(name).grad, grad) for name, grad in theirs_by_our_names.items()}
    assert max(gaps.values()) < 1e-5, sorted(gaps.items(), key=lambda item: -item[1])[:3]


def test_a_view_that_is_not_given_is_told(tokenizer):
    with pytest.raises(UserError, match="the target reads the view 'tokens', given are: image"):
        beit(tokenizer, view="tokens")(torch.rand(2, 3, 20, 20))


def cae(feed="visible", **more):
    return Beit(
        image_size=(12, 16), feed=feed, **ENCODER | {"patch_size": 4, "rel_pos": "none", "abs_pos": "sincos"} | more
    )


def test_fixed_positions():
    """CAE's, row first, zero for the class token; not trained; computed anew at another image size."""
    encoder = cae()
    assert not encoder.timm_model.pos_embed.requires_grad
    torch.testing.assert_close(encoder.timm_model.pos_embed[0, 1:].double(), positions(), rtol=0, atol=1e-6)
    assert not encoder.timm_model.pos_embed[0, 0].any()
    with pytest.raises(UserError, match=r"embed_dim=22 must be divisible by 4 for encoder\.abs_pos=sincos"):
        cae(embed_dim=22, num_heads=2)


def test_fixed_positions_at_another_size(tmp_path):
    options = ENCODER | {"patch_size": 4, "rel_pos": "none", "abs_pos": "sincos"}
    save_encoder(tmp_path, cae(), "beit", options)
    assert load_file(tmp_path / "encoder.safetensors")["pos_embed"].shape == (1, 13, 24)
    larger = mimkit.load(tmp_path, image_size=(24, 16)).timm_model.pos_embed
    torch.testing.assert_close(larger, Beit(image_size=(24, 16), **options).timm_model.pos_embed)


def test_the_visible_places_alone_equal_timm_on_all_where_none_is_hidden():
    encoder = cae()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    images = torch.rand(2, 3, 12, 16)
    everything = Mask.from_hidden(torch.zeros(2, 12, dtype=torch.bool)).feed_visible()
    wanted = encoder.timm_model.forward_features(Standardize(3)(images))
    torch.testing.assert_close(encoder(images, everything).sequence, wanted)
    assert encoder.mask_token is None


def test_xavier_initial_weights():
    """Linear layers Xavier-uniform and not scaled by depth; tokens and patches normal, cut at one std; biases 0."""
    torch.manual_seed(0)
    encoder = cae(feed="all", embed_dim=192, init="xavier")
    vit = encoder.timm_model
    for layer in (vit.blocks[0].attn.qkv, vit.blocks[1].attn.proj, vit.blocks[1].mlp.fc2):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is None or not layer.bias.any()
    for weight in (vit.patch_embed.proj.weight, vit.cls_token, encoder.mask_token):
        assert 0.019 < weight.abs().max() <= 0.02
    assert not vit.patch_embed.proj.bias.any() and not vit.blocks[0].attn.q_bias.any()
