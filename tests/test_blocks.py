"""The blocks against naive float64 oracles and hand-derived numbers."""

import pytest
import torch
from torch import Tensor

from doublehead_d2.modeling.blocks import NonLocalBlock, ResidualBlock


def non_local_oracle(block: NonLocalBlock, x: Tensor) -> Tensor:
    """y_i = (1/N) Σ_j <θ_i, φ_j> g_j in each group, written as loops over positions."""
    rois, channels, height, width = x.shape
    n, size = height * width, block.theta.out_channels // block.groups

    def project(layer: torch.nn.Module, vector: Tensor) -> Tensor:
        return layer.weight[:, :, 0, 0] @ vector + layer.bias

    out = torch.empty_like(x)
    for r in range(rois):
        positions = x[r].reshape(channels, n)
        y = torch.zeros(block.theta.out_channels, n, dtype=x.dtype)
        for group in range(block.groups):
            rows = slice(group * size, (group + 1) * size)
            for i in range(n):
                theta = project(block.theta, positions[:, i])[rows]
                for j in range(n):
                    phi = project(block.phi, positions[:, j])[rows]
                    g = project(block.g, positions[:, j])[rows]
                    y[rows, i] += (theta @ phi) / n * g
        z = torch.stack([project(block.out, y[:, i]) for i in range(n)], dim=1)
        z = block.out.norm(z.reshape(1, channels, height, width))[0]
        out[r] = (x[r] + z).relu()
    return out


def random_non_local(channels: int, inner: int, groups: int) -> NonLocalBlock:
    torch.manual_seed(0)
    block = NonLocalBlock(channels, inner, groups).double().eval()
    torch.nn.init.normal_(block.out.weight)
    torch.nn.init.normal_(block.out.bias)
    torch.nn.init.normal_(block.out.norm.running_mean)
    torch.nn.init.uniform_(block.out.norm.running_var, 0.5, 1.5)
    return block


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_non_local_equals_oracle(groups: int) -> None:
    block = random_non_local(6, 8, groups)
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(block(x), non_local_oracle(block, x), atol=1e-12, rtol=1e-12)


def test_non_local_by_hand() -> None:
    # One channel, two positions x = (1, 2); θ = 2x, φ = 3x, g = x + 1 = (2, 3), out = y.
    # y_i = 1/2 Σ_j 2 x_i 3 x_j (x_j + 1) = 3 x_i (1·2 + 2·3) = 24 x_i = (24, 48); x + y = (25, 50).
    block = NonLocalBlock(1, 1, 1).double().eval()
    for layer, weight, bias in (
        (block.theta, 2.0, 0.0),
        (block.phi, 3.0, 0.0),
        (block.g, 1.0, 1.0),
        (block.out, 1.0, 0.0),
    ):
        torch.nn.init.constant_(layer.weight, weight)
        torch.nn.init.constant_(layer.bias, bias)
    block.out.norm.eps = 0.0
    x = torch.tensor([1.0, 2.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    torch.testing.assert_close(block(x).flatten(), torch.tensor([25.0, 50.0]).double())


def test_new_non_local_block_is_relu() -> None:
    x = torch.randn(3, 8, 7, 7)
    block = NonLocalBlock(8, 8, 4).eval()
    torch.testing.assert_close(block(x), x.relu())


def test_residual_block_by_hand() -> None:
    # All weights 1, norms off: the 3x3 sums its neighbourhood of ones. Corner 4, edge 6, centre 9,
    # over 2 input channels 8, 12, 18; the 1x1 sums 2 such channels: 16, 24, 36; shortcut: 2 more.
    block = ResidualBlock(2, 3, norm="FrozenBN").double()
    for layer in (block.conv1, block.conv2, block.shortcut):
        torch.nn.init.ones_(layer.weight)
        layer.norm.eps = 0.0
        layer.norm.running_var.fill_(1.0)
    out = block(torch.ones(1, 2, 3, 3, dtype=torch.float64))
    expected = torch.tensor([[18.0, 26, 18], [26, 38, 26], [18, 26, 18]]).double()
    torch.testing.assert_close(out, expected.expand(1, 3, 3, 3))


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
def test_no_rois(norm: str) -> None:
    for block in (ResidualBlock(32, 64, norm=norm), NonLocalBlock(32, 8, 4, norm=norm)):
        x = torch.zeros(0, 32, 7, 7, requires_grad=True)
        out = block.train()(x)
        assert out.shape == (0, 64 if isinstance(block, ResidualBlock) else 32, 7, 7)
        out.sum().backward()
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), name
