"""Every config trains a step and predicts, with its own pipeline, model and optimizer."""

import gc

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from shrunk_configs import CONFIGS, FAMILIES, FILES, NUM_FILES, PATHS, load, name_of

from coc_mm.apis.resolve import use_cpu_amp
from coc_mm.datasets import resolve_custom

METRICS = dict(
    classification={'accuracy/top1'},
    detection={'coco/bbox_mAP', 'coco/bbox_mAP_50'},
    segmentation={'mIoU', 'aAcc'},
)
ROOTS = dict(class_folders='folders', coco='objects', image_masks='ade')


def place_data(cfg, tiny_data):
    """Point a config at the tiny data, in place."""
    if 'custom_data' in cfg:
        cfg.data_root = str(tiny_data / ROOTS[cfg.custom_data])
        resolve_custom(cfg)
        return
    name = dict(mmpretrain='imagenet', mmdet='coco', mmseg='ade')[cfg.default_scope]
    root = tiny_data / name
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.data_root = str(root)
    if cfg.default_scope == 'mmdet':
        for key in ('val_evaluator', 'test_evaluator'):
            cfg[key].ann_file = str(root / 'annotations' / 'instances_val2017.json')


def build_runner(cfg, tiny_data, tmp_path, amp=False):
    place_data(cfg, tiny_data)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.serialize_data = False  # collects garbage each time
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = tmp_path.name
    if cfg.train_cfg.get('type') == 'IterBasedTrainLoop':
        cfg.train_cfg.update(max_iters=1, val_interval=1)
    else:
        cfg.train_cfg.max_epochs = 1
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':
        use_cpu_amp(cfg.optim_wrapper)
        if not amp:  # bfloat16 is slow on most CPUs
            cfg.optim_wrapper.type = 'OptimWrapper'
    return Runner.from_cfg(cfg)


def check_run(path, runner):
    """Train and validate; metrics are there, stem and heads moved, all stayed finite."""
    before = {k: v.detach().clone() for k, v in runner.model.named_parameters()}
    runner.train()
    logged = {k.removeprefix('val/') for k in runner.message_hub.log_scalars}
    assert METRICS[path.parent.name] <= logged
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    moved = {k for k, v in runner.model.named_parameters() if not torch.equal(v, before[k])}
    assert 'backbone.patch_embed.proj.weight' in moved, 'no gradient reached the stem'
    assert moved > {k for k in before if k.startswith('backbone.stages.0')}
    assert any(not k.startswith('backbone.') for k in moved)


def test_counts():
    assert {family: len(FILES[family]) for family in FAMILIES} == NUM_FILES


@pytest.fixture(autouse=True)
def _memory_is_given_back():
    """A runner is full of cycles, and too few objects for Python to look for them soon."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _unformatted_logs(monkeypatch):
    """A Runner formats its config with yapf for the log, which takes longer than a step."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda self: str(self._cfg_dict)))


@pytest.mark.parametrize('path', PATHS, ids=name_of)
def test_trains_a_step_and_predicts(path, tiny_data, tmp_path):
    cfg = load(path)
    if 'init_cfg' in cfg.model.backbone:
        cfg.model.backbone.init_cfg = None
    # The learning rate of a first step is next to nothing; weights are to move.
    cfg.param_scheduler = None
    runner = build_runner(cfg, tiny_data, tmp_path, amp='-amp-' in path.name)
    check_run(path, runner)


PRIMITIVES = [
    'detection/mask-rcnn_coc-s-c4_fpn_1x_coco.py',
    'segmentation/fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py',
]


@pytest.mark.parametrize('name', PRIMITIVES)
def test_dense_models_start_from_the_classifier(name, tiny_data, tmp_path):
    classifier = MODELS.build(
        load(CONFIGS / 'classification' / 'coc-small_8xb128_in1k.py').model
        | dict(type='mmpretrain.ImageClassifier')
    )
    state = {k: v + 1.0 for k, v in classifier.state_dict().items()}
    file = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=state), file)
    cfg = load(CONFIGS / name)
    cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': str(file)})
    runner = build_runner(cfg, tiny_data, tmp_path)
    runner._init_model_weights()
    loaded = runner.model.backbone.state_dict()
    common = [k for k in loaded if f'backbone.{k}' in state]
    # All but the norms of the outputs, of which the classifier has the last.
    assert set(loaded) - set(common) == {
        f'norm{i}.{p}' for i in range(3) for p in ('weight', 'bias')
    }
    assert all(torch.equal(loaded[k], state[f'backbone.{k}']) for k in common)
