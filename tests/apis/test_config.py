"""Configs of others: they are programs, and what is wrong with one is said in a sentence."""

import json
from pathlib import Path

import pytest
from crowded import run_crowded
from mmengine.config import Config

from coc_mm.apis.config import load_config, merge_options
from coc_mm.apis.model_zoo import config_of, find_entry
from coc_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENDS = "default_scope = 'mmpretrain'\n"

WRONG = {
    'a base that is no config': ("_base_ = '{secret}'\n", 'Only py/yml/yaml/json'),
    'a base that climbs to nothing': ("_base_ = '../../../../none/x.py'\n", 'none/x.py'),
    'a module that is not there': (
        "custom_imports = dict(imports=['no_such_module_x'])\n",
        'no_such_module_x',
    ),
    'a variable that is not set': ("a = '{{{{$NO_SUCH_VARIABLE_X:}}}}'\n", 'NO_SUCH_VARIABLE_X'),
}


@pytest.mark.parametrize('kind', WRONG)
def test_wrong_configs_are_named(kind, tmp_path):
    (tmp_path / 'secret.txt').write_text('a secret = of somebody\n')
    text, says = WRONG[kind]
    path = tmp_path / 'x.py'
    path.write_text(text.format(secret=tmp_path / 'secret.txt') + ENDS)
    with pytest.raises(UserError, match=says) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)
    assert 'of somebody' not in str(caught.value)


@pytest.mark.parametrize('content', ['', '[1]', '{'])
@pytest.mark.parametrize('suffix', ['.json', '.yaml'])
def test_wrong_json_and_yaml_are_named(content, suffix, tmp_path):
    path = tmp_path / f'x{suffix}'
    path.write_text(content)
    with pytest.raises(UserError, match=rf'x\{suffix}'):
        load_config(str(path))


@pytest.mark.parametrize('by', ['path', 'name'])
def test_threads_read_configs_at_the_same_time(by):
    """Python 3.11.7 fails in most of these calls when they are let in together."""
    name = 'coc-tiny_8xb128_in1k'
    path = str(find_entry(name).config)
    once = load_config(path).to_dict()
    read = {'path': lambda: load_config(path), 'name': lambda: config_of(name)}[by]
    assert all(config.to_dict() == once for config in run_crowded(read, threads=3, times=12))


def test_default_scope_from_an_option(tmp_path):
    config = tmp_path / 'scopeless.py'
    config.write_text('model = dict()')
    assert load_config(str(config), dict(default_scope='mmdet')).model == {}
    with pytest.raises(UserError, match='sets no default_scope'):
        load_config(str(config))
    config.write_text("default_scope = 'coc_mm'")
    assert load_config(str(config)).default_scope == 'coc_mm'


def test_values_that_a_copy_cannot_hold(tmp_path):
    """Paths become text, imported names go, a partial is refused by name."""
    path = tmp_path / 'x.py'
    head = 'from functools import partial\nfrom pathlib import Path\nroot = Path("/a/b")\n'
    path.write_text(head + 'data = dict(roots=[root], size=(1, 2))\n' + ENDS)
    config = load_config(str(path))
    assert (config.root, config.data.roots, config.data.size) == ('/a/b', ['/a/b'], (1, 2))
    assert 'partial' not in config
    config.dump(tmp_path / 'copy.py')
    assert load_config(str(tmp_path / 'copy.py')).to_dict() == config.to_dict()
    path.write_text(head + 'data = dict(steps=[dict(at=partial(int, base=2))])\n' + ENDS)
    with pytest.raises(UserError, match=r'data.steps.at is a functools.partial'):
        load_config(str(path))


def test_json_sizes_and_colors_are_tuples(tmp_path):
    step = dict(type='Resize', scale=[64, 48], prob=[0.5, 0.5])
    steps = [step, dict(scales=[[1, 2], [3, 4]])]
    content = dict(default_scope='mmdet', p=steps, metainfo=dict(palette=[[1, 2, 3], [4, 5, 6]]))
    content['neck'] = dict(in_channels=[1, 2], strides=[4, 8])
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(content))
    config = load_config(str(path))
    assert (config.p[0].scale, config.p[0].prob) == ((64, 48), [0.5, 0.5])
    assert config.p[1].scales == [(1, 2), (3, 4)]
    assert config.metainfo.palette == [(1, 2, 3), (4, 5, 6)]
    assert config.neck == content['neck']


@pytest.mark.parametrize(
    ('name', 'inside'),
    [
        ('coc-tiny_8xb128_in1k', ()),
        ('mask-rcnn_coc-s-c4_fpn_1x_coco', ('annotations/instances_val2017.json',)),
        ('fpn_coc-s-c4_4xb4-80k_ade20k-512x512', ()),
        ('projects/point_cloud/configs/pointmlp-coc_1xb32-250e_scanobjectnn.py', ()),
    ],
)
def test_one_option_moves_the_data_of_every_loader_and_evaluator(name, inside):
    config = load_config(str(ROOT / name) if name.endswith('.py') else name)
    merge_options(config, {'data_root': '/d'})
    for split in ('train', 'val', 'test'):
        assert config[f'{split}_dataloader'].dataset.data_root == '/d'
    for path in inside:
        assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == f'/d/{path}'
    assert 'data/' not in str(config.get('test_evaluator'))


def test_entries_that_are_dicts():
    with pytest.raises(UserError, match='train_cfg is 5; a dict is needed'):
        merge_options(Config(dict(train_cfg=dict())), {'train_cfg': 5})
