import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from coc_mm.apis.start import Comparison, check_pretrained, check_weights, is_local
from coc_mm.errors import UserError


@pytest.mark.parametrize('path', ['a.pth', '/a/b.pth', '../a.pth', '~/a.pth', r'C:\a.pth'])
def test_local(path):
    assert is_local(path)


@pytest.mark.parametrize(
    'path', ['https://x/a.pth', 'open-mmlab://resnet', 'torchvision://r', 's3://b/a', 'm:s3://a']
)
def test_not_local(path):
    assert not is_local(path)


def _model(**layers):
    return nn.ModuleDict({name: nn.Linear(*shape) for name, shape in layers.items()})


def test_comparison_counts_and_names():
    ours, theirs = _model(a=(2, 3), b=(2, 2), c=(1, 1)), _model(a=(2, 3), b=(4, 2), d=(1, 1))
    found = Comparison.of(theirs.state_dict(), ours.state_dict())
    assert found.common == 3
    assert found.mismatched == ['b.weight is 2x4, the model has 2x2']
    assert found.missing == ['c.weight', 'c.bias']
    assert found.unexpected == ['d.weight', 'd.bias']
    assert found.share == 3 / 6
    text = found.describe()
    assert text.startswith('3 weights match; 1 of another shape (b.weight is 2x4')
    assert '2 missing (c.weight, c.bias), 2 unexpected (d.weight, d.bias)' in text


def test_many_differences_are_shortened():
    found = Comparison.of({}, _model(a=(1, 1), b=(1, 1)).state_dict())
    assert found.describe() == '0 weights match; 4 missing (a.weight, a.bias, b.weight, ...)'


def test_counters_of_batch_norm_may_be_missing():
    model = nn.BatchNorm2d(2)
    state = model.state_dict()
    state.pop('num_batches_tracked')
    assert Comparison.of(state, model.state_dict()).exact
    check_weights(model, dict(state_dict=state), 'a.pth', strict=True)


class _Renaming(nn.Linear):
    """A model that reads its older weights, as several of mmdet do."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ('weight', 'bias'):
            if f'{prefix}old_{name}' in state_dict:
                state_dict[prefix + name] = state_dict.pop(f'{prefix}old_{name}')
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_model_may_rename_weights_itself():
    state = {f'old_{name}': value for name, value in nn.Linear(2, 2).state_dict().items()}
    check_weights(_Renaming(2, 2), state, 'a.pth', strict=True)
    with pytest.raises(UserError, match='of another model'):
        check_weights(nn.Linear(2, 2), state, 'a.pth', strict=True)


def test_wrapped_models_are_read():
    state = {f'module.{name}': value for name, value in nn.Linear(2, 2).state_dict().items()}
    check_weights(nn.Linear(2, 2), dict(state_dict=state), 'a.pth', strict=True)


def test_starting_weights_may_differ_in_their_head(capsys):
    ours = _model(a=(2, 3), b=(2, 2), head=(2, 10))
    theirs = dict(state_dict=_model(a=(2, 3), b=(2, 2), head=(2, 5)).state_dict())
    check_weights(ours, theirs, 'a.pth', strict=False)
    assert 'load_from a.pth: 4 weights match; 2 of another shape' in capsys.readouterr().out
    with pytest.raises(UserError, match='2 of another shape'):
        check_weights(ours, theirs, 'a.pth', strict=True)


def test_weights_of_a_part_may_start_the_whole():
    whole = _model(a=(2, 3), b=(2, 2), c=(2, 2), d=(2, 2))
    check_weights(whole, _model(a=(2, 3)).state_dict(), 'a.pth', strict=False)


class _Part(BaseModule):
    def __init__(self, width, init_cfg):
        super().__init__(init_cfg)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))


def _whole(path, width=2, prefix='backbone.', listed=False):
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix=prefix)
    return nn.ModuleDict(dict(part=_Part(width, [init_cfg] if listed else init_cfg)))


@pytest.mark.parametrize('listed', [False, True])
def test_starting_weights_of_a_part(tmp_path, capsys, listed):
    path = str(tmp_path / 'start.pth')
    state = _Part(2, None).state_dict()
    torch.save({f'backbone.{name}': value for name, value in state.items()}, path)
    check_pretrained(_whole(path, listed=listed), [path])
    assert capsys.readouterr().out == ''
    with pytest.raises(UserError, match='of another model than part'):
        check_pretrained(_whole(path, width=5, listed=listed), [path])
    with pytest.raises(UserError, match=r"no weights under the prefix 'neck\.'"):
        check_pretrained(_whole(path, prefix='neck', listed=listed), [path])


def test_a_partial_fit_is_told(tmp_path, capsys):
    path = str(tmp_path / 'start.pth')
    state = _Part(2, None).state_dict()
    state['layers.2.weight'] = torch.zeros(7, 2)
    torch.save(state, path)
    check_pretrained(_whole(path, prefix=None), [path])
    assert 'init_cfg of part' in capsys.readouterr().out
