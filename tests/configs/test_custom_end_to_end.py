"""Own data from the folder to a prediction, by the tools and by the libraries' own functions.

The folders hold real photographs where there are some, see ``photographs.py``.
"""

import shutil
from pathlib import Path

import numpy as np
import photographs
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from shrunk_configs import CONFIGS, load, make_ade, make_class_folders, make_coco
from tiny_projects import ARCH, forget_singletons

from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.cli.infer import run as infer
from coc_mm.cli.train import main as train
from coc_mm.datasets import resolve_custom
from coc_mm.errors import run_command

KINDS = dict(
    classification=(
        'coc-small_1xb64-50e_custom.py',
        photographs.class_folders,
        {'model.head.in_channels': 16},
    ),
    detection=(
        'mask-rcnn_coc-s-c4_fpn_1xb2-12e_custom.py',
        photographs.coco,
        {'model.neck.in_channels': [8, 16, 16, 16]},
    ),
    segmentation=(
        'fpn_coc-s-c4_1xb4-50e-512x512_custom.py',
        photographs.image_masks,
        {'model.neck.in_channels': [8, 16, 16, 16]},
    ),
)


def shrunk(kind):
    """Give the config of a kind of data with a tiny backbone and small images."""
    name, _, sizes = KINDS[kind]
    cfg = load(CONFIGS / kind / name)
    cfg.default_hooks.checkpoint = Config.fromfile(cfg.filename).default_hooks.checkpoint
    cfg.model.backbone.arch = ARCH
    cfg.merge_from_dict(sizes)
    cfg.train_cfg.max_epochs = 1
    return cfg


def runner_of(kind, data, work_dir, **options):
    cfg = shrunk(kind)
    cfg.merge_from_dict(dict(data_root=str(data), work_dir=str(work_dir), **options))
    cfg.experiment_name = f'{kind}_{work_dir.name}'
    resolve_custom(cfg)
    return Runner.from_cfg(cfg)


@pytest.fixture(autouse=True)
def _fresh_singletons():
    yield
    forget_singletons()


@pytest.fixture(scope='module', params=KINDS)
def trained(request, tmp_path_factory):
    """Kind, written config, checkpoint and an image, trained by one command; the data are gone."""
    kind = request.param
    name, place, _ = KINDS[kind]
    root = tmp_path_factory.mktemp(kind)
    place(root / 'data')
    shrunk(kind).dump(root / name)
    argv = ['--work-dir', root / 'work', '--cfg-options', f'data_root={root / "data"}']
    assert train([str(arg) for arg in (root / name, *argv)]) == 0
    image = root / 'image.jpg'
    shutil.copy(sorted((root / 'data').rglob('*.jpg'))[0], image)
    shutil.move(root / 'data', root / 'moved')
    return kind, root / 'work' / name, root / 'work' / 'epoch_1.pth', image


CLASSES = dict(
    classification=list(photographs.CLASSES),
    segmentation=['0', '1', '2', '3'],
    # In the order of the file.
    detection=['person', 'car', 'cup'] if photographs.REAL else list(photographs.CLASSES),
)


def test_checkpoint_and_config_are_complete(trained):
    kind, config, checkpoint, _ = trained
    content = load_checkpoint_safely(str(checkpoint))
    assert list(content['meta']['dataset_meta']['classes']) == CLASSES[kind]
    written = Config.fromfile(config)
    assert written.classes == CLASSES[kind]
    assert any(file.name.startswith('best_') for file in checkpoint.parent.iterdir())


def predict(kind, config, checkpoint, image):
    config, checkpoint, image = str(config), str(checkpoint), str(image)
    if kind == 'classification':
        from mmpretrain import ImageClassificationInferencer

        (result,) = ImageClassificationInferencer(config, pretrained=checkpoint)(image)
        assert result['pred_class'] in CLASSES[kind]
        return result['pred_scores']
    if kind == 'detection':
        from mmdet.apis import inference_detector, init_detector

        model = init_detector(config, checkpoint, device='cpu')
        assert list(model.dataset_meta['classes']) == CLASSES[kind]
        found = inference_detector(model, image).pred_instances
        assert len(found) > 0
        assert set(found.labels.tolist()) <= {0, 1, 2}
        return found.scores.numpy()
    from mmseg.apis import inference_model, init_model

    model = init_model(config, checkpoint, device='cpu')
    assert list(model.dataset_meta['classes']) == CLASSES[kind]
    result = inference_model(model, image)
    with Image.open(image) as photo:
        assert result.pred_sem_seg.data.shape[1:] == photo.size[::-1]
    return result.seg_logits.data.numpy()


def test_predicts_without_the_data(trained):
    kind, config, checkpoint, image = trained
    assert np.isfinite(predict(kind, config, checkpoint, image)).all()


def test_the_tool_predicts_without_the_data(trained, tmp_path, capsys):
    kind, config, checkpoint, image = trained
    argv = [image, config, checkpoint, '--out-dir', tmp_path / 'out', '--device', 'cpu']
    assert run_command(infer, [str(arg) for arg in argv]) == 0
    assert any(path.stat().st_size > 0 for path in (tmp_path / 'out').rglob('image*'))
    if kind == 'classification':
        assert any(name in capsys.readouterr().out for name in CLASSES[kind])


def test_starts_from_a_checkpoint_with_other_classes(trained, tmp_path):
    kind, _, checkpoint, _ = trained
    make = dict(
        classification=lambda root: make_class_folders(root, ('a', 'b')),
        detection=lambda root: make_coco(root, categories=('x', 'y')),
        segmentation=lambda root: (
            make_ade(root),
            (root / 'classes.txt').write_text('a\nb\nc\nd\ne'),
        ),
    )
    make[kind](tmp_path / 'data')
    source = load_checkpoint_safely(str(checkpoint))['state_dict']
    for key in ('load_from', 'pretrained'):
        runner = runner_of(kind, tmp_path / 'data', tmp_path / key, **{key: str(checkpoint)})
        runner._init_model_weights()
        runner.load_or_resume()
        state = runner.model.state_dict()
        backbone = [name for name in state if name.startswith('backbone.')]
        assert len(backbone) > 50
        assert all(torch.equal(state[name], source[name]) for name in backbone)
        assert any(state[name].shape != source[name].shape for name in state)
        neck = [name for name in state if name.startswith('neck.') and name.endswith('weight')]
        if neck:  # of the whole model all that fits
            same = all(torch.equal(state[name], source[name]) for name in neck)
            assert same == (key == 'load_from')


def test_dumped_config_tests_where_the_data_are(trained):
    kind, config, checkpoint, image = trained
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(
        dict(
            data_root=str(Path(image).parent / 'moved'),
            load_from=str(checkpoint),
            experiment_name=f'{kind}_again',
            work_dir=str(image.parent / 'again'),
        )
    )
    # Of the few images a class may lie in the held-out ones alone, which is remarked.
    assert len([line for line in resolve_custom(cfg) if 'to train on of' not in line]) == 1
    metrics = Runner.from_cfg(cfg).test()
    assert (
        dict(classification='accuracy/top1', detection='coco/bbox_mAP', segmentation='mIoU')[kind]
        in metrics
    )
