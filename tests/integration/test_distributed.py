"""Several processes: the scripts that start them, and what they compute, over gloo on the CPU."""

import json
import math
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from fork_ranks import play_runs
from mmengine.config import Config
from tiny_projects import SCOPES, write_project

from coc_mm.cli.test import parse as parse_test
from coc_mm.cli.train import parse as parse_train

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'
# The config that shows FSDP: what a tiny one takes from it is what a user starts.
FSDP = ROOT / 'configs' / 'classification' / 'coc-medium_8xb128-fsdp_in1k.py'
# What srun sets for its tasks.
SLURM = dict(
    SLURM_PROCID='{rank}', SLURM_LOCALID='{rank}', SLURM_NTASKS='{world}', SLURM_NODELIST='n[1-2]'
)


def _five_images(folder, scope):
    """Write a project with five images."""
    config = write_project(folder / f'{scope}_five', scope)
    data = config.parent / 'data'
    if scope == 'mmpretrain':
        shutil.copy(data / 'disc' / '0.png', data / 'box' / '2.png')
        return config
    for name in ('images', 'maps') if scope == 'mmseg' else ('images',):
        for index in (2, 3, 4):
            shutil.copy(data / name / f'{index % 2}.png', data / name / f'{index}.png')
    if scope == 'mmdet':
        path = data / 'annotations.json'
        content = json.loads(path.read_text())
        boxes = content['annotations']
        for index in (2, 3, 4):
            content['images'].append(dict(content['images'][0], id=index, file_name=f'{index}.png'))
            boxes += [dict(b, id=len(boxes) + i, image_id=index) for i, b in enumerate(boxes[:2])]
        path.write_text(json.dumps(content))
    return config


def _plan(folder):
    """Runs by name: one process against two, the same under FSDP, and the other libraries."""
    configs = {scope: write_project(folder / scope, scope) for scope in SCOPES}
    cls = configs['mmpretrain']
    fsdp = cls.with_name('fsdp.py')
    shown = Config.fromfile(FSDP)
    sharding = {key: shown[key] for key in ('runner_type', 'strategy')}
    Config(dict(Config.fromfile(cls), **sharding)).dump(fsdp)
    tools = folder / 'bin'
    tools.mkdir()
    (tools / 'scontrol').write_text('#!/bin/sh\necho 127.0.0.1\necho n2\n')
    (tools / 'scontrol').chmod(0o755)
    slurm = dict(SLURM, PATH=f'{tools}:{os.environ["PATH"]}')

    def train(name, config, world, batch, *options, launcher='pytorch', flags=(), **more):
        argv = [str(config), '--work-dir', str(folder / name), '--launcher', launcher, *flags]
        options = [f'train_dataloader.batch_size={batch}', *options]
        argv += ['--cfg-options', *options]
        return dict(name=name, tool='train', argv=argv, world=world, **more)

    def test(name, config, trained, launcher='pytorch', **more):
        checkpoint = str(folder / trained / 'epoch_1.pth')
        argv = [str(config), checkpoint, '--work-dir', str(folder / name), '--launcher', launcher]
        return dict(name=name, tool='test', argv=argv, **{'world': 2, **more})

    first, second = 'train_cfg.max_epochs=1', 'train_cfg.max_epochs=3'
    # AdamW makes steps of rounding errors; blocks that start switched off prove little.
    optimizer = 'optim_wrapper.optimizer'
    sgd = dict(type='SGD', momentum=0.9, lr=0.1, weight_decay=0.01)
    same = (
        *(f'{optimizer}.{key}={value}' for key, value in sgd.items()),
        'optim_wrapper.paramwise_cfg.norm_decay_mult=0.0',
        'model.backbone.layer_scale_init_value=1.0',
    )
    plan = [
        train('one', cls, 1, 4, *same, second, launcher='none'),
        train('two', cls, 2, 2, *same, second),
        train('fsdp', fsdp, 2, 2, *same, first),
        # Begun on two processes, FSDP and all, goes on in one.
        train('fsdp_one', cls, 1, 4, *same, second, f'load_from={folder}/fsdp/epoch_1.pth',
              'resume=True', launcher='none'),
        # Begun on one, goes on on two, under FSDP.
        train('one_fsdp', fsdp, 2, 2, *same, second, f'load_from={folder}/one/epoch_1.pth',
              'resume=True'),
        train('det', configs['mmdet'], 2, 1),
        # As in the configs for ADE20K: batch norms that torch synchronises on accelerators only.
        train('seg', configs['mmseg'], 2, 1, 'model.decode_head.norm_cfg.type=SyncBN',
              launcher='slurm', env=slurm),
        test('seg_test', configs['mmseg'], 'seg'),
        test('cls_test', cls, 'two', launcher='slurm', env=slurm),
    ]  # fmt: skip
    # FSDP's checkpoint is read by one process; five images divide by no number of processes.
    more = {scope: _five_images(folder, scope) for scope in SCOPES}
    plan.append(test('fsdp_test', cls, 'fsdp', launcher='none', world=1))
    libraries = dict(cls='mmpretrain', det='mmdet', seg='mmseg')
    for name, scope in libraries.items():
        trained = 'two' if name == 'cls' else name
        for world in (1, 2, 4):
            launcher = 'none' if world == 1 else 'pytorch'
            run = test(f'{name}_uneven_{world}', more[scope], trained, launcher, world=world)
            if name == 'det':
                run['argv'] += ['--out', str(folder / f'{name}_{world}.pkl')]
            # A batch of one: others are padded to their largest image.
            run['argv'] += ['--cfg-options', 'test_dataloader.batch_size=1']
            plan.append(run)
    for run in plan:
        run['library'] = libraries.get(run['name'][:3], 'mmpretrain')
    return plan


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """Every run of the plan: its work dir, what its processes said, their losses and status."""
    folder = tmp_path_factory.mktemp('distributed')
    return play_runs(folder, _plan(folder))


def _weights(run, epoch):
    checkpoint = torch.load(run.work_dir / f'epoch_{epoch}.pth', weights_only=False)
    return checkpoint['state_dict']


def _scores(run):
    (path,) = run.work_dir.glob('*/*.json')  # a test writes its metrics there
    scores = json.loads(path.read_text())
    return {name: value for name, value in scores.items() if not name.endswith('time')}


def test_all_processes_end_well(ran):
    assert len(ran) == 19
    for name, run in ran.items():
        assert set(run.status) == {0}, f'{name}: {run.said}'
    first, second = ran['two'].losses
    assert first[0] != second[0], 'each process sees its own share'
    assert not (ran['det'].work_dir.parent / '.dist_test').exists(), 'in the current folder'


@pytest.mark.parametrize(
    ('name', 'epochs'),
    [('two', (1, 2, 3)), ('fsdp', (1,)), ('fsdp_one', (2, 3)), ('one_fsdp', (2, 3))],
)
def test_the_same_total_batch_gives_the_same_training(ran, name, epochs):
    """Losses averaged over processes, and the weights after each epoch, are those of one."""
    one = torch.tensor(ran['one'].losses).mean(0)
    assert len(one) == 3
    assert one[-1] < one[0], 'a training that does not train proves nothing'
    found = torch.tensor(ran[name].losses).mean(0)
    torch.testing.assert_close(found, one[[e - 1 for e in epochs]], rtol=1e-4, atol=1e-5)
    for epoch in epochs:
        weights = (_weights(run, epoch) for run in (ran[name], ran['one']))
        torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', ['det', 'seg'])
def test_the_other_libraries_train_on_two(ran, name):
    run = ran[name]
    assert len(run.losses) == 2
    assert all(len(losses) == 1 and math.isfinite(losses[0]) for losses in run.losses)
    assert all(value.isfinite().all() for value in _weights(run, 1).values())
    assert 'over gloo' in run.said[0]
    assert 'over gloo' not in run.said[1], 'said by one process'


def test_metrics_are_gathered_from_all(ran):
    assert 'mIoU' in _scores(ran['seg_test'])
    assert 'accuracy/top1' in _scores(ran['cls_test'])
    assert set(_scores(ran['fsdp_test'])) == set(_scores(ran['cls_test']))
    assert 'coco/bbox_mAP' in ran['det'].said[0]


@pytest.mark.parametrize('name', ['cls', 'det', 'seg'])
def test_uneven_data_give_the_scores_of_one_process(ran, name):
    expected = _scores(ran[f'{name}_uneven_1'])
    assert any(value > 0 for value in expected.values()), expected
    for world in (2, 4):
        run = ran[f'{name}_uneven_{world}']
        assert _scores(run) == expected, 'exactly'
        assert not list(run.work_dir.glob('*/results')), 'gathered there, and removed'


def test_uneven_data_give_the_predictions_of_one_process(ran):
    folder = ran['det'].work_dir.parent
    expected, *found = (pickle.loads((folder / f'det_{n}.pkl').read_bytes()) for n in (1, 2, 4))
    assert [sample['img_id'] for sample in expected] == [0, 1, 2, 3, 4]
    assert sum(len(sample['pred_instances']['scores']) for sample in expected) > 5
    for samples in found:
        for one, other in zip(samples, expected, strict=True):
            assert one['img_id'] == other['img_id']
            for key in ('bboxes', 'scores', 'labels'):
                assert torch.equal(one['pred_instances'][key], other['pred_instances'][key])


@pytest.fixture
def started(tmp_path):
    """Run a script with stand-ins for python and srun; return what they were called with."""
    record = tmp_path / 'record'
    for name in ('python', 'srun'):
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> {record}\n')
        stand_in.chmod(0o755)

    def call(script, *argv, **variables):
        environment = {k: v for k, v in os.environ.items() if k not in ('PYTHON', 'MASTER_ADDR')}
        environment |= dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', **variables)
        done = subprocess.run(
            ['bash', TOOLS / script, *argv], env=environment, capture_output=True, text=True
        )
        return done, record.read_text().splitlines() if record.exists() else []

    return call


@pytest.mark.parametrize(
    ('script', 'argv'),
    [
        ('dist_train.sh', ['c.py', '2']),
        ('dist_test.sh', ['c.py', 'x.pth', '2']),
        ('slurm_train.sh', ['part', 'job', 'c.py']),
        ('slurm_test.sh', ['part', 'job', 'c.py', 'x.pth']),
    ],
)
def test_scripts_hand_over_what_they_are_given(started, script, argv):
    odd = 'key=[1, 2]'
    done, called = started(script, *argv, '--work-dir', 'a b', '--cfg-options', odd)
    assert done.returncode == 0, done.stderr
    tool = 'train' if 'train' in script else 'test'
    (place,) = [i for i, word in enumerate(called) if word.endswith(f'/{tool}.py')]
    args = (parse_train if tool == 'train' else parse_test)(called[place + 1 :])
    assert args.launcher == ('slurm' if 'slurm' in script else 'pytorch')
    assert (args.config, args.work_dir) == ('c.py', 'a b')
    assert args.cfg_options == dict(key=[1, 2])
    if tool == 'test':
        assert args.checkpoint == 'x.pth'
    for enough in range(len(argv)):
        done, _ = started(script, *argv[:enough])
        assert done.returncode == 2
        assert f'bash tools/{script}' in done.stderr


def test_scripts_follow_their_variables(started):
    variables = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='node1', PORT='1234')
    _, called = started('dist_train.sh', 'c.py', '4', **variables)
    assert {'--nnodes=2', '--node_rank=1', '--master_addr=node1', '--master_port=1234',
            '--nproc_per_node=4'} <= set(called)  # fmt: skip
    variables = dict(GPUS='4', SRUN_ARGS='--time=1:00 --exclusive')
    _, called = started('slurm_train.sh', 'part', 'job', 'c.py', **variables)
    assert {'--partition=part', '--job-name=job', '--ntasks=4', '--ntasks-per-node=4',
            '--gres=gpu:4', '--time=1:00', '--exclusive'} <= set(called)  # fmt: skip
