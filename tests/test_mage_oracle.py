"""MAGE against its maths, written anew after the authors' code in float64: loss and all gradients, and the mask's numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

from mimkit.errors import UserError
from mimkit.masks.variable import Variable
from mimkit.types import Mask
from tests.mage import CODES, HEAD, PLACES, mage, save_vqkd


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_vqkd(tmp_path_factory.mktemp("tokenizer"))


def dense(params, name, x):
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def norm(params, name, x, eps=1e-6):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt() * params[f"{name}.weight"]
        + params[f"{name}.bias"]
    )


def block(params, name, x, heads):
    images, tokens, width = x.shape
    qkv = dense(params, f"{name}.attn.qkv", norm(params, f"{name}.norm1", x))
    query, key, value = qkv.view(images, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    mixed = (query @ key.transpose(2, 3) / math.sqrt(width // heads)).softmax(-1) @ value
    x = x + dense(params, f"{name}.attn.proj", mixed.transpose(1, 2).reshape(images, tokens, width))
    hidden = F.gelu(dense(params, f"{name}.mlp.fc1", norm(params, f"{name}.norm2", x)))
    return x + dense(params, f"{name}.mlp.fc2", hidden)


def reference(encoder, head, codes, hidden, dropped):
    """MAGE's loss from names and shapes alone: every token is embedded, then the dropped ones leave."""
    ids = torch.where(hidden, CODES + 1, codes)
    ids = torch.cat([torch.full((len(ids), 1), CODES), ids], 1)
    x = norm(encoder, "embed_norm", encoder["code_embed.weight"][ids] + encoder["pos_embed"])
    kept = F.pad(~dropped, (1, 0), value=True)
    x = x[kept].view(len(ids), -1, x.shape[-1])
    for number in range(2):
        x = block(encoder, f"blocks.{number}", x, heads=2)
    x = dense(head, "embed", norm(encoder, "norm", x))
    padded = x[:, :1].repeat(1, 1 + PLACES, 1)
    padded[kept] = x.reshape(-1, x.shape[-1])
    padded = torch.where(F.pad(hidden, (1, 0))[..., None], x[:, :1], padded) + head["pos_embed"]
    for number in range(2):
        padded = block(head, f"blocks.{number}", padded, heads=4)
    x = F.gelu(dense(head, "predict.0", norm(head, "norm", padded)))
    logits = norm(head, "predict.2", x, 1e-5) @ encoder["code_embed.weight"][:CODES].detach().T + head["bias"]
    log = logits[:, 1:].log_softmax(-1)
    loss = -0.9 * log.gather(-1, codes[..., None])[..., 0] - 0.1 * log.mean(-1)
    return (loss * hidden).sum() / hidden.sum()


def drawn(seed, hide, drop, images=3):
    """Hidden and dropped places of three images, the dropped among the hidden."""
    order = torch.rand(images, PLACES, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return order < hide, order < drop


@pytest.mark.parametrize(("hide", "drop"), [(8, 8), (11, 8), (16, 8), (5, 0)])
def test_loss_and_gradients(tokenizer, hide, drop):
    model = mage(tokenizer).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 * (parameter.ndim == 1), std=0.3)
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    hidden, dropped = drawn(1, hide, drop)
    fed = (~dropped).nonzero()[:, 1].view(3, -1) if drop else None
    mask = Mask.from_hidden(hidden, fed=fed, grid=(4, 4))
    out = model(images, mask=mask)
    codes = model.objectives["main"].target(images)
    parts = [
        {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in part.named_parameters()}
        for part in (model.encoder.timm_model, model.objectives["main"].head)
    ]
    wanted = reference(*parts, codes, hidden, dropped)
    torch.testing.assert_close(out.loss, wanted, rtol=1e-6, atol=0, check_dtype=False)
    ours = (
        model.objectives["main"].compare(out.prediction, out.target).mean()
    )  # the model's own loss is rounded to float32
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=0)
    ours.backward()
    wanted.backward()
    for part, module in zip(parts, (model.encoder.timm_model, model.objectives["main"].head)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, part[name].grad, rtol=1e-8, atol=1e-12, msg=name)


def test_the_tie_gives_the_embedding_no_gradient(tokenizer):
    """With nothing visible only the class token and the mask are embedded, so no code's embedding has a gradient."""
    model = mage(tokenizer)
    hidden = torch.ones(2, PLACES, dtype=torch.bool)
    model(torch.rand(2, 3, 16, 16), mask=Mask.from_hidden(hidden)).loss.backward()
    grad = model.encoder.timm_model.code_embed.weight.grad
    assert not grad[:CODES].any() and grad[CODES].any() and grad[CODES + 1].any()


def test_dropout_is_where_the_authors_have_it(tokenizer):
    """Of what enters the first block, of attention weights, its output, both layers of each MLP; not in eval mode."""
    model = mage(tokenizer, dropout=0.1)
    rates = {
        name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and "tokenizer" not in name
    }
    places = {"attn.attn_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2"}
    wanted = {f"{part}.blocks.{n}.{place}" for n in range(2) for place in places
              for part in ("encoder.timm_model", "objectives.main.head")}  # fmt: skip
    assert rates == dict.fromkeys(wanted | {"encoder.timm_model.embed_drop"}, 0.1)


def test_the_masks_numbers():
    """Mean of the truncated normal distribution by its formula, 0.694; counts rounded up; the dropped are hidden."""
    generator = torch.Generator().manual_seed(0)
    masks = [Variable().draw((16, 16), 2, generator) for _ in range(4000)]
    counts = torch.tensor([mask.hidden.sum(1).tolist() for mask in masks])
    assert torch.equal(counts[:, 0], counts[:, 1]) and counts.min() >= 128 and counts.max() <= 256
    low, high = (0.5 - 0.55) / 0.25, (1 - 0.55) / 0.25
    normal = torch.distributions.Normal(0.0, 1.0)
    density = [normal.log_prob(torch.tensor(cut)).exp().item() for cut in (low, high)]
    below = [normal.cdf(torch.tensor(cut)).item() for cut in (low, high)]
    mean = 0.55 + 0.25 * (density[0] - density[1]) / (below[1] - below[0])
    assert mean == pytest.approx(0.694, abs=5e-4)
    assert counts.double().mean() / 256 == pytest.approx(mean + 0.5 / 256, abs=0.006)  # rounded up; 3 standard errors
    edges = torch.tensor([0.6, 0.75, 0.9])
    share = (counts[:, :1] <= 256 * edges).double().mean(0)
    wanted = (normal.cdf((edges - 0.55) / 0.25) - below[0]) / (below[1] - below[0])
    torch.testing.assert_close(share, wanted.double(), rtol=0, atol=0.025)
    for mask in masks[:50]:
        assert mask.fed.shape == (2, 128) and torch.equal(mask.fed, mask.fed.sort(1).values)
        dropped = torch.ones_like(mask.hidden).scatter(1, mask.fed, False)
        assert mask.hidden[dropped].all() and torch.equal(mask.predicted, mask.hidden)
        assert torch.equal(mask.predicted_index, mask.hidden.nonzero()[:, 1].view(2, -1))


def test_masks_of_other_settings():
    generator = torch.Generator().manual_seed(0)
    mask = Variable(low=0.3, high=0.3, drop=0.2).draw((3, 5), 4, generator)
    assert mask.hidden.sum(1).tolist() == [5] * 4 and mask.fed.shape == (4, 12)
    whole = Variable(drop=0.0)
    assert whole.feed == "all" and whole.draw((3, 5), 4, generator).fed is None
    with pytest.raises(UserError, match=r"mask\.drop=0\.6, mask\.low=0\.5 and mask\.high=1\.0 must rise"):
        Variable(drop=0.6)


def test_the_decoder_asks_for_the_encoders_codes(tokenizer):
    model = mage(tokenizer)
    head = model.objectives["main"].head
    assert head.bias.shape == (CODES,) and HEAD["name"] == "code_decoder"
    for other in ({"target": "pixels", "loss": "mse"}, {"encoder": {"name": "vit", "embed_dim": 24, "patch_size": 4,
                  "num_heads": 2}, "target": "pixels", "loss": "mse"}):  # fmt: skip
        with pytest.raises(UserError, match="head 'code_decoder' predicts the codes that the encoder reads: take"):
            mage(tokenizer, **other)(torch.rand(2, 3, 16, 16))
    with pytest.raises(UserError, match="target 'codes' is what an encoder of codes reads, this one reads pixels"):
        mage(tokenizer, encoder={"name": "vit", "embed_dim": 24, "patch_size": 4, "num_heads": 2})
