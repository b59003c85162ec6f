"""The recipes are those of the paper: optimizer groups, learning rates, augmentation."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from shrunk_configs import CONFIGS

from coc_mm.apis.resolve import use_cpu_amp
from coc_mm.apis.start import build_model

CLASSIFICATION = 'classification/coc-tiny_8xb128_in1k.py'
DETECTION = 'detection/mask-rcnn_coc-s-c4_fpn_1x_coco.py'
SEGMENTATION = 'segmentation/fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py'


def read(name):
    return Config.fromfile(CONFIGS / name)


def build_optimizer(cfg, model):
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':
        use_cpu_amp(cfg.optim_wrapper)
    return build_optim_wrapper(model, cfg.optim_wrapper).optimizer


def rates(cfg, epoch_length, steps):
    """Sample the learning rate at the given steps, iterations counted from 0."""
    optimizer = torch.optim.SGD(
        [torch.nn.Parameter(torch.zeros(1))], cfg.optim_wrapper.optimizer.lr
    )
    schedulers = [
        PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        for s in cfg.param_scheduler
    ]
    sampled = {}
    for step in range(max(steps) + 1):
        if step in steps:
            sampled[step] = optimizer.param_groups[0]['lr']
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (step + 1) % epoch_length == 0:
                scheduler.step()
    return sampled


def test_imagenet_optimizer_spares_1d_parameters():
    cfg = read(CLASSIFICATION)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    decay = {id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
    assert all(g['lr'] == 1e-3 for g in optimizer.param_groups)
    assert all(g['betas'] == (0.9, 0.999) for g in optimizer.param_groups)
    decayed, spared = [], []
    for name, param in model.named_parameters():
        assert decay[id(param)] == (0.05 if param.ndim > 1 else 0), name
        (decayed if param.ndim > 1 else spared).append(name)
    # tiny: 4 reducers, 14 blocks of 4 matrices, the head.
    assert len(decayed) == 4 + 14 * 4 + 1
    kinds = ('sim_alpha', 'sim_beta', 'layer_scale1', 'layer_scale2', 'norm1.weight', 'norm2.bias')
    for kind in kinds:
        assert sum(name.endswith(kind) for name in spared) == 14, kind


@pytest.mark.parametrize('name', [DETECTION, SEGMENTATION])
def test_dense_optimizers_decay_everything(name):
    cfg = read(name)
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert group['lr'] == {DETECTION: 2e-4, SEGMENTATION: 1e-4}[name]
    assert group['weight_decay'] == 1e-4
    assert len(group['params']) == len(list(model.parameters()))
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert cfg.optim_wrapper.get('clip_grad') is None


def test_imagenet_learning_rate():
    cfg = read(CLASSIFICATION)

    def original(epoch, high=1e-3, low=1e-6):
        """timm's: warm-up by epoch, a cosine that counts from epoch 0, cool-down."""
        if epoch < 5:
            return low + epoch * (high - low) / 5
        return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(epoch, 300) / 300))

    epochs = [0, 1, 2, 4, 5, 6, 50, 150, 250, 299, 300, 305, 309]
    sampled = rates(cfg, 2, [2 * e for e in epochs] + [2 * e + 1 for e in epochs])
    assert len(sampled) == 2 * len(epochs)
    for step, rate in sampled.items():  # both iterations of an epoch
        assert rate == pytest.approx(original(step // 2), rel=1e-3), step
    assert sampled[0] == pytest.approx(1e-6)
    assert sampled[2 * 300] == pytest.approx(1e-6, rel=1e-9) == sampled[2 * 309]
    assert cfg.train_cfg.max_epochs == 310
    assert cfg.auto_scale_lr.base_batch_size == 1024


def test_coco_learning_rate():
    cfg = read(DETECTION)
    sampled = rates(cfg, 100, [0, 250, 499, 500, 799, 800, 1099, 1100, 1199])
    expected = {0: 2e-7, 499: 2e-4, 500: 2e-4, 799: 2e-4, 800: 2e-5, 1099: 2e-5, 1100: 2e-6}
    for step, rate in expected.items():
        assert sampled[step] == pytest.approx(rate, rel=1e-9), step
    assert sampled[250] == pytest.approx(2e-4 * (0.001 + 0.999 * 250 / 499), rel=1e-6)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.auto_scale_lr.base_batch_size == 16


def test_ade20k_learning_rate():
    cfg = read(SEGMENTATION)
    steps = [0, 1, 20000, 40000, 79999]
    sampled = rates(cfg, 10**9, steps)
    for step in steps:
        # mmengine arrives at 0 in the last step, mmcv 1.x one step later.
        expected = 1e-4 * (1 - step / 80000) ** 0.9
        assert sampled[step] == pytest.approx(expected, rel=1e-4, abs=5e-9), step
    assert cfg.train_cfg.max_iters == 80000
    assert cfg.auto_scale_lr.base_batch_size == 16


def test_imagenet_augmentation():
    cfg = read(CLASSIFICATION)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        steps = [TRANSFORMS.build(t) for t in cfg.train_dataloader.dataset.pipeline]
        test_steps = [TRANSFORMS.build(t) for t in cfg.test_dataloader.dataset.pipeline]
    _, crop, flip, randaug, erase, _ = steps
    crops = [t for branch in crop.transforms for t in branch]
    assert crop.prob is None  # even
    assert [t.interpolation for t in crops] == ['bilinear', 'bicubic']
    for t in crops:
        assert (t.scale, t.crop_ratio_range, t.backend) == ((224, 224), (0.08, 1.0), 'pillow')
        assert t.aspect_ratio_range == (3 / 4, 4 / 3)
    assert (flip.prob, flip.direction) == (0.5, 'horizontal')
    assert (randaug.num_policies, randaug.magnitude_level, randaug.total_level) == (2, 9, 10)
    assert len(randaug.transforms) == 15
    assert all(t.prob == 0.5 for t in randaug.transforms)
    graded = [t for t in randaug.transforms if t.magnitude_range is not None]
    assert len(graded) == 12
    assert all((t.magnitude_level, t.magnitude_std) == (9, 0.5) for t in graded)
    filled = [t for t in randaug.transforms if hasattr(t, 'pad_val')]
    assert len(filled) == 5
    assert all(t.pad_val == (104, 116, 124) for t in filled)  # BGR
    assert all(t.interpolation == 'bicubic' for t in filled)
    assert (erase.erase_prob, erase.mode) == (0.25, 'rand')
    assert (erase.min_area_ratio, erase.max_area_ratio) == (0.02, 1 / 3)
    assert erase.aspect_range == (3 / 10, 10 / 3)
    assert erase.fill_color == [103.53, 116.28, 123.675]
    assert erase.fill_std == [57.375, 57.12, 58.395]
    _, resize, center, _ = test_steps
    assert (resize.scale, resize.edge, resize.interpolation) == (248, 'short', 'bicubic')
    assert resize.scale == int(224 / 0.9)
    assert resize.backend == 'pillow'
    assert center.crop_size == (224, 224)


def test_imagenet_regularisation():
    cfg = read(CLASSIFICATION)
    model = build_model(cfg)
    kinds = [(type(a).__name__, a.alpha) for a in model.data_preprocessor.batch_augments.augments]
    assert kinds == [('Mixup', 0.8), ('CutMix', 1.0)]
    assert model.data_preprocessor.batch_augments.probs is None  # even
    loss = model.head.loss_module
    assert (loss.label_smooth_val, loss.mode) == (0.1, 'original')
    assert loss(torch.zeros(1, 1000), torch.tensor([3])) == pytest.approx(math.log(1000))
    smooth = loss.smooth_label(torch.nn.functional.one_hot(torch.tensor([3]), 1000).float())
    assert smooth[0, 3] == pytest.approx(0.9 + 0.1 / 1000)
    assert smooth[0, 4] == pytest.approx(0.1 / 1000)
    rates_of_blocks = [
        getattr(block.drop_path, 'drop_prob', 0.0)
        for stage in model.backbone.stages
        for block in stage.blocks
    ]
    assert rates_of_blocks == pytest.approx([0.1 * k / 13 for k in range(14)])
    assert 'custom_hooks' not in cfg  # no EMA
    assert cfg.train_dataloader.batch_size == 128


def test_coco_pipeline():
    cfg = read(DETECTION)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        (resize,) = [t for t in loader.dataset.pipeline if t.type == 'Resize']
        assert (tuple(resize.scale), resize.keep_ratio) == ((1333, 800), True)
    (flip,) = [t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomFlip']
    assert flip.prob == 0.5
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    assert cfg.model.neck.in_channels == [64, 128, 320, 512]
    assert (cfg.model.neck.out_channels, cfg.train_dataloader.batch_size) == (256, 2)


def test_ade20k_pipeline(tiny_data):
    cfg = read(SEGMENTATION)
    kinds = ' '.join(t.type for t in cfg.train_dataloader.dataset.pipeline[2:])
    assert kinds == 'RandomResize RandomCrop RandomFlip PhotoMetricDistortion PackSegInputs'
    resize, crop, flip = cfg.train_dataloader.dataset.pipeline[2:5]
    assert (tuple(resize.scale), tuple(resize.ratio_range)) == ((2048, 512), (0.5, 2.0))
    assert (tuple(crop.crop_size), flip.prob) == ((512, 512), 0.5)
    assert (cfg.model.neck.out_channels, cfg.model.decode_head.channels) == (256, 128)
    assert cfg.model.test_cfg == dict(mode='whole')
    assert cfg.train_dataloader.batch_size == 4
    # An image of 64 x 96 becomes 512 x 768; of 64 x 100 it would be 512 x 800.
    steps = cfg.test_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope('mmseg'):
        steps = [TRANSFORMS.build(t) for t in steps if 'Resize' in t.type]
    for width, expected in ((96, 768), (100, 800), (90, 736), (1000, 2048)):
        result = dict(img=torch.zeros(64, width, 3).byte().numpy())
        for step in steps:
            result = step(result)
        height = 512 if width < 256 else 160
        assert result['img'].shape == (height, expected, 3), width


def test_ade20k_test_time_augmentation_is_the_originals():
    _, augment = read(SEGMENTATION).tta_pipeline
    scales, (align,), flips = augment.transforms[:3]
    found = []
    with DefaultScope.overwrite_default_scope('mmseg'):
        for scale in scales:
            result = dict(img=torch.zeros(375, 500, 3).byte().numpy())
            for step in (scale, align):
                result = TRANSFORMS.build(step)(result)
            found.append(result['img'].shape[:2])
    assert found == [
        *((256, 352), (384, 512), (512, 704), (640, 864), (768, 1024)),
        (896, 1216),
    ]
    assert [flip.prob for flip in flips] == [0.0, 1.0]


@pytest.mark.parametrize('name', [DETECTION, SEGMENTATION])
def test_training_anew_uses_the_corrected_denominator(name):
    model = build_model(read(name))
    mixers = [m for m in model.modules() if type(m).__name__ == 'ContextClusterMixer']
    assert len(mixers) == 12
    assert all(mixer.denominator == 'similarity' for mixer in mixers)
    assert all(mixer.proposals == (2, 2) for mixer in mixers)
