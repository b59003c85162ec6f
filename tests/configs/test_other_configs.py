"""A small backbone in models of the installed packages' own configs, by ``_base_``."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from shrunk_configs import shrink
from tiny_projects import ARCH

from coc_mm.apis.start import build_model

DIMS = [8, 16, 16, 16]  # of ARCH
_FPN = dict(in_channels=DIMS)
_THREE = dict(out_indices=(1, 2, 3)), dict(in_channels=DIMS[1:])
# What a config needs besides another backbone: for the backbone, and for the neck.
MODELS = {
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': ({}, _FPN),
    'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py': ({}, _FPN),
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': ({}, _FPN),
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py': ({}, _FPN),
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': ({}, _FPN),
    'mmdet::atss/atss_r50_fpn_1x_coco.py': ({}, _FPN),
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': _THREE,
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': _THREE,
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': _THREE,
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': _THREE,
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': ({}, None),
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py': ({}, _FPN),
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py': ({}, None),
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': ({}, None),
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py': ({}, None),
    'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py': ({}, None),
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py': ({}, None),
}


def _write(path, name):
    backbone, neck = MODELS[name]
    backbone = dict(type='coc_mm.ContextCluster', arch=ARCH, out_indices=(0, 1, 2, 3)) | backbone
    model = dict(backbone=dict(_delete_=True, **backbone))
    model |= {} if neck is None else dict(neck=neck)
    if name.startswith('mmseg'):
        model['pretrained'] = None
    path.write_text(f'_base_ = {name!r}\nmodel = {model}\n')


def _fit_heads(model):
    """Give the heads of a segmentor the channels of the maps that they read, in place."""
    for head in (model.get('decode_head'), model.get('auxiliary_head')):
        if head is None:
            continue
        if 'feat_channels' in head:  # Mask2Former
            head.in_channels = DIMS
            continue
        index = head.get('in_index', -1)
        head.in_channels = [DIMS[i] for i in index] if isinstance(index, list) else DIMS[index]
        if 'c1_in_channels' in head:
            head.c1_in_channels = DIMS[0]


@pytest.mark.parametrize('name', MODELS)
def test_builds_learns_and_predicts(name, tmp_path):
    _write(tmp_path / 'config.py', name)
    config = Config.fromfile(tmp_path / 'config.py')
    scope = config.default_scope
    assert scope == name.split(':')[0]
    shrink(config.model)
    config.model.data_preprocessor.pop('batch_augments', None)  # of the runner's iteration
    if 'num_queries' in config.model:  # as many as a small image has points
        config.model.num_queries = 20
    if scope == 'mmseg':
        _fit_heads(config.model)
    elif 'panoptic_head' in config.model:
        config.model.panoptic_head.in_channels = DIMS
    with DefaultScope.overwrite_default_scope(scope):
        model = build_model(config)
        model.init_weights()
        batch = _batch(scope, with_masks='mask' in name or 'solo' in name)
        losses, _ = model.parse_losses(
            model(**model.data_preprocessor(batch, training=True), mode='loss')
        )
        losses.backward()
        assert losses.isfinite()
        assert model.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
        model.eval()
        with torch.no_grad():
            found = model.test_step(_batch(scope, with_masks=False))
    assert len(found) == 2
    for sample in found:
        if scope == 'mmseg':
            assert sample.pred_sem_seg.data.shape == (1, 64, 96)
        else:
            assert sample.pred_instances.scores.isfinite().all()


def _batch(scope, with_masks):
    """Two images of 64 x 96 with a box and a mask each."""
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            2, [[3, 64, 96]] * 2, num_items=[1, 1], num_classes=80, with_mask=with_masks
        )
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        meta = dict(ori_shape=(64, 96), img_shape=(64, 96), pad_shape=(64, 96))
        sample = SegDataSample(metainfo=meta)
        mask = torch.zeros(1, 64, 96, dtype=torch.long)
        mask[:, 20:40, 30:60] = 3
        sample.gt_sem_seg = PixelData(data=mask)
        samples.append(sample)
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)
