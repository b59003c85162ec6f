"""Masks in the layouts of tools, and of colors or few values."""

import numpy as np
import pytest
from exported_data import SIZE, image, labelme, text, yolo
from own_data import MASKS, dataset, resolved
from PIL import Image

COLORS = {'sky': (250, 50, 83), 'sea': (0, 128, 255)}


def mask(path, values, mode=None):
    """Three bands of values or colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.repeat(np.asarray(values, np.uint8), SIZE[1] // len(values), axis=0)
    rows = np.repeat(bands[:, None], SIZE[0], axis=1)
    picture = Image.fromarray(rows)
    if mode == 'P':
        picture = Image.fromarray(rows, 'P')
        picture.putpalette([0, 0, 0, *COLORS['sky'], *COLORS['sea']])
    picture.save(path)


def pair(root, image_name, mask_name, values, mode=None):
    for split in ('train', 'val'):
        for k in range(2):
            image(root / image_name.format(split, k))
            mask(root / mask_name.format(split, k), values, mode)


def roboflow(root):
    pair(root, '{}/{}.jpg', '{}/{}_mask.png', [0, 1, 2])
    text(root / 'train/_classes.csv', 'Pixel Value, Class\n0, background\n1, sky\n2, sea\n')


def voc(root, mode=None):
    values = [0, 1, 2] if mode else [(0, 0, 0), *COLORS.values()]
    pair(root, 'JPEGImages/{}{}.jpg', 'SegmentationClass/{}{}.png', values, mode)
    text(root / 'ImageSets/Segmentation/train.txt', 'train0\ntrain1\n')
    text(root / 'ImageSets/Segmentation/val.txt', 'val0\nval1\n')
    lines = [f'{name}:{",".join(map(str, color))}::' for name, color in COLORS.items()]
    rows = ['# label:color_rgb:parts:actions', *lines]
    text(root / 'labelmap.txt', '\n'.join(rows))


def labelme2voc(root):
    voc(root, 'P')
    (root / 'labelmap.txt').unlink()
    text(root / 'class_names.txt', '__ignore__\n_background_\nsky\nsea\n')


def segnet(root):
    pair(root, '{}/{}.png', '{}annot/{}.png', [0, 1, 2])


def colors(root):
    pair(root, 'images/{}/{}.jpg', 'masks/{}/{}.png', [(0, 0, 0), *COLORS.values()])
    rows = [f'{name},{",".join(map(str, color))}' for name, color in COLORS.items()]
    text(root / 'class_dict.csv', '\n'.join(['name,r,g,b', 'land,0,0,0', *rows]))


def camvid(root):
    """No class is black, so there is no background."""
    pair(root, '{}/{}.png', '{}_labels/{}_L.png', [*COLORS.values()])
    rows = [f'{name},{",".join(map(str, color))}' for name, color in COLORS.items()]
    text(root / 'class_dict.csv', '\n'.join(['name,r,g,b', *rows]))


def of_values(*values, rgb=False):
    shown = [(v,) * 3 for v in values] if rgb else values
    return lambda root: pair(root, 'images/{}/{}.jpg', 'masks/{}/{}.png', shown)


OURS = ['background', 'sky', 'sea']
LAYOUTS = {
    'Roboflow': (roboflow, 'Roboflow masks', OURS),
    'VOC, of CVAT': (voc, 'VOC masks', OURS),
    'VOC, palette and table': (lambda root: voc(root, 'P'), 'VOC masks', OURS),
    'labelme2voc': (labelme2voc, 'VOC masks', ['_background_', 'sky', 'sea']),
    'SegNet': (segnet, 'SegNet', ['0', '1', '2']),
    'CamVid, suffixes': (camvid, 'SegNet', ['sky', 'sea']),
    'image and label, suffixes': (
        lambda root: pair(root, '{}/image/{}.jpg', '{}/label/{}_mask.png', [0, 1, 2]),
        *('images and masks', ['0', '1', '2']),
    ),
    'a table of colors': (colors, 'images and masks', ['land', 'sky', 'sea']),
    '0, 255': (of_values(0, 255, 0), 'images and masks', ['background', 'foreground']),
    '0, 255 as RGB': (
        of_values(0, 255, rgb=True),
        'images and masks',
        ['background', 'foreground'],
    ),
    'sparse': (of_values(0, 127, 254), 'images and masks', ['0', '127', '254']),
    'sparse, unlabeled': (of_values(0, 100, 255), 'images and masks', ['0', '100']),
}


@pytest.mark.parametrize('kind', LAYOUTS)
def test_layouts(tmp_path, kind):
    write, name, classes = LAYOUTS[kind]
    write(tmp_path)
    cfg, report = resolved(MASKS, tmp_path)
    assert f'{name}: 2 images with masks for training, 2 for validation' in report
    assert cfg.classes == classes
    for loader in ('train_dataloader', 'val_dataloader'):
        data = dataset(cfg, loader)
        assert len(data) == 2
        for i in range(2):
            values = np.asarray(Image.open(data.get_data_info(i)['seg_map_path']))
            assert set(np.unique(values)) - {255} == set(range(len(classes)))
            assert values.shape == SIZE[::-1]
            assert values[0, 0] == 0


def test_objects_are_painted(tmp_path):
    yolo(tmp_path / 'a', polygon=True)
    cfg, report = resolved(MASKS, tmp_path / 'a')
    assert 'yolo, objects painted into masks: 2 images' in report
    assert cfg.classes == ['background', 'cat', 'dog']
    painted = np.asarray(Image.open(dataset(cfg).get_data_info(0)['seg_map_path']))
    assert (painted[0, 0], painted[20, 35]) == (0, 2)
    labelme(tmp_path / 'b')
    assert resolved(MASKS, tmp_path / 'b')[0].classes == ['background', 'bit', 'cat', 'dog']


def test_colors_without_a_class_are_named(tmp_path):
    colors(tmp_path)
    mask(tmp_path / 'masks/train/0.png', [(9, 9, 9)])
    with pytest.raises(ValueError, match=r'0\.png holds 9,9,9, which is no class of the table'):
        resolved(MASKS, tmp_path)
    (tmp_path / 'class_dict.csv').unlink()
    with pytest.raises(ValueError, match=r'with the colors 0,0,0, .* add class_dict\.csv'):
        resolved(MASKS, tmp_path)


def test_given_classes_make_indices_of_high_values(tmp_path):
    of_values(0, 20, 30)(tmp_path)
    cfg, report = resolved(MASKS, tmp_path, classes=[str(i) for i in range(31)])
    assert cfg.model.decode_head.num_classes == 31
    assert 'read as' not in report


def test_colors_of_a_list_that_is_named(tmp_path):
    colors(tmp_path)
    (tmp_path / 'class_dict.csv').rename(tmp_path / 'names.csv')
    cfg, _ = resolved(MASKS, tmp_path, classes='names.csv')
    assert cfg.classes == ['land', 'sky', 'sea']
    painted = np.asarray(Image.open(dataset(cfg).get_data_info(0)['seg_map_path']))
    assert sorted(np.unique(painted)) == [0, 1, 2]


def test_masks_saved_as_jpeg_are_refused(tmp_path):
    pair(tmp_path, 'images/{}/{}.png', 'masks/{}/{}.jpg', [0, 1, 2])
    with pytest.raises(ValueError, match=r'e\.g\. masks/.*\.jpg, are JPEG files, .* as PNG'):
        resolved(MASKS, tmp_path)
