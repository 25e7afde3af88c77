"""Label-free figures: values by hand, a head that knows the answer, and their place in a run's files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mimkit.draft import load_recipe
from mimkit.evaluate.health import effective_rank, health, patch_similarity
from mimkit.train.loop import train
from tests.test_reconstruction import Oracle, small_model, with_oracle


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def test_the_effective_rank_counts_directions() -> None:
    """Equal spread along k of the axes is k, along one is 1, and a shift of all features changes nothing."""
    for k in (1, 3, 5):
        spread = torch.eye(5)[:k].repeat(2, 1) * torch.tensor([1.0, -1.0]).repeat_interleave(k)[:, None]
        assert effective_rank(spread + 7) == pytest.approx(k, rel=1e-4)
    uneven = torch.diag(torch.tensor([3.0, 1.0]))
    uneven = torch.cat([uneven, -uneven])  # singular values 3 and 1: shares 3/4 and 1/4
    by_hand = (0.75**-0.75) * (0.25**-0.25)
    assert effective_rank(uneven) == pytest.approx(by_hand, rel=1e-5)


def test_patch_similarity_is_the_mean_cosine_of_pairs() -> None:
    tokens = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    cosines = [
        F.cosine_similarity(image[i], image[j], dim=0) for image in tokens for i in range(4) for j in range(4) if i != j
    ]
    assert patch_similarity(tokens) == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-5)
    assert patch_similarity(tokens[:, :1].expand(-1, 4, -1)) == pytest.approx(1, abs=1e-5)
    assert patch_similarity(torch.eye(4)[None]) == pytest.approx(0, abs=1e-6)


def test_a_prediction_that_knows_explains_all_and_the_mean_nothing(images: Tensor) -> None:
    model = with_oracle(small_model(), images)
    assert health(model, images)["r2"] == pytest.approx(1, abs=1e-5)
    objective: Any = model.objectives["main"]
    wanted = objective.head.values
    predicted = model(images, generator=torch.Generator().manual_seed(0)).mask.predicted  # as `health` draws it
    objective.head = Oracle(wanted[predicted].mean(0).expand_as(wanted))
    assert health(model, images)["r2"] == pytest.approx(0, abs=1e-4)


def test_of_directions_the_length_does_not_count(images: Tensor) -> None:
    model = with_oracle(small_model((12, 20), "loss=cosine", "normalizer=l2"), images)
    objective: Any = model.objectives["main"]
    objective.head = Oracle(5 * objective.head.values)
    assert health(model, images)["r2"] == pytest.approx(1, abs=1e-5)


def test_a_run_writes_them_with_labels_or_without(tmp_path: Path, tiny: dict[str, Any]) -> None:
    train(load_recipe(tiny, ["probe.every=2"]), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if line.get("probe") == "health"]
    assert [line["step"] for line in told] == [0, 14]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for line in told:
        assert 1 <= line["effective_rank"] <= 20 and -1 <= line["patch_similarity"] <= 1 and line["r2"] <= 1
    assert summary["effective_rank"] == told[-1]["effective_rank"]
