"""The quick linear layer against torch's own, values and gradients."""

import pytest
import torch
from torch import nn

from mimkit.quick import QuickLinear, quicken


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_a_quick_linear_layer_equals_torchs(bias: bool, strided: bool) -> None:
    """Against nn.Linear with the same weights: output and every gradient within 1e-5 of the largest value."""
    plain, quick = nn.Linear(24, 40, bias=bias), nn.Sequential(nn.Linear(24, 40, bias=bias))
    quick[0].load_state_dict(plain.state_dict())
    quicken(quick)
    assert isinstance(quick[0], QuickLinear) and list(quick.state_dict()) == [
        f"0.{name}" for name in plain.state_dict()
    ]
    inputs = [torch.randn(5, 24, 7).mT if strided else torch.randn(5, 7, 24) for _ in range(1)] * 2
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    outputs = [layer(x) for layer, x in zip((plain, quick), inputs, strict=True)]
    weights = torch.randn(5, 7, 40)
    for output in outputs:
        (output * weights).sum().backward()
    pairs = [tuple(outputs), (inputs[0].grad, inputs[1].grad)]
    pairs += [(one.grad, other.grad) for one, other in zip(plain.parameters(), quick.parameters(), strict=True)]
    for wanted, got in pairs:
        assert wanted is not None and got is not None
        assert (wanted - got).abs().max() <= 1e-5 * wanted.abs().max()
