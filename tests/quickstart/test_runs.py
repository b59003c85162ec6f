"""Order, reuse and failures of the quickstart, with tools that only pretend to train."""

import json
import re
from unittest.mock import ANY

import pytest

from coc_mm.cli import quickstart as command
from coc_mm.quickstart import runs
from coc_mm.quickstart.tasks import TASKS, shipped

METRICS = {'accuracy/top1': 98.5, 'coco/bbox_mAP_50': 0.8, 'coco/segm_mAP_50': 0.75, 'mIoU': 81.25}

# Both write what the real ones leave behind, and note how they were called.
TRAIN = """
import json, os, pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
with open(os.environ['CALLS'], 'a') as calls:
    calls.write(json.dumps(['train', *sys.argv[1:]]) + '\\n')
print('Epoch(train)   [1][10/10]  lr: 1.0e-03  eta: 0:00:00  loss: 1.2500')
with zipfile.ZipFile(folder / 'epoch_1.pth', 'w') as checkpoint:
    checkpoint.writestr('weights', b'0')
(folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
broken = os.environ.get('BREAK')
if broken == 'train' or (broken and broken in sys.argv[1]):
    sys.exit('the disk is full')
"""
TEST = f"""
import json, os, pathlib, sys
with open(os.environ['CALLS'], 'a') as calls:
    calls.write(json.dumps(['test', *sys.argv[1:]]) + '\\n')
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1]) / 'stamp'
folder.mkdir(parents=True)
metrics = {METRICS!r} if os.environ.get('BREAK') != 'test' else {{}}
(folder / 'stamp.json').write_text(json.dumps(metrics))
"""


class Sandbox:
    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.work_dir = folder / 'work'
        self._log = folder / 'calls'
        monkeypatch.setenv('CALLS', str(self._log))
        monkeypatch.setenv('COLUMNS', '200')

    def run(self, *arguments, broken=''):
        """Exit status, tools called as (tool, task), and what was printed."""
        self.monkeypatch.setenv('BREAK', broken)
        self._log.write_text('')
        status = command.main([*arguments, '--work-dir', str(self.work_dir)])
        task_of = {str(shipped(f'configs/{s.config}')): s.name for s in TASKS.values()}

        def task(call):
            return next(name for path, name in task_of.items() if path.endswith(call[1]))

        # Detection and segmentation run side by side: their calls may alternate.
        calls = [json.loads(line) for line in self._log.read_text().splitlines()]
        self.first = [task(call) for call in calls[:2]]
        self.calls = sorted(calls, key=lambda call: list(TASKS).index(task(call)))
        called = [(call[0], task(call)) for call in self.calls]
        out, err = self.capsys.readouterr()
        return status, called, out + err

    @property
    def summary(self):
        return json.loads((self.work_dir / 'summary.json').read_text())


@pytest.fixture
def sandbox(tmp_path, monkeypatch, capsys):
    (tmp_path / 'tools').mkdir()
    for name, code in (('train', TRAIN), ('test', TEST)):
        (tmp_path / 'tools' / f'{name}.py').write_text(code)

    def ours(name):
        return tmp_path / name if name.startswith('tools') else shipped(name)

    monkeypatch.setattr(runs, 'shipped', ours)
    monkeypatch.setattr(command, '_draw', lambda *_: None)
    return Sandbox(tmp_path, monkeypatch, capsys)


def both(*tasks):
    return [(tool, task) for task in tasks for tool in ('train', 'test')]


def test_all_tasks_run_in_order_are_summarized_and_reused(sandbox):
    status, called, text = sandbox.run()
    assert status == 0, text
    assert called == both('classification', 'detection', 'segmentation')
    assert sandbox.first == ['classification'] * 2, 'the others start from it'
    summary = sandbox.summary
    assert summary == {
        'classification': dict(top1=98.5, seconds=ANY),
        'detection': dict(bbox_mAP_50=0.8, segm_mAP_50=0.75, seconds=ANY),
        'segmentation': dict(mIoU=81.25, seconds=ANY),
    }
    assert all(figures['seconds'] > 0 for figures in summary.values())
    for shown in ('98.50 %', '0.800', '0.750', '81.25 %'):
        assert shown in text

    status, called, text = sandbox.run()
    assert (status, called) == (0, []), text
    assert text.count('reusing the finished run') == 3
    assert sandbox.summary == summary


def test_dense_task_alone_trains_the_classification_first(sandbox):
    _, called, text = sandbox.run('detection')
    assert called == both('classification', 'detection')
    assert 'detection starts from the classification, which comes first' in text
    assert set(sandbox.summary) == {'classification', 'detection'}
    start = sandbox.work_dir / 'classification' / 'epoch_1.pth'
    assert f'model.backbone.init_cfg.checkpoint={start}' in sandbox.calls[2]
    # The classification is there now, and results of other tasks stay in the summary.
    _, called, text = sandbox.run('segmentation')
    assert called == both('segmentation')
    assert 'comes first' not in text
    assert set(sandbox.summary) == set(TASKS)


def test_other_config_is_run_anew_with_what_hangs_on_it(sandbox):
    sandbox.run()
    option = ['--cfg-options', 'detection.optim_wrapper.optimizer.lr=5e-4']
    _, called, text = sandbox.run(*option)
    assert called == both('detection')
    assert 'optim_wrapper.optimizer.lr=5e-4' in sandbox.calls[0]
    assert 'is of another config or other code' in text
    assert (sandbox.work_dir / 'detection.old' / 'epoch_1.pth').exists()
    _, called, _ = sandbox.run('--cfg-options', 'classification.train_cfg.max_epochs=2')
    assert called == both('classification', 'detection', 'segmentation')


def test_interrupted_training_is_resumed(sandbox):
    status, called, text = sandbox.run('classification', broken='train')
    assert status == 2
    assert called == [('train', 'classification')]
    assert re.search(r'tools/train\.py ended with status 1.*the disk is full', text, re.DOTALL)
    assert not (sandbox.work_dir / 'summary.json').exists()
    spent = json.loads((sandbox.work_dir / 'classification' / runs.RECORD).read_text())['seconds']
    status, called, text = sandbox.run('classification')
    assert (status, called) == (0, both('classification')), text
    assert 'continuing from' in text
    assert '--resume' in sandbox.calls[0]
    assert sandbox.summary['classification']['seconds'] > spent


def test_failing_tasks(sandbox):
    status, called, text = sandbox.run(broken='test')
    assert (status, called) == (2, both('classification')), 'it stops the rest'
    assert 'the test logged no accuracy/top1' in text
    # Another leaves the results of its neighbor.
    status, called, text = sandbox.run(broken='mask-rcnn')
    assert status == 2
    assert ('test', 'detection') not in called
    assert re.search(r'error: detection: tools/train\.py ended.*the disk is full', text, re.DOTALL)
    assert set(sandbox.summary) == {'classification', 'segmentation'}


def test_truncated_checkpoint_is_not_reused(sandbox):
    sandbox.run('classification')
    checkpoint = sandbox.work_dir / 'classification' / 'epoch_1.pth'
    checkpoint.write_bytes(checkpoint.read_bytes()[:20])
    _, called, text = sandbox.run('classification')
    assert called == both('classification')
    assert 'has no checkpoint to continue from' in text


def test_folder_of_somebody_else_is_set_aside(sandbox):
    foreign = sandbox.work_dir / 'classification' / 'notes.txt'
    foreign.parent.mkdir(parents=True)
    foreign.write_text('mine')
    _, called, text = sandbox.run('classification')
    assert called == both('classification')
    assert 'was not made by the quickstart' in text
    kept = sandbox.work_dir / 'classification.old' / 'notes.txt'
    assert kept.read_text() == 'mine'


def test_fresh_and_code_that_results_depend_on(sandbox, monkeypatch):
    sandbox.run()
    _, called, _ = sandbox.run('segmentation', '--fresh')
    assert called == both('segmentation')
    monkeypatch.setattr('coc_mm.quickstart.tasks._code_digest', lambda: 'edited')
    _, called, _ = sandbox.run('classification')
    assert called == both('classification')


def test_wrong_override_is_refused_before_anything_starts(sandbox):
    status, called, text = sandbox.run('--cfg-options', 'detection.optim_wraper.lr=1')
    assert (status, called) == (2, [])
    assert 'did you mean optim_wrapper?' in text
    assert not sandbox.work_dir.exists()
