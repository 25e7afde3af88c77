"""The quantizer against the authors' rule written anew in float64, a k-means by hand, and vector-quantize-pytorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize

import mimkit
from mimkit.codebook import moved, nearest, perplexity, straight_through, totals
from mimkit.data.sources.shapes import Shapes
from mimkit.errors import UserError
from mimkit.heads.quantizer import Quantizer
from mimkit.types import Features
from tests.quantizers import GRID, batch, quantizer, run


class Reference:
    """One training step of VQ-KD, written out: every row by itself where the rule says "for each code"."""

    def __init__(self, head):
        self.w = {name: p.detach().clone().requires_grad_() for name, p in head.named_parameters()}
        self.codebook, self.counts, self.decay = head.codebook.clone(), head.counts.clone(), head.decay

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def block(self, x, name, heads=3):
        q, k, v = (self.norm(x, f"{name}.norm1") @ self.w[f"{name}.attn.qkv.weight"].T).chunk(3, -1)
        q, v = q + self.w[f"{name}.attn.q_bias"], v + self.w[f"{name}.attn.v_bias"]
        mixed = []
        for one_q, one_k, one_v in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
            mixed.append(torch.softmax(one_q @ one_k.mT / one_q.shape[-1] ** 0.5, -1) @ one_v)
        x = x + self.linear(torch.cat(mixed, -1), f"{name}.attn.proj")
        inner = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + self.linear(inner * 0.5 * (1 + torch.erf(inner / 2**0.5)), f"{name}.mlp.fc2")

    def __call__(self, tokens, commitment):
        z = self.linear(torch.tanh(self.linear(tokens[:, 1:], "encode.0")), "encode.2")
        z = z / z.norm(dim=-1, keepdim=True)
        flat = z.detach().flatten(0, 1)
        index = (flat[:, None] - self.codebook[None]).pow(2).sum(-1).argmin(1)  # by distance, as the paper has it
        quantized = self.codebook[index].view_as(z)
        self.move(flat, index)
        x = z + (quantized - z).detach()
        x = x @ self.w["decoder.patch_embed.proj.weight"].flatten(1).T + self.w["decoder.patch_embed.proj.bias"]
        x = torch.cat([self.w["decoder.cls_token"].expand(len(x), -1, -1), x], 1) + self.w["decoder.pos_embed"]
        for number in range(2):
            x = self.block(x, f"decoder.blocks.{number}")
        x = self.norm(x, "decoder.norm")[:, 1:]
        x = self.linear(torch.tanh(self.linear(x, "decode.0")), "decode.2")
        return x, commitment * ((quantized - z) ** 2).mean(), index

    def move(self, flat, index):
        codebook = self.codebook.clone()
        for code in range(len(codebook)):
            mine = flat[index == code]
            self.counts[code] = self.decay * self.counts[code] + (1 - self.decay) * len(mine)
            if len(mine):
                mean = mine.mean(0) / mine.mean(0).norm()
                new = self.decay * codebook[code] + (1 - self.decay) * mean
                codebook[code] = new / new.norm()
        self.codebook = codebook


@pytest.mark.parametrize("commitment", [1.0, 0.4])
def test_several_training_steps_equal_the_rule_written_out(commitment):
    """Prediction, losses, every gradient, codebook and counts, over five steps of plain gradient descent."""
    head = quantizer(commitment=commitment, decay=0.8).train()
    start, _, mask = batch(0)
    run(head, start, mask)  # the k-means start
    reference = Reference(head)
    for step in range(1, 6):
        tokens, wanted, mask = batch(step)
        out = run(head, tokens, mask)
        values, committed, index = reference(tokens, commitment)
        torch.testing.assert_close(out.values, values, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(out.losses["commitment"], committed, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(head.codebook, reference.codebook, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(head.counts, reference.counts, rtol=1e-9, atol=1e-12)
        share = torch.bincount(index, minlength=12) / len(index)
        entropy = -sum(p * math.log(p) for p in share.tolist() if p)
        assert float(out.metrics["perplexity"]) == pytest.approx(math.exp(entropy), rel=1e-6)
        for loss, parameters in (
            (F.mse_loss(out.values, wanted) + out.losses["commitment"], dict(head.named_parameters())),
            (F.mse_loss(values, wanted) + committed, reference.w),
        ):
            for parameter in parameters.values():
                parameter.grad = None
            loss.backward()
        for name, parameter in head.named_parameters():
            torch.testing.assert_close(parameter.grad, reference.w[name].grad, rtol=1e-8, atol=1e-10, msg=name)
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter -= 0.3 * parameter.grad
                reference.w[name] -= 0.3 * reference.w[name].grad


def test_the_look_up_comes_before_the_update():
    """Codes that a step moves far (decay 0): what the decoder and the commitment see is the code as it was."""
    head = quantizer(vocab_size=2, decay=0.0, kmeans_init=False).train()
    before = head.codebook.clone()
    tokens, _, mask = batch(1)
    z = F.normalize(head.encode(tokens[:, 1:]), dim=-1).detach()
    index = (z @ before.T).argmax(-1)
    loss = run(head, tokens, mask).losses["commitment"].detach()
    assert (head.codebook - before).abs().max() > 0.1
    torch.testing.assert_close(loss, (z - before[index]).pow(2).mean())
    assert abs(float(loss - (z - head.codebook[index]).pow(2).mean())) > 1e-3


def test_eval_mode_moves_nothing():
    head, (tokens, _, mask) = quantizer(kmeans_init=False).eval(), batch(2)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with torch.inference_mode():
        run(head, tokens, mask)
    run(head, tokens, mask).values.sum().backward()
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_look_up_straight_through_and_commitment_equal_another_implementation():
    """vector-quantize-pytorch with its codebook frozen (its moving average weighs codes by their counts, ours not)."""
    codes = F.normalize(torch.randn(20, 4), dim=1)
    other = VectorQuantize(dim=4, codebook_size=20, use_cosine_sim=True, freeze_codebook=True, rotation_trick=False)
    other._codebook.embed.copy_(codes[None])
    ours, theirs = (torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(9)).requires_grad_() for _ in range(2))
    z = F.normalize(ours, dim=-1)
    index = nearest(z.detach().flatten(0, 1), codes)
    quantized = codes[index].view_as(z)
    values, indices, loss = other.train()(theirs)
    assert torch.equal(index.view(3, 6), indices)
    torch.testing.assert_close(straight_through(z, quantized), values)
    torch.testing.assert_close(F.mse_loss(z, quantized), loss.squeeze())
    slope = torch.randn(3, 6, 4)
    ((straight_through(z, quantized) * slope).sum() + F.mse_loss(z, quantized)).backward()
    ((values * slope).sum() + loss.squeeze()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_small_cases_by_hand():
    """Ties, sums, movement and perplexity; chunks change nothing."""
    codes = torch.tensor([[1.0, 0], [0, 1], [0, 1], [-1, 0]])
    vectors = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 1], [0.6, 0.8]])
    index = nearest(vectors, codes)
    assert index.tolist() == [1, 0, 1, 1]  # 1 and 2 are equal: the first
    sums, counts = totals(vectors, index, 4)
    assert counts.tolist() == [1, 3, 0, 0]
    torch.testing.assert_close(sums, torch.tensor([[0.8, 0.6], [1.2, 2.6], [0, 0], [0, 0]]))
    new = moved(codes, sums, counts, decay=0.5)
    torch.testing.assert_close(new[0], torch.tensor([1.8, 0.6]) / math.sqrt(3.6))
    assert torch.equal(new[2:], codes[2:])
    assert float(perplexity(torch.tensor([5.0, 5, 5, 0]))) == pytest.approx(3)
    rows, many = F.normalize(torch.randn(9000, 8), dim=1), F.normalize(torch.randn(4096, 8), dim=1)
    assert torch.equal(nearest(rows, many), (rows @ many.T).argmax(1))


def test_autocast_leaves_the_codes_alone():
    """The codes of bfloat16 training are those of float32; the decoder runs in half precision."""
    head, (tokens, _, mask) = quantizer(kmeans_init=False).float().eval(), batch(2)
    features = Features(tokens.float(), num_prefix_tokens=1, grid=GRID)
    plain, losses = head.codes(features), run(head, tokens.float(), mask).losses
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.codes(features), plain)
        out = run(head, tokens.float(), mask)
    assert out.values.dtype == torch.bfloat16 and torch.equal(out.losses["commitment"], losses["commitment"])


def test_initial_weights_are_the_authors():
    """Standard deviations and zero biases; attention and MLP outputs shrink with the depth of the block."""
    torch.manual_seed(0)
    head = Quantizer(encoder_dim=96, out_dim=64, grid=GRID, vocab_size=50, embed_dim=96, depth=3, num_heads=3)
    for layer in (head.encode[0], head.encode[2], head.decode[0], head.decode[2]):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.06) and not layer.bias.any()
    for number, block in enumerate(head.decoder.blocks, 1):
        scaled = 0.02 / math.sqrt(2 * number)
        assert float(block.attn.proj.weight.detach().std()) == pytest.approx(scaled, rel=0.06)
        assert float(block.mlp.fc2.weight.detach().std()) == pytest.approx(scaled, rel=0.06)
        assert block.gamma_1 is None and block.attn.relative_position_bias_table is None
    own = {name.split(".")[0] for name in head.state_dict()}
    assert own == {"encode", "codebook", "counts", "decoder", "decode"} and head.counts.shape == (50,)


def test_mistakes_are_told_in_one_line():
    with pytest.raises(UserError, match="set mask=none"):
        Quantizer(encoder_dim=8, out_dim=4, grid=GRID, feed="visible")
    with pytest.raises(UserError, match="divisible by num_heads=12"):
        Quantizer(encoder_dim=8, out_dim=4, grid=GRID, embed_dim=100)


def test_twenty_steps_lower_the_loss_and_use_many_codes(tiny):
    """On the embedded shapes, their pixels as the target."""
    torch.manual_seed(0)
    head = {"name": "quantizer", "vocab_size": 32, "code_dim": 8, "decay": 0.5, "revive": True}
    head |= {"embed_dim": 24, "depth": 1, "num_heads": 2}
    model = mimkit.build(tiny | {"mask": "none", "target": "pixels", "head": head}).train()
    images = Shapes(num_images=32, num_test=8, image_size=(16, 16)).as_tensor()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    outs = []
    for _ in range(20):
        outs.append(model(images))
        optimizer.zero_grad()
        outs[-1].loss.backward()
        optimizer.step()
    first, last = (float(out.losses["main"].detach()) for out in (outs[0], outs[-1]))
    assert last < 0.7 * first
    assert float(outs[-1].metrics["main.perplexity"]) > 8
    assert float(outs[-1].metrics["main.codes_used"]) > 0.8
