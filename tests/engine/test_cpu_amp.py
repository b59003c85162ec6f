import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from coc_mm.engine.cpu_amp import CpuAmpOptimWrapper


def test_the_wrapper_trains_in_bfloat16():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type='coc_mm.CpuAmpOptimWrapper', optimizer=optimizer))
    assert type(wrapper) is CpuAmpOptimWrapper
    inputs = torch.rand(16, 4)
    losses = []
    for _ in range(20):
        with wrapper.optim_context(model):
            hidden = model[0](inputs)
            loss = (model(inputs).float() - inputs.sum(1, keepdim=True)).square().mean()
        assert hidden.dtype == torch.bfloat16
        losses.append(float(loss.detach()))
        wrapper.update_params(loss)
    assert model[0].weight.dtype == torch.float32
    assert not torch.equal(before, model[0].weight)
    assert losses[-1] < losses[0] / 2


def test_the_wrapper_resumes_what_was_trained_with_loss_scaling():
    model = torch.nn.Linear(1, 1)
    state = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.3)).state_dict()
    state['loss_scaler'] = dict(scale=512.0)
    wrapper = CpuAmpOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    wrapper.load_state_dict(state)
    assert wrapper.optimizer.param_groups[0]['lr'] == 0.3
    assert 'loss_scaler' in state  # the caller's dict is left alone
