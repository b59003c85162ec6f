import contextlib
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import OTHER_NAMES, in_layout, official_state_dict
from golden import image as image_of
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from shrunk_configs import CONFIGS, PATHS
from torch import nn

from coc_mm.apis import start
from coc_mm.apis.infer import load_model
from coc_mm.apis.model_zoo import config_of
from coc_mm.apis.start import (
    build_model,
    check_start,
    check_test_start,
    drop_missing_pretrained,
    pretrained_files,
)
from coc_mm.checkpoints import convert_official
from coc_mm.errors import UserError


def test_pretrained_files():
    def entry(path):
        return dict(type='Pretrained', checkpoint=path)

    model = dict(
        backbone=dict(init_cfg=entry('a.pth')),
        heads=[dict(init_cfg=[dict(type='Normal'), entry('~/b.pth')])],
        neck=dict(init_cfg=entry('https://x/c.pth')),
    )
    assert pretrained_files(Config(dict(model=model))) == ['a.pth', '~/b.pth']


def test_nothing_to_resume_is_said_and_starts_anew(capsys):
    config = Config(dict(work_dir='work', resume='auto', model={}))
    check_start(config)
    assert (config.resume, config.get('load_from')) == (False, None)
    assert 'no checkpoint in work, so training starts anew' in capsys.readouterr().out


@pytest.mark.parametrize('recorded', ['epoch_4.pth', '/elsewhere/epoch_4.pth'])
def test_the_latest_checkpoint_is_resumed(monkeypatch, capsys, recorded):
    work = Path('work')
    monkeypatch.setattr(start, 'build_model', lambda config: nn.Linear(1, 1))
    work.mkdir()
    weights = nn.Linear(1, 1).state_dict()
    complete = dict(meta=dict(iter=4, seed=3), message_hub={}, optimizer={}, state_dict=weights)
    torch.save(complete, work / 'epoch_4.pth')
    (work / 'last_checkpoint').write_text(recorded)
    config = Config(dict(work_dir='work', resume='auto', model={}, load_from='other.pth'))
    config.randomness = dict(seed=1)
    check_start(config)
    assert (config.resume, config.load_from) == (True, 'work/epoch_4.pth')
    assert config.randomness.seed == 3
    printed = capsys.readouterr().out
    assert 'continuing from work/epoch_4.pth' in printed
    assert 'the seed stays 3, not 1' in printed


def test_lost_starting_weights_do_not_stop_a_resumed_run(capsys):
    torch.save({}, 'there.pth')
    lost = dict(type='Pretrained', checkpoint='lost.pth', prefix='backbone.')
    there = dict(type='Pretrained', checkpoint='there.pth')
    remote = dict(type='Pretrained', checkpoint='https://x.org/a.pth')
    model = dict(
        backbone=dict(init_cfg=lost),
        neck=dict(init_cfg=[lost, there]),
        head=[dict(init_cfg=remote)],
    )
    config = Config(dict(model=model))
    drop_missing_pretrained(config)
    assert config.model.backbone.init_cfg is None
    assert config.model.neck.init_cfg == [there]
    assert config.model.head[0].init_cfg == remote
    assert 'starting weights lost.pth are gone' in capsys.readouterr().out


def test_a_detector_with_classes_that_its_file_lacks_does_not_start(projects):
    config = Config.fromfile(projects['mmdet'].config)
    config.work_dir = 'work'
    config.val_dataloader.dataset = dict(
        type='RepeatDataset', dataset=config.val_dataloader.dataset
    )
    check_start(config)
    config.val_dataloader.dataset.dataset.pop('metainfo')  # those of COCO, then
    with pytest.raises(ValueError, match='has no category for 80 of the 80 classes'):
        check_start(config)


STARTS = [  # layout, what the config and an option say -> what is used, whether a line tells it
    ('submission', None, (), 'count', False),
    ('submission', 'similarity', (), 'count', True),
    ('openmixup', 'similarity', ['model.backbone.denominator'], 'similarity', False),
    ('released', 'count', (), 'count', False),  # nothing in the file says otherwise
    ('released', None, (), 'similarity', False),
]


@pytest.mark.parametrize(('layout', 'said', 'given', 'used', 'told'), STARTS)
def test_official_weights_bring_their_formula(layout, said, given, used, told, capsys):
    weights = {k: v.float() for k, v in official_state_dict('coc_tiny').items()}
    torch.save(dict(state_dict=in_layout(layout, weights)), 'coc_tiny.pth.tar')
    start = dict(type='Pretrained', checkpoint='coc_tiny.pth.tar')
    for init_cfg, load_from, check in (
        (start, None, check_start),
        (dict(start, prefix='backbone.'), None, check_start),
        (None, 'coc_tiny.pth.tar', check_start),
        (None, 'coc_tiny.pth.tar', check_test_start),
    ):
        config = config_of('coc-tiny_8xb128_in1k')
        config.merge_from_dict(dict(work_dir='work', load_from=load_from))
        config.model.backbone.init_cfg = init_cfg
        if said:
            config.model.backbone.denominator = said
        check(config, given)
        assert config.model.backbone.denominator == used
        assert ('goes before' in capsys.readouterr().out) == told


def optimizer_state(kind, groups=1):
    net = nn.Linear(2, 2)
    params = [[net.weight, net.bias]] if groups == 1 else [[net.weight], [net.bias]]
    return kind([dict(params=each) for each in params], lr=0.1).state_dict()


@pytest.mark.parametrize(
    ('state', 'says'),
    [
        (optimizer_state(torch.optim.AdamW), None),
        (optimizer_state(torch.optim.Adam), None),
        (optimizer_state(torch.optim.SGD), 'its settings .*momentum.* are not those of AdamW'),
        (optimizer_state(torch.optim.AdamW, 2), '2 parameters in 2 groups, the config 2 .* in 1'),
    ],
)
def test_resuming_needs_the_same_optimizer(state, says):
    optimizer = dict(type='AdamW', lr=0.1)
    config = Config(dict(default_scope='mmengine', optim_wrapper=dict(optimizer=optimizer)))
    context = pytest.raises(UserError, match=says) if says else contextlib.nullcontext()
    with context:
        start._check_optimizer(config, nn.Linear(2, 2), state, 'x.pth')


@pytest.mark.parametrize(
    ('unread', 'parts'),
    [
        ([0], dict(neck=dict(type='FPN', start_level=1))),
        ([], dict(neck=dict(type='FPN'))),
        ([0, 1, 2], dict(decode_head=dict(in_index=3))),
        ([0, 1], dict(decode_head=dict(type='X'), auxiliary_head=[dict(in_index=2)])),
        ([], dict(decode_head=dict(in_index=[0, 1, 2, 3]))),
        ([1, 2], dict(decode_head=dict(in_index=3, c1_in_channels=64))),
        ([], dict(bbox_head=dict())),
    ],
)
def test_levels_that_nothing_reads(unread, parts):
    backbone = dict(type='coc_mm.ContextCluster', out_indices=(0, 1, 2, 3))
    config = Config(dict(launcher='pytorch', model=dict(type='X', backbone=backbone, **parts)))
    if unread:
        with pytest.raises(UserError, match=re.escape(f'the levels {unread}')):
            start._check_unread_levels(config)
    config.find_unused_parameters = True
    start._check_unread_levels(config)
    config.update(launcher='none', find_unused_parameters=not unread)
    start._check_unread_levels(config)


def test_every_config_starts_in_several_processes():
    paths = [*PATHS, *(CONFIGS / 'quickstart').glob('*_*.py')]
    for path in paths:
        config = Config.fromfile(path)
        config.launcher = 'pytorch'
        start._check_unread_levels(config)
    assert len(paths) >= 35


WAYS = ('infer', 'test', 'load_from', 'init_cfg', 'init_cfg with prefix')
FILES = [('mmpretrain', layout) for layout in OTHER_NAMES]
FILES += [(scope, 'submission') for scope in ('mmdet', 'mmseg')]


def outputs(model):
    """Logits of a classifier or segmentor, what a detector says of its anchors; in float64."""
    image = image_of((1, 3, 64, 64), 0)
    model.double().eval()
    with torch.inference_mode():
        if hasattr(model, 'rpn_head'):
            return torch.cat(
                [x.flatten() for maps in model.rpn_head(model.extract_feat(image)) for x in maps]
            )
        return model(image, mode='tensor').flatten()


@pytest.mark.parametrize(('scope', 'layout'), FILES)
def test_every_way_in_gives_the_outputs_of_the_model_built_directly(
    scope, layout, projects, tmp_path
):
    config = Config.fromfile(projects[scope].config)
    config.work_dir = str(tmp_path / 'work')
    backbone, formula = config.model.backbone, 'similarity' if layout == 'released' else 'count'
    if scope == 'mmpretrain':
        backbone.arch, config.model.head.in_channels, keys = 'tiny', 320, 'coc_tiny'
        config.model.head.num_classes = 1000
    else:
        backbone.update(arch='small', proposals=7)
        config.model.neck.in_channels, keys = [64, 128, 320, 512], 'small_dense'
    official = {k: v.float() for k, v in official_state_dict(keys).items()}
    task = dict(mmpretrain='classification', mmdet='detection', mmseg='segmentation')[scope]
    direct = Config(deepcopy(config._cfg_dict.to_dict()))
    direct.model.backbone.denominator = formula
    model = build_model(direct)
    heads = {
        k: v for k, v in model.state_dict().items() if not k.startswith(('backbone.', 'head.'))
    }
    model.load_state_dict(convert_official(official, task) | heads)
    expected = outputs(model)
    weights = in_layout(layout, official)
    if scope != 'mmpretrain':
        weights = {f'backbone.{k}': v for k, v in weights.items()} | heads
    path = str(tmp_path / 'official.pth.tar')
    torch.save(dict(state_dict=weights, meta=dict()), path)
    for way in WAYS:
        given = Config(deepcopy(config._cfg_dict.to_dict()))
        if way == 'infer':
            model = load_model(given, path)
        elif way.startswith('init_cfg'):
            given.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
            if 'prefix' in way:
                given.model.backbone.init_cfg.prefix = 'backbone.'
            check_start(given)
            model = build_model(given)
            model.init_weights()
            head = {k: v for k, v in convert_official(official, task).items() if k[:5] == 'head.'}
            model.load_state_dict(heads | head, strict=False)
        else:
            given.load_from = path
            (check_test_start if way == 'test' else check_start)(given)
            model = build_model(given)
            load_checkpoint(model, path)
        np.testing.assert_allclose(outputs(model), expected, rtol=1e-9, atol=1e-9, err_msg=way)
