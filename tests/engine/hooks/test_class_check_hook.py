"""Classes of data, model and checkpoint, compared before a run."""

import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import BaseLoop
from tiny_projects import SCOPES

from coc_mm.apis.infer import TASKS, load_model
from coc_mm.apis.start import build_model
from coc_mm.engine import ClassCheckHook
from coc_mm.errors import UserError


class _Loop(BaseLoop):
    def __init__(self, **dataset):
        self.dataloader = SimpleNamespace(dataset=SimpleNamespace(**dataset))

    def run(self):
        """Nothing."""


def runner(model, scope, use='train', resume=False, **dataset):
    loops = dict(_train_loop=None, _val_loop=None, _test_loop=None)
    loops[f'_{use}_loop'] = _Loop(**dataset)
    cfg = dict(default_scope=scope)
    return SimpleNamespace(model=model, cfg=cfg, _resume=resume, **loops)


class Unnamed(list):
    """Three images with a label each."""

    def __init__(self):
        super().__init__(range(3))

    def get_cat_ids(self, index):
        return [index]


def head(**settings):
    return {'type': 'FPNHead', 'in_channels': [8] * 4, 'in_index': [0, 1, 2, 3], 'channels': 8,
            'feature_strides': [4, 8, 16, 32], **settings}  # fmt: skip


REFUSED = [
    ('mmpretrain', 'head.num_classes', 2, 3),
    ('mmpretrain', 'head.num_classes', 2, None),
    ('mmdet', 'roi_head.bbox_head.num_classes', 2, 1),
    ('mmdet', 'roi_head.bbox_head.num_classes', 2, 80),
    ('mmseg', 'decode_head.num_classes', 3, 4),
    ('mmseg', 'auxiliary_head.1.num_classes', 2, 3),
]


@pytest.mark.parametrize(('scope', 'name', 'outputs', 'count'), REFUSED)
@pytest.mark.parametrize('use', ['train', 'val', 'test'])
def test_other_numbers_of_classes_are_refused(projects, scope, name, outputs, count, use):
    config = Config.fromfile(projects[scope].config)
    if 'auxiliary' in name:
        config.model.auxiliary_head = [head(num_classes=3), head(num_classes=2)]
    dataset = dict(metainfo=dict(classes=[str(i) for i in range(count or 0)]))
    run = runner(build_model(config), scope, use, **dataset)
    if count is None:  # no names, three labels
        getattr(run, f'_{use}_loop').dataloader.dataset = Unnamed()
    says = re.escape(f'{name}={outputs}: set it to {count or 3}')
    with pytest.raises(UserError, match=says):
        ClassCheckHook().before_run(run)


@pytest.mark.parametrize(
    ('scope', 'count', 'change'),
    [
        ('mmpretrain', 2, {}),
        ('mmpretrain', 1, {}),  # more outputs than classes are those of another set
        ('mmdet', 2, {}),
        ('mmseg', 2, {}),
        ('mmseg', 2, dict(num_classes=2, out_channels=1, threshold=0.3)),
        ('mmseg', 2, dict(num_classes=1, out_channels=1, threshold=0.3)),
    ],
)
def test_numbers_that_fit(projects, scope, count, change):
    config = Config.fromfile(projects[scope].config)
    config.model.get('decode_head', {}).update(change)
    meta = dict(classes=[str(i) for i in range(count)])
    ClassCheckHook().before_run(runner(build_model(config), scope, metainfo=meta))


class TestCheckpoints:
    def load(self, trained, given, model=None, scope='mmpretrain', **settings):
        run = runner(model, scope, metainfo=dict(classes=given), **settings)
        checkpoint = dict(meta=dict(dataset_meta=dict(classes=trained)))
        ClassCheckHook().after_load_checkpoint(run, checkpoint)

    def test_what_is_resumed_must_be_the_same(self, capsys):
        self.load(['a', 'b'], ('a', 'b'), resume=True)
        for trained in (['b', 'a'], ['a', 'c'], ['a']):
            with pytest.raises(UserError, match=r'\(a, b\): it cannot be resumed'):
                self.load(trained, ['a', 'b'], resume=True)
        assert capsys.readouterr().out == ''

    def test_what_is_started_from_is_said(self, capsys):
        self.load(['b', 'a'], ['a', 'b'])
        assert 'in another order (b, a) than the data (a, b)' in capsys.readouterr().out
        self.load(['a', 'c'], ['a', 'b'])
        assert 'other classes (a, c) than the data have (a, b)' in capsys.readouterr().out
        self.load(['a', 'b', 'c'], ['a', 'b'])  # its head is of another shape, which is said
        assert capsys.readouterr().out == ''

    def test_tests_with_other_names(self, capsys):
        self.load(['a', 'c'], ['a', 'b'], use='test')
        assert 'warning: the checkpoint was trained on other classes' in capsys.readouterr().out
        with pytest.raises(UserError, match='one name stands for different outputs'):
            self.load(['a', 'b', 'c'], ['b', 'c'], use='test')

    @pytest.mark.parametrize('scope', SCOPES)
    def test_tests_map_labels_by_name(self, projects, photo, scope, capsys):
        config = Config.fromfile(projects[scope].config)
        with DefaultScope.overwrite_default_scope(scope):
            model = load_model(config, str(projects[scope].checkpoint))
            task = TASKS[scope](model)
            before = task.predict(str(photo))
            trained = ['c', 'a', 'b'][: 3 if scope == 'mmseg' else 2]
            given = sorted(trained)
            self.load(trained, given, model, scope, use='test')
            after = task.predict(str(photo))
        assert 'its labels are mapped by name' in capsys.readouterr().out
        place = torch.tensor([given.index(name) for name in trained])
        if scope == 'mmpretrain':
            torch.testing.assert_close(after.pred_score[place], before.pred_score)
            assert given[int(after.pred_label)] == trained[int(before.pred_label)]
        elif scope == 'mmdet':
            labels = before.pred_instances.labels
            assert len(labels)
            torch.testing.assert_close(after.pred_instances.labels, place[labels])
        else:
            labels = after.pred_sem_seg.data
            torch.testing.assert_close(labels, place[before.pred_sem_seg.data])
            torch.testing.assert_close(after.seg_logits.data.argmax(0, keepdim=True), labels)


def test_a_test_scores_by_name(run, projects, capsys):
    """A checkpoint with its classes and its outputs in another order scores the same."""
    project = projects['mmpretrain']
    content = torch.load(project.checkpoint)
    content['meta'] = dict(dataset_meta=dict(classes=['disc', 'box']))
    for key in ('head.fc.weight', 'head.fc.bias'):
        content['state_dict'][key] = content['state_dict'][key].flip(0)
    torch.save(content, 'swapped.pth')
    scores = []
    for checkpoint in (project.checkpoint, 'swapped.pth'):
        run('test', project, checkpoint, '--out', 'p.pkl')
        scores.append([x['pred_score'] for x in pickle.loads(Path('p.pkl').read_bytes())])
    torch.testing.assert_close(*scores)
    assert capsys.readouterr().out.count('mapped by name') == 1
