"""VQGAN's encoder, codebook and decoder against its formulas written out in float64; tokenizers of its runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mimkit
from mimkit.codebook import nearest_l2
from mimkit.convnet import ConvDecoder, ConvEncoder
from mimkit.draft import load_recipe
from mimkit.errors import UserError
from mimkit.heads.vq_decoder import VQDecoder
from mimkit.saved.tokenizer import load_tokenizer
from mimkit.train.loop import train
from mimkit.types import Features, Mask
from mimkit.weights.tokenizer import save_tokenizer
from tests.vqgan import HEAD, SMALL, small


class Written:
    """The authors' layers as plain formulas on (B, C, H, W), by the names of the weights."""

    def __init__(self, module: torch.nn.Module, style: str):
        self.w, self.style = {name: p.detach().clone() for name, p in module.state_dict().items()}, style
        for p in self.w.values():
            p.requires_grad_()

    def conv(self, x, name, stride=1):
        """Every output pixel is a sum over the kernel; what lies outside is 0."""
        weight, bias = self.w[f"{name}.weight"], self.w.get(f"{name}.bias")
        side = weight.shape[-1]
        if stride == 1:
            x = F.pad(x, (side // 2,) * 4)
        windows = x.unfold(2, side, stride).unfold(3, side, stride)
        out = torch.einsum("bchwij,ocij->bohw", windows, weight)
        return out if bias is None else out + bias[None, :, None, None]

    def norm(self, x, name):
        groups = x.unflatten(1, (32, -1))
        mean = groups.mean((2, 3, 4), keepdim=True)
        variance = ((groups - mean) ** 2).mean((2, 3, 4), keepdim=True)
        x = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return x * self.w[f"{name}.weight"][None, :, None, None] + self.w[f"{name}.bias"][None, :, None, None]

    def swish(self, x):
        return x / (1 + torch.exp(-x))

    def block(self, x, name):
        h = self.conv(self.swish(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = self.conv(self.swish(self.norm(h, f"{name}.norm2")), f"{name}.conv2")
        if f"{name}.nin_shortcut.weight" in self.w:
            x = self.conv(x if self.style == "taming" else h, f"{name}.nin_shortcut")
        return x + h

    def attention(self, x, name):
        if f"{name}.q.weight" not in self.w:
            return x
        normed = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(normed, f"{name}.{part}").flatten(2) for part in "qkv")  # (B, C, L)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5, dim=2)
        mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
        return x + self.conv(mixed, f"{name}.proj_out")

    def middle(self, x):
        return self.block(self.attention(self.block(x, "mid.block_1"), "mid.attn_1"), "mid.block_2")

    def stage(self, x, name, blocks):
        for number in range(blocks):
            x = self.attention(self.block(x, f"{name}.block.{number}"), f"{name}.attn.{number}")
        return x

    def encode(self, x, levels, blocks):
        x = self.conv(x, "conv_in")
        for level in range(levels):
            x = self.stage(x, f"down.{level}", blocks)
            if level == levels - 1:
                break
            if self.style == "taming":
                x = torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)  # a row below, a column to the right
                x = torch.cat([x, torch.zeros_like(x[..., :1])], 3)
                x = self.conv(x, f"down.{level}.downsample.conv", stride=2)
            else:
                x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return self.conv(self.swish(self.norm(self.middle(x), "norm_out")), "conv_out")

    def decode(self, x, levels, blocks):
        x = self.middle(self.conv(x, "conv_in"))
        for level in reversed(range(levels)):
            x = self.stage(x, f"up.{level}", blocks + (self.style == "taming"))
            if level:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(x, f"up.{level}.upsample.conv")
        return self.conv(self.swish(self.norm(x, "norm_out")), "conv_out")


@pytest.mark.parametrize("style", ["taming", "maskgit"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_network_is_the_formulas(part: str, style: Any) -> None:
    """Output and all gradients, on an oblong image; compared with the authors' classes as well, outside of the suite."""
    torch.manual_seed(0)
    mult, blocks = (1, 2, 2), 1
    if part == "encoder":
        net: torch.nn.Module = ConvEncoder(3, 32, mult, blocks, 5, style).double()
        x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    else:
        net, x = ConvDecoder(3, 32, mult, blocks, 5, style).double(), torch.randn(2, 5, 2, 3, dtype=torch.float64)
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1) * 0.5, std=0.1)
    written = Written(net, style)
    ours, theirs = net(x), (written.encode if part == "encoder" else written.decode)(x, 3, blocks)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, written.w[name].grad, rtol=1e-7, atol=1e-9, msg=name)


def test_the_numbers_of_the_published_tokenizers() -> None:
    """144 and 194 tensors, 29.30 M and 42.45 M parameters (VQGAN f16); 168 tensors with the codebook (MAGE's)."""
    size = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 256}
    with torch.device("meta"):
        encoder, decoder = ConvEncoder(3, **size, style="taming"), ConvDecoder(3, **size, style="taming")
        plain = [net(3, **size, style="maskgit") for net in (ConvEncoder, ConvDecoder)]
    assert (len(encoder.state_dict()), len(decoder.state_dict())) == (144, 194)
    sizes = [round(sum(p.numel() for p in net.parameters()) / 1e6, 2) for net in (encoder, decoder)]
    assert sizes == [29.30, 42.45]
    assert sum(len(net.state_dict()) for net in plain) + 1 == 168


def head(**options: Any) -> VQDecoder:
    torch.manual_seed(1)
    given = {name: value for name, value in HEAD.items() if name != "name"} | {"vocab_size": 9} | options
    facts: Any = {"encoder_dim": 6, "out_dim": 48, "grid": (2, 3), "patch_size": 4, "in_chans": 3}
    return VQDecoder(**facts, **given | {"ch_mult": (1, 1, 1)}).double()


def tokens() -> tuple[Features, Mask]:
    values = torch.randn(4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 3
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    return Features(values.requires_grad_(), grid=(2, 3)), Mask.from_hidden(hidden, ~hidden, grid=(2, 3))


@pytest.mark.parametrize(("commitment", "codebook"), [(1.0, 0.25), (0.25, 1.0)], ids=["code", "paper"])
def test_the_quantizer_is_vector_quantizer_2(commitment: float, codebook: float) -> None:
    """Nearest code by squared distance, straight-through, both terms; loss and gradients of tokens and codes."""
    ours = head(commitment=commitment, codebook=codebook).train()
    torch.nn.init.normal_(ours.codebook.weight, std=0.3)
    features, mask = tokens()
    out = ours(features, mask)
    target = torch.rand_like(out.values)
    (F.l1_loss(out.values, target) + out.losses["codebook"]).backward()
    names = ("codebook.weight", "quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight")
    found = [features.sequence.grad, *(ours.get_parameter(name).grad.clone() for name in names)]

    ours.zero_grad()
    values = features.sequence.detach().clone().requires_grad_()
    z = torch.einsum("bld,ed->ble", values, ours.quant_conv.weight[..., 0, 0]) + ours.quant_conv.bias
    codes = ours.codebook.weight
    index = ((z[:, :, None] - codes) ** 2).sum(-1).argmin(-1)
    zq = codes[index]
    term = commitment * ((zq.detach() - z) ** 2).mean() + codebook * ((zq - z.detach()) ** 2).mean()
    through = z + (zq - z).detach()
    maps = torch.einsum("ble,de->bdl", through, ours.post_quant_conv.weight[..., 0, 0]).unflatten(2, (2, 3))
    images = ours.decoder(maps + ours.post_quant_conv.bias[None, :, None, None])
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(4, 6, 48)  # row, column, channel
    torch.testing.assert_close(out.values, patches)
    torch.testing.assert_close(out.losses["codebook"], term)
    ((patches - target).abs().mean() + term).backward()
    for mine, theirs in zip(found, [values.grad, *(ours.get_parameter(name).grad for name in names)], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)
    assert torch.equal(ours.codes(features), index)
    share = torch.bincount(index.flatten(), minlength=9) / index.numel()
    assert float(out.metrics["perplexity"]) == pytest.approx(float(torch.exp(-(share * (share + 1e-30).log()).sum())))


def test_nearest_l2_by_hand() -> None:
    codes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    vectors = torch.tensor([[0.4, 0.4], [0.6, 0.6], [5.6, 0.0], [4.0, 0.1]])
    assert nearest_l2(vectors, codes).tolist() == [
        0,
        2,
        1,
        2,
    ]  # by cosine the third code would win but for the third row
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_l2(vectors, codes).tolist() == [0, 2, 1, 2]


def test_the_codebook_starts_as_the_authors_and_eval_moves_nothing() -> None:
    ours = head(vocab_size=50, revive=True)
    assert 0.95 / 50 < ours.codebook.weight.abs().max().item() <= 1 / 50
    before = {name: x.clone() for name, x in ours.state_dict().items()}
    features, mask = tokens()
    ours.eval()(features, mask)
    assert all(torch.equal(x, before[name]) for name, x in ours.state_dict().items())


def test_codes_out_of_use_become_vectors_of_the_batch() -> None:
    ours = head(vocab_size=50, revive=True).train()
    before, (features, mask) = ours.codebook.weight.detach().clone(), tokens()
    vectors = ours._vectors(features).detach().flatten(0, 1)
    used = nearest_l2(vectors, before).unique()
    ours(features, mask).losses["codebook"].backward()  # the codes of this step are those before
    rows = {tuple(row) for row in vectors.tolist()}
    moved = [code for code in range(50) if not torch.equal(ours.codebook.weight[code], before[code])]
    assert moved == [code for code in range(50) if code not in used]
    assert all(tuple(ours.codebook.weight[code].tolist()) in rows for code in moved)


def test_decode_paints_what_was_encoded() -> None:
    """Images in [0, 1] from codes: those of the prediction, brought back by the target."""
    model = small().eval()
    images = torch.rand(3, 3, 16, 24)
    with torch.no_grad():
        out = model(images)
        objective: Any = model.objectives["main"]
        wanted = objective.target.to_images(out.prediction, model.encoder.grid).clamp(0, 1)
        codes = objective.head.codes(model.encoder(images))
        torch.testing.assert_close(objective.head.decode(codes), wanted)
    assert codes.shape == (3, 24) and wanted.shape == images.shape
    assert objective.head.last_weight is objective.head.decoder.conv_out.weight


def test_maskgit_reads_and_paints_images_as_they_are() -> None:
    model = small(style="maskgit", code_dim=8, mean=[0.0] * 3, std=[1.0] * 3).eval()
    images = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        objective: Any = model.objectives["main"]
        maps = model.encoder.timm_model(images)
        torch.testing.assert_close(model.encoder(images).tokens, maps.flatten(2).transpose(1, 2))
        decoded = objective.head.decode(objective.head.codes(model.encoder(images)))
        values = model(images).prediction
        torch.testing.assert_close(mimkit.unpatchify(values, (4, 6), 4).clamp(0, 1), decoded)


def test_hidden_places_are_painted_grey() -> None:
    model = small()
    hidden = torch.zeros(1, 24, dtype=torch.bool)
    hidden[0, 7] = True  # second row, second column
    images = torch.rand(1, 3, 16, 24)
    grey = images.clone()
    grey[..., 4:8, 4:8] = 0.5
    masked = model.encoder(images, Mask.from_hidden(hidden))
    torch.testing.assert_close(masked.tokens, model.encoder(grey).tokens)


def test_a_tokenizers_run_is_the_target_of_the_next(tmp_path: Path) -> None:
    """VQGAN for a few steps, its tokenizer read back; then an MAE that learns its codes takes a step."""
    short = {"train": {"max_steps": 8, "log_every": 2}, "probe": {"every": 0}}
    first = train(load_recipe(SMALL | short | {"optim": {"lr": 3e-3}}), tmp_path / "vqgan")
    lines = [json.loads(line) for line in (tmp_path / "vqgan" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss_main"] < lines[0]["loss_main"]
    assert {"perplexity", "codes_used", "loss_main.codebook"} <= lines[-1].keys()
    assert first["exit"] == "done" and first["psnr"] > 3 and 0 < first["mse"] < 0.5
    assert (tmp_path / "vqgan" / "pictures" / "reconstruction.png").is_file()
    encoder, tokenizer = load_tokenizer(tmp_path / "vqgan")
    assert torch.equal(
        mimkit.load(tmp_path / "vqgan")(torch.ones(1, 3, 16, 24)).tokens, encoder(torch.ones(1, 3, 16, 24)).tokens
    )
    assert encoder.embed_dim == 8 and tokenizer.vocab_size == 16
    target = f"target.checkpoint={tmp_path / 'vqgan'}"
    more = ["target=vq", target, "image_size=[16,24]", "data=shapes", "data.num_images=16", "data.num_test=4"]
    recipe = load_recipe("mae", [*more, "data.batch_size=8", "train.epochs=0.5", "probe.every=0", "encoder.depth=1"])
    assert train(recipe, tmp_path / "mae")["step"] == 1


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"mask": "random"}, r"encoder 'conv' reads the pixels of all places: set mask\.feed=all, or take encoder=vit"),
        ({"head": HEAD | {"ch_mult": [1, 1]}}, r"ch_mult has 2 levels, .* 2 pixels, the encoder's have 4: 3 levels would fit"),
        ({"target": "hog"}, r"head 'vq_decoder' paints pixels, the target is 108 wide: take target=pixels"),
        ({"head": HEAD | {"style": "maskgit"}}, r"quantizes the tokens as they are: set head\.code_dim=8"),
        ({"head": HEAD | {"ch": 40}}, r"option 'ch': should be a multiple of 32, got 40"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted) as refusal:
        mimkit.build(SMALL | change)
    assert "\n" not in str(refusal.value)


def test_a_vit_may_be_its_encoder(tmp_path: Path) -> None:
    """And the tokenizer is built again from its files."""
    vit = {"name": "vit", "embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4}
    model = mimkit.build(SMALL | {"encoder": vit})
    model(torch.rand(2, 3, 16, 24)).loss.backward()
    save_tokenizer(tmp_path, model)
    encoder, tokenizer = load_tokenizer(tmp_path)
    images, objective = torch.rand(2, 3, 16, 24), next(iter(model.eval().objectives.values()))
    assert torch.equal(tokenizer.codes(encoder(images)), objective.head.codes(model.encoder(images)))
