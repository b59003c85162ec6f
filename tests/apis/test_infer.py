"""Loading a model and predicting, by our functions and by the libraries' own."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_projects import SCOPES

from coc_mm.apis.infer import TASKS, find_device, load_model
from coc_mm.apis.predictions import predict_each
from coc_mm.apis.sources import Picture
from coc_mm.errors import UserError


def task_of(project, config=None, **settings):
    config = config or Config.fromfile(project.config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = load_model(config, str(project.checkpoint))
        return TASKS[config.default_scope](model, **settings)


def test_the_libraries_own_functions(projects, photo):
    """They take our files and our models."""
    from mmdet.apis import inference_detector, init_detector
    from mmpretrain import ImageClassificationInferencer
    from mmseg.apis import inference_model, init_model

    files = {scope: (str(p.config), str(p.checkpoint)) for scope, p in projects.items()}
    config, weights = files['mmpretrain']
    inferencer = ImageClassificationInferencer(
        config, pretrained=weights, device='cpu', classes=['a', 'b']
    )
    (result,) = inferencer(str(photo))
    assert result['pred_scores'].shape == (2,)
    assert result['pred_scores'].sum() == pytest.approx(1, abs=1e-5)
    assert result['pred_class'] == ['a', 'b'][result['pred_scores'].argmax()]
    for model in (init_detector(*files['mmdet'], device='cpu'), task_of(projects['mmdet']).model):
        found = inference_detector(model, str(photo)).pred_instances
        assert len(found) == 5  # all that max_per_img lets through, untrained as it is
        assert found.masks.shape == (5, 213, 320)
        assert (found.bboxes >= 0).all()
        assert (found.bboxes <= torch.tensor([320, 213, 320, 213])).all()
    for model in (init_model(*files['mmseg'], device='cpu'), task_of(projects['mmseg']).model):
        result = inference_model(model, str(photo))
        assert result.pred_sem_seg.data.shape == (1, 213, 320)
        assert result.seg_logits.data.shape == (3, 213, 320)
        assert torch.isfinite(result.seg_logits.data).all()


def test_class_names_come_from_the_dataset_or_are_numbers(projects, photo):
    project = projects['mmdet']
    config = Config.fromfile(project.config)
    assert load_model(config, None).dataset_meta['classes'] == ('disc', 'box')
    config.test_dataloader.dataset.pop('metainfo')
    config.test_dataloader.dataset.type = 'BaseDetDataset'
    task = task_of(project, config, score_thr=0.0)
    (found,) = predict_each(task, [Picture('numbered', str(photo))])
    table = found.prediction.to_table('numbered')
    assert set(table.columns[0].cells) <= {'0', '1'}
    assert table.row_count == 5


def test_names_and_colors_of_a_checkpoint_come_first(projects, tmp_path):
    project = projects['mmseg']
    content = torch.load(project.checkpoint)
    names = dict(classes=('x', 'y', 'z'), palette=[[1, 2, 3]] * 3)
    old = {key.upper(): value for key, value in names.items()}  # mmseg 0.x
    for content['meta'] in (dict(dataset_meta=names), old):
        torch.save(content, tmp_path / 'named.pth')
        model = load_model(Config.fromfile(project.config), str(tmp_path / 'named.pth'))
        assert model.dataset_meta['classes'] == ['x', 'y', 'z']
        assert model.dataset_meta['palette'] == names['palette']


def test_refusals(projects):
    with pytest.raises(UserError, match="not for default_scope 'coc_mm'"):
        load_model(Config(dict(model=dict(), default_scope='coc_mm')), None)
    config = Config.fromfile(projects['mmdet'].config)
    config.pop('test_dataloader')
    config.pop('test_pipeline')
    with pytest.raises(UserError, match='neither test_pipeline nor a test_dataloader'):
        task_of(projects['mmdet'], config)
    with pytest.raises(UserError, match='--device cuda:99'):
        find_device('cuda:99')


def turned_photo(path):
    """Red, white and blue; EXIF says to turn it."""
    pixels = np.full((64, 96, 3), 240, np.uint8)
    pixels[:, :32], pixels[40:, 32:] = (220, 20, 30), (20, 30, 220)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return str(path)


LOADERS = {
    'turned': ('photo.jpg', dict(), (96, 64)),
    'as stored': ('photo.jpg', dict(color_type='color_ignore_orientation'), (64, 96)),
    'pillow': ('photo.webp', dict(imdecode_backend='pillow', to_float32=True), (96, 64)),
}


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize('loader', LOADERS)
def test_images_are_read_and_drawn_as_the_config_loads_them(projects, tmp_path, scope, loader):
    name, setting, size = LOADERS[loader]
    path = turned_photo(tmp_path / name)
    config = Config.fromfile(projects[scope].config)
    dataset = config.test_dataloader.dataset
    dataset.pipeline[0].update(setting)
    config.test_dataloader.dataset = dict(type='RepeatDataset', times=1, dataset=dataset)
    task = task_of(projects[scope], config, score_thr=0.0)
    data, picture = task.read(path)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    sample = task.predict(data)
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad():
        steps = [step for step in dataset.pipeline if step.type != 'LoadAnnotations']
        item = Compose(steps)(dict(img_path=path, img_id=0))
        (tested,) = task.model.test_step({key: [value] for key, value in item.items()})
    for field in ('pred_score', 'pred_instances', 'seg_logits'):
        if field in tested:
            ours, theirs = sample.get(field), tested.get(field)
            ours, theirs = (getattr(x, 'bboxes', getattr(x, 'data', x)) for x in (ours, theirs))
            torch.testing.assert_close(ours, theirs)
    task.draw(picture, sample, str(tmp_path / 'drawn.png'))
    if scope != 'mmpretrain':
        with Image.open(tmp_path / 'drawn.png') as drawn:
            assert drawn.size == size[::-1]


def test_a_classifier_of_one_channel(projects, photo, tmp_path):
    config = Config.fromfile(projects['mmpretrain'].config)
    config.model.backbone.in_channels = 1
    config.model.data_preprocessor.update(mean=[127], std=[64], to_rgb=False)
    config.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    task = TASKS['mmpretrain'](load_model(config, None))
    data, picture = task.read(str(photo))
    assert (picture[..., :1] == picture).all()
    sample = task.predict(data)
    assert sample.pred_score.sum() == pytest.approx(1, abs=1e-5)
    task.draw(picture, sample, str(tmp_path / 'drawn.png'))


@pytest.mark.parametrize(('bands', 'backend'), [(5, 'tifffile'), (1, 'cv2')])
def test_a_segmentor_of_any_bands(projects, tmp_path, bands, backend):
    tifffile = pytest.importorskip('tifffile')
    pixels = np.random.default_rng(0).random((40, 50, bands), np.float32)
    tifffile.imwrite(tmp_path / 'bands.tif', pixels.squeeze(), photometric='minisblack')
    config = Config.fromfile(projects['mmseg'].config)
    config.model.backbone.in_channels = bands
    config.model.data_preprocessor.update(mean=None, std=None)
    config.test_dataloader.dataset.pipeline[0].update(
        color_type='unchanged', imdecode_backend=backend
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        task = TASKS['mmseg'](load_model(config, None))
        data, picture = task.read(str(tmp_path / 'bands.tif'))
        sample = task.predict(data)
    assert (picture.shape, picture.min(), picture.max()) == ((40, 50, 3), 0, 255)
    assert sample.pred_sem_seg.data.shape == (1, 40, 50)
    task.draw(picture, sample, str(tmp_path / 'drawn.png'))
