"""Configs of trainings that draw at random wherever they can, in all three libraries."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from fork_ranks import environment
from PIL import Image
from tiny_projects import write_project

COMMON = """
_base_ = '{base}'
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7),
    dict(type='CosineAnnealingLR', by_epoch={by_epoch}, begin={begin}, end={end}, eta_min=1e-4),
]
model = dict(backbone=dict(drop_path_rate=0.4, layer_scale_init_value=0.5))
"""

CLASSIFICATION = """
train_cfg = dict(max_epochs=8)
model.update(
    head=dict(loss=dict(type='CrossEntropyLoss', use_soft=True)),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ColorJitter', brightness=0.4),
    dict(type='PackInputs')]))
"""

SEGMENTATION = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=24, val_interval=6)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=4, save_best='mIoU'))
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomResize', scale=(64, 64), ratio_range=(1.0, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(64, 64)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs')]))
"""

DETECTION = """
train_cfg = dict(max_epochs=4)
train_dataloader = dict(
    batch_size=1, batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='RandomResize', scale=(64, 64), ratio_range=(0.9, 1.2), keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs')]))
"""

_TASKS = {
    'mmpretrain': (CLASSIFICATION, dict(by_epoch=True, begin=1, end=8)),
    'mmseg': (SEGMENTATION, dict(by_epoch=False, begin=7, end=24)),
    'mmdet': (DETECTION, dict(by_epoch=True, begin=1, end=4)),
}


def write_survival_project(folder: Path, scope: str) -> Path:
    """Write data and the config of a training into a folder; return the config."""
    base = write_project(folder, scope)
    if scope == 'mmpretrain':
        rng = np.random.default_rng(0)
        for label, name in enumerate(('disc', 'box')):
            for index in range(2, 5):  # ten images in all, so that the last batch is smaller
                shade = rng.integers(0, 160, (32, 32, 3))
                shade += np.array([60 * label, 0, 60 - 60 * label])
                path = folder / 'data' / name / f'{index}.png'
                Image.fromarray(shade.astype(np.uint8)).save(path)
    task, schedule = _TASKS[scope]
    config = folder / f'survive_{scope}.py'
    config.write_text(COMMON.format(base=base.name, **schedule) + task)
    return config


def read_losses(log: Path, rank: int = 0) -> list[tuple[int, float]]:
    """Read what a run recorded: iterations and their losses."""
    path = Path(f'{log}.{rank}.losses')
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def read_end(log: Path) -> dict:
    """Read how a run ended."""
    return json.loads(Path(f'{log}.ended').read_text())


def play(folder: Path, chains: list[list[dict]], *libraries: str) -> None:
    """Run chains of trainings, see :mod:`survival_runs`."""
    plan = folder / 'chains.json'
    plan.write_text(json.dumps(chains))
    script = Path(__file__).with_name('survival_runs.py')
    done = subprocess.run(
        [sys.executable, script, plan, *libraries],
        env=environment(), capture_output=True, text=True, timeout=600, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def same(one, other) -> bool:
    """Whether two nested states are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


#: What of a checkpoint decides how a training goes on.
STATE = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')


def final_state(work_dir: Path) -> dict:
    """Read the state that a training ended with, and its best checkpoint."""
    latest = work_dir / Path((work_dir / 'last_checkpoint').read_text()).name
    checkpoint = torch.load(latest, weights_only=False)
    state = {key: checkpoint[key] for key in STATE if key in checkpoint}
    state['best'] = checkpoint['message_hub']['runtime_info'].get('best_score')
    for path in work_dir.glob('best_*.pth'):
        state[path.name] = torch.load(path, weights_only=False)['state_dict']
    state['position'] = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
    return state
