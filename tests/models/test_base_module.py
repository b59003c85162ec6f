"""Initialisation as mmengine's BaseModule does it, and an import that does not wait for it."""

import subprocess
import sys

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from coc_mm.models.base_module import LazyBaseModule

CONSTANT = dict(type='Constant', layer='Linear', val=0.5, bias=0.25)


@pytest.mark.parametrize('base', [BaseModule, LazyBaseModule])
def test_initialises_as_mmengine_does(base, capsys):
    class Part(base):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.fc = nn.Linear(2, 2)

    whole = BaseModule()
    whole.given, whole.loaded = Part(init_cfg=CONSTANT), Part(init_cfg=CONSTANT)
    whole.loaded.is_init = True
    before = whole.loaded.fc.weight.clone()
    whole.init_weights()
    assert (whole.given.fc.weight == 0.5).all()
    assert (whole.given.fc.bias == 0.25).all()
    assert whole.given.is_init
    assert torch.equal(whole.loaded.fc.weight, before)
    assert not any(hasattr(module, '_params_init_info') for module in whole.modules())
    alone = Part(init_cfg=[CONSTANT])
    alone.init_weights()
    assert (alone.fc.weight == 0.5).all()


def test_the_core_is_plain_pytorch():
    code = (
        'import sys, time, torch, mmengine; t = time.process_time()\n'
        'from coc_mm.models import ContextCluster\n'
        'print(time.process_time() - t, *{"mmcv", "cv2", "torchvision", "torch._dynamo", '
        '"mmengine.model", "triton"} & sys.modules.keys())\n'
        'model = ContextCluster("tiny", out_indices=(1, 3))\n'
        'levels = model(torch.rand(1, 3, 64, 64))\n'
        'info = model.feature_info\n'
        'assert [x.shape[1] for x in levels] == [x["num_chs"] for x in info] == [64, 320]\n'
        'assert [64 // x.shape[2] for x in levels] == [x["reduction"] for x in info]\n'
        'assert model.num_features == 320\n'
        'assert not {"mmcv", "cv2"} & sys.modules.keys()\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, *modules = done.stdout.split()
    assert modules == []
    assert float(seconds) < 1
