"""What is offered, and that reading it runs nothing."""

import golden
import pytest
import torch

pytest.importorskip('mmpretrain')
from cluster_demo.catalog import find_models, load_source
from cluster_demo.config_text import parse_config, read_config

from coc_mm.apis.config import load_config
from coc_mm.apis.infer import load_model
from coc_mm.apis.model_zoo import config_of
from coc_mm.apis.start import build_model
from coc_mm.checkpoints import convert_official
from coc_mm.errors import UserError

PLAIN = "default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier')\n"


def labels(found):
    return [source.label for source in found]


def test_only_checkpoints_of_the_folder_newest_first(checkpoints, tmp_path):
    assert labels(find_models(checkpoints)) == [
        'areas/epoch_10.pth',
        'areas/epoch_2.pth',
        'boxes/epoch_10.pth',
        'boxes/epoch_2.pth',
        'deep/iter_5.pth',
        'small/epoch_10.pth',
        'small/epoch_2.pth',
    ]
    folder = tmp_path / 'mine'
    (folder / '.hidden').mkdir(parents=True)
    (folder / 'note.txt').write_text('')
    (folder / '.hidden' / 'a.pth').write_bytes(b'x')
    (folder / 'link.pth').symlink_to(checkpoints / 'small' / 'epoch_2.pth')
    (folder / 'linked').symlink_to(checkpoints)
    assert find_models(folder) == []


def test_quickstart_gives_the_newest_of_each_task(tmp_path):
    for name in ('classification/epoch_9.pth', 'classification/epoch_15.pth', 'other/epoch_1.pth'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    found = find_models(tmp_path, newest_only=True)
    assert labels(found) == ['classification/epoch_15.pth']
    assert found[0].trained


def test_models_by_name_are_labelled_untrained(tmp_path):
    found = find_models(tmp_path, ['coc-tiny_8xb128_*', 'coc-tiny_8xb128_in1k'])
    assert labels(found) == ['coc-tiny_8xb128_in1k (untrained)']
    assert not found[0].trained
    with pytest.raises(UserError, match="no model is named 'coc-huge'"):
        find_models(tmp_path, ['coc-huge'])


@pytest.mark.parametrize('name', ['small', 'boxes', 'areas'])
def test_loaded_as_by_the_tools(sources, checkpoints, name):
    model, config = load_source(sources[name])
    path = checkpoints / name
    expected = load_model(load_config(str(path / f'{name}.py')), str(path / 'epoch_10.pth'))
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert type(model) is type(expected)
    assert 'optim_wrapper' not in config
    assert 'train_dataloader' not in config


def test_config_inside_the_checkpoint_or_known_by_name(checkpoints, tmp_path):
    content = torch.load(checkpoints / 'small' / 'epoch_2.pth', weights_only=True)
    torch.save(content, tmp_path / 'bare.pth')
    (source,) = find_models(tmp_path)
    with pytest.raises(UserError, match='comes without its config'):
        load_source(source)
    content['meta']['cfg'] = (checkpoints / 'small' / 'small.py').read_text()
    torch.save(content, tmp_path / 'bare.pth')
    model, _ = load_source(source)
    assert type(model).__name__ == 'ImageClassifier'
    other = tmp_path / 'zoo'
    other.mkdir()
    torch.save(content, other / 'coc-tiny_8xb128_in1k.pth')
    assert find_models(other)[0].name == 'coc-tiny_8xb128_in1k'


@pytest.mark.parametrize('layout', ['released', 'submission', 'openmixup'])
def test_official_files_of_the_folder(layout, tmp_path):
    weights = golden.official_state_dict('coc_tiny')
    path = tmp_path / 'coc_tiny_plain.pth.tar'
    torch.save(dict(state_dict=golden.in_layout(layout, weights)), path)
    (source,) = find_models(tmp_path)
    model, _ = load_source(source)
    assert model.backbone.proposals[0] == (4, 4)
    expected = convert_official(weights)['head.fc.weight'].float()
    assert torch.equal(model.head.fc.weight, expected)


def test_official_segmentors_of_the_folder(tmp_path):
    model = build_model(config_of('fpn_coc-s-c4_4xb4-80k_ade20k-512x512'))
    heads = {k: v for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    backbone = golden.in_layout('submission', golden.official_state_dict('small_dense'))
    weights = heads | {f'backbone.{k}': v.float() for k, v in backbone.items()}
    meta = dict(config="backbone=dict(type='context_cluster_small_feat5')")
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'iter_80000.pth')
    (source,) = find_models(tmp_path)
    model, _ = load_source(source)
    assert (type(model).__name__, model.backbone.proposals[0]) == ('EncoderDecoder', (5, 5))
    assert model.backbone.blocks[0][0].mixer.denominator == 'count'
    assert all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())


def test_code_in_a_config_is_not_run(tmp_path):
    mark = tmp_path / 'ran'
    codes = [
        f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n{PLAIN}',
        f'{PLAIN}x = open({str(mark)!r}, "w")\n',
        "_base_ = ['other.py']\nx = _base_.y\n",
        f'{PLAIN}(\n',
    ]
    for text in codes:
        (tmp_path / 'config.py').write_text(text)
        with pytest.raises(UserError, match=r'config\.py'):
            read_config(tmp_path / 'config.py')
    assert not mark.exists()


@pytest.mark.parametrize(
    'node',
    [
        "dict(type='os.system', command='true')",
        "dict(type='mmengine.load', file='x.pkl')",
        "dict(type='coc_mm.apis.get_model')",
        "dict(type='LinearClsHead', _scope_='os')",
    ],
)
def test_types_of_other_packages_are_refused(node):
    with pytest.raises(UserError, match=r'refused|none of|is not a name'):
        parse_config(f"{PLAIN}data_preprocessor = dict(a=[{node}], type='X')\n", 'config.py')


def test_values_are_read_as_python_reads_them():
    text = f"'''Doc.'''\n{PLAIN}test_pipeline = [dict(a=-1, b=(1, 2.5), c=None, d={{'e': True}})]\n"
    config = parse_config(text, 'config.py')
    assert config.test_pipeline[0] == dict(a=-1, b=(1, 2.5), c=None, d=dict(e=True))
    start = "model = dict(type='A', init_cfg=dict(type='Pretrained', checkpoint='x.pth'))"
    assert 'init_cfg' not in parse_config(f"default_scope = 'mmdet'\n{start}\n", 'c').model
    for text, message in (('', 'default_scope None'), ("default_scope = 'mmdet'", 'sets no model')):
        with pytest.raises(UserError, match=message):
            parse_config(text, 'config.py')
