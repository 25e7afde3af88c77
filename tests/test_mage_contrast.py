"""MAGE-C's contrast: NT-Xent against its definition in float64, over ranks too, and beside MAGE in one model."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mimkit.errors import UserError
from mimkit.losses import info_nce
from tests.mage import mage, save_vqkd

CONTRAST = {
    "head": {"name": "projector", "hidden_dim": 12},
    "target": {"name": "twin", "dim": 6},
    "loss": {"name": "info_nce", "exclude_self": True},
    "weight": 0.1,
}


def nt_xent(views, tau):
    """SimCLR's loss as its paper defines it: of 2N unit vectors, the other view is told from the 2N - 2 others."""
    units = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in views]
    half, total = len(views) // 2, []
    for i, own in enumerate(units):
        powers = [math.exp(sum(a * b for a, b in zip(own, other)) / tau) for other in units]
        total.append(-math.log(powers[(i + half) % len(views)] / (sum(powers) - powers[i])))
    return total


def projections(rows=8, seed=0):
    return torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_nt_xent_by_its_definition():
    z = projections().requires_grad_(True)
    loss = info_nce(temperature=0.2, exclude_self=True)(z, z.roll(4, 0))
    torch.testing.assert_close(loss.tolist(), nt_xent(z.tolist(), 0.2), rtol=1e-12, atol=0)
    loss.mean().backward()
    for row, column in ((0, 0), (5, 3)):
        values = []
        for step in (1e-5, -1e-5):
            moved = z.detach().clone()
            moved[row, column] += step
            values.append(sum(nt_xent(moved.tolist(), 0.2)) / 8)
        assert z.grad[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_info_nce_of_another_networks_vectors():
    """CMAE's: all wanted vectors count, the prediction's own among them as the right one; lengths count for nothing."""
    z, wanted = projections(seed=1), projections(seed=2)
    cosines = (z / z.norm(dim=1, keepdim=True)) @ (wanted / wanted.norm(dim=1, keepdim=True)).T
    expected = -(cosines / 0.07).log_softmax(1).diagonal() * 0.14
    found = info_nce(temperature=0.07, scale=0.14)
    torch.testing.assert_close(found(z, wanted), expected)
    torch.testing.assert_close(found(7 * z, wanted / 3), expected)
    torch.testing.assert_close(found(z.view(2, 4, 5), wanted.view(2, 4, 5)), expected.view(2, 4))


def on_rank(rank, place):
    """Half of the images on each rank, both crops of each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/port", rank=rank, world_size=2)
    z = projections().view(2, 2, 2, 5)[:, rank].reshape(4, 5).requires_grad_(True)
    loss = info_nce(exclude_self=True)(z, z.roll(2, 0)).mean()
    loss.backward()
    torch.save((loss.detach(), z.grad), f"{place}/{rank}")
    dist.destroy_process_group()


def test_ranks_share_their_negatives(tmp_path: Path):
    """The mean over ranks, loss and gradient, is that of all images on one."""
    mp.spawn(on_rank, (str(tmp_path),), nprocs=2)
    losses, grads = zip(*(torch.load(tmp_path / str(rank), weights_only=True) for rank in (0, 1)))
    z = projections().requires_grad_(True)
    whole = info_nce(exclude_self=True)(z, z.roll(4, 0)).mean()
    whole.backward()
    torch.testing.assert_close(torch.stack(losses).mean(), whole)
    both = torch.stack([grad.view(2, 2, 5) for grad in grads], dim=1).reshape(8, 5) / 2
    torch.testing.assert_close(both, z.grad)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_vqkd(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_contrast_beside_mage(tokenizer, norm):
    """The sum of both losses; the contrast's is that of the mean patch token through the projector, with gradient to both."""
    contrast = CONTRAST | {"head": CONTRAST["head"] | {"norm": norm}}
    model = mage(tokenizer, objectives={"contrast": contrast}, data={"repeats": 2})
    images = torch.rand(6, 3, 16, 16)
    out = model(images, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(out.loss, out.losses["main"] + 0.1 * out.losses["contrast"])
    codes = model.objectives["main"].target(images)
    pooled = model.encoder.encode(codes, out.mask).sequence[:, 1:].mean(1)
    head = model.objectives["contrast"].head
    hidden = pooled @ head.fc1.weight.T + head.fc1.bias
    if norm == "batch":
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    z = hidden.clamp_min(0) @ head.fc2.weight.T + head.fc2.bias
    assert out.losses["contrast"].item() == pytest.approx(sum(nt_xent(z.tolist(), 0.2)) / 6, rel=1e-5)
    out.losses["contrast"].backward()
    assert head.fc2.weight.grad.abs().sum() > 0 and model.encoder.timm_model.blocks[0].attn.qkv.weight.grad.any()


def test_a_twin_is_of_the_image_as_a_whole(tokenizer):
    with pytest.raises(UserError, match="target 'twin' is one vector per image, this head predicts places"):
        whole = {"mask": {"name": "random", "feed": "all"}, "head": "linear", "data": {"repeats": 2}}
        mage(tokenizer, target="twin", loss="info_nce", **whole)(torch.rand(2, 3, 16, 16))
    with pytest.raises(UserError, match=r"target 'twin' compares two crops of each image: set data\.repeats=2"):
        mage(tokenizer, objectives={"contrast": CONTRAST})
    projector = {"head": "projector", "target": "pixels"}
    with pytest.raises(UserError, match="head and target do not meet: one is of single places"):
        mage(tokenizer, objectives={"contrast": projector})(torch.rand(2, 3, 16, 16))
