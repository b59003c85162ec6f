"""GroupNorm of one group on channels-last maps."""

import torch
from torch import nn

from coc_mm.models.layers import GroupNorm1


def test_equals_group_norm_of_channels_first():
    x = torch.randn(2, 3, 5, 8, dtype=torch.double, requires_grad=True)
    ours, theirs = GroupNorm1(8).double(), nn.GroupNorm(1, 8).double()
    theirs.load_state_dict(ours.state_dict())
    out, expected = ours(x), theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    grads = (torch.autograd.grad(y.square().sum(), x)[0] for y in (out, expected))
    torch.testing.assert_close(*grads, rtol=0, atol=1e-11)
