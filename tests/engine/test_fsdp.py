"""What of FSDP needs no second process; training with it is in ``integration/test_distributed``."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from coc_mm.engine.fsdp import ResumableFSDPStrategy, wrap_context_cluster_blocks
from coc_mm.models import ContextCluster
from coc_mm.models.layers import ContextClusterBlock


def test_blocks_are_the_units():
    model = ContextCluster('tiny')
    units = [m for m in model.modules() if wrap_context_cluster_blocks(m, False, 0)]
    assert units == [m for m in model.modules() if isinstance(m, ContextClusterBlock)]
    assert len(units) == 14


def strategy(*sizes):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in sizes))
    groups = [
        dict(params=list(layer.parameters())[:size])
        for layer, size in zip(model, sizes, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    return SimpleNamespace(model=model, optim_wrapper=SimpleNamespace(optimizer=optimizer))


def test_a_state_of_a_run_without_fsdp_is_keyed_by_names():
    saved = dict(state={1: 'b', 2: 'c'}, param_groups=[dict(params=[0, 1]), dict(params=[2], lr=1)])
    found = ResumableFSDPStrategy._by_name(strategy(2, 1), saved)
    assert found['state'] == {'0.bias': 'b', '1.weight': 'c'}
    assert found['param_groups'] == [
        dict(params=['0.weight', '0.bias']),
        dict(params=['1.weight'], lr=1),
    ]
    assert ResumableFSDPStrategy._by_name(strategy(2, 1), found) == found


def test_other_groups_of_weights_are_refused():
    with pytest.raises(ValueError, match='other groups of weights'):
        ResumableFSDPStrategy._by_name(strategy(2), dict(state={}, param_groups=[dict(params=[0])]))
