"""Own data: what is found in a folder, and what a config becomes."""

import json
import shutil

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from shrunk_configs import CONFIGS, make_ade, make_class_folders, make_coco

from coc_mm.datasets import ClassFolders, ImageMaskFolders, resolve_custom, set_classes
from coc_mm.datasets.folder_datasets import hold_out, list_images

FOLDERS = 'classification/coc-small_1xb64-50e_custom.py'
COCO = 'detection/mask-rcnn_coc-s-c4_fpn_1xb2-12e_custom.py'
BOXES = 'detection/retinanet_coc-s-c4_fpn_1xb2-12e_custom.py'
MASKS = 'segmentation/fpn_coc-s-c4_1xb4-50e-512x512_custom.py'


def resolved(name, root, **options):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict(dict(data_root=str(root), **options))
    lines = resolve_custom(cfg)
    return cfg, '\n'.join(lines)


def dataset(cfg, loader='train_dataloader', **overrides):
    """Build the dataset of a loader without its pipeline."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(dict(cfg[loader].dataset, pipeline=[], **overrides))


def paths(data):
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


def labels(data):
    return [data.get_data_info(i)['gt_label'] for i in range(len(data))]


def test_other_configs_are_left_alone():
    cfg = Config.fromfile(CONFIGS / 'classification' / 'coc-tiny_8xb128_in1k.py')
    before = cfg._cfg_dict.to_dict()
    assert resolve_custom(cfg) == []
    assert cfg._cfg_dict.to_dict() == before


@pytest.mark.parametrize('name', [FOLDERS, COCO, BOXES, MASKS])
def test_refuses_a_root_that_is_none(name, tmp_path):
    with pytest.raises(ValueError, match=r'nowhere is no folder; .*data_root=FOLDER'):
        resolved(name, tmp_path / 'nowhere')


def test_refuses_a_kind_that_is_none(tmp_path):
    with pytest.raises(ValueError, match='custom_data must be one of class_folders, coco'):
        resolved(FOLDERS, tmp_path, custom_data='voc')


class TestClassFolders:
    def test_one_folder_is_split(self, tmp_path):
        make_class_folders(tmp_path, ('owl', 'cat', 'dog'), per_class=5)
        (tmp_path / '.cache').mkdir()
        (tmp_path / 'cat' / 'notes.txt').write_text('')
        cfg, report = resolved(FOLDERS, tmp_path)
        assert '3 classes (cat, dog, owl)' in report
        assert 'no starting weights' in report
        train, val = dataset(cfg), dataset(cfg, 'val_dataloader')
        assert type(train) is ClassFolders
        assert train.metainfo['classes'] == val.metainfo['classes'] == ['cat', 'dog', 'owl']
        assert len(train) == 12
        assert len(val) == 3
        assert labels(val) == [0, 1, 2]
        assert not set(paths(train)) & set(paths(val))
        found = {str(tmp_path / name) for name in list_images(tmp_path)}
        assert set(paths(train)) | set(paths(val)) == found
        assert all(
            f'/{train.metainfo["classes"][k]}/' in p
            for p, k in zip(paths(train), labels(train), strict=True)
        )
        assert paths(dataset(resolved(FOLDERS, tmp_path)[0])) == paths(train)
        assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 3

    @pytest.mark.parametrize('val', ['val', 'validation', 'test'])
    def test_splits_are_kept(self, tmp_path, val):
        make_class_folders(tmp_path / 'train', ('b', 'a'), per_class=3)
        make_class_folders(tmp_path / val, ('b', 'a'), per_class=2)
        cfg, report = resolved(FOLDERS, tmp_path)
        assert f'validation in {val}' in report
        assert len(dataset(cfg)) == 6
        assert labels(dataset(cfg, 'test_dataloader')) == [0, 0, 1, 1]

    def test_a_class_called_train(self, tmp_path):
        make_class_folders(tmp_path, ('bus', 'train'), per_class=3)
        cfg, _ = resolved(FOLDERS, tmp_path)
        assert dataset(cfg).metainfo['classes'] == ['bus', 'train']

    @pytest.mark.parametrize('how', ['file', 'path', 'list'])
    def test_order_of_given_classes(self, tmp_path, how):
        make_class_folders(tmp_path, ('a', 'b', 'c'), per_class=2)
        file = tmp_path / ('classes.txt' if how == 'file' else 'names.txt')
        file.write_text('c\na\n\nb\n')
        options = dict(file={}, path=dict(classes='names.txt'), list=dict(classes=['c', 'a', 'b']))
        cfg, _ = resolved(FOLDERS, tmp_path, **options[how])
        data = dataset(cfg)
        assert data.metainfo['classes'] == ['c', 'a', 'b']
        assert [p.split('/')[-2] for p in paths(data)] == ['c', 'a', 'b']
        assert labels(data) == [0, 1, 2]

    def test_empty_folders_are_no_class(self, tmp_path):
        make_class_folders(tmp_path / 'train', ('a', 'b'))
        (tmp_path / 'train' / 'c').mkdir()
        with pytest.raises(ValueError, match='holds folders that are no class: c'):
            dataset(resolved(FOLDERS, tmp_path)[0])

    def test_messages(self, tmp_path):
        make_class_folders(tmp_path / 'one', ('a',))
        with pytest.raises(ValueError, match='holds 1 folders with images, and a classifier needs'):
            resolved(FOLDERS, tmp_path / 'one')
        make_class_folders(tmp_path / 'two', ('a', 'b'))
        with pytest.raises(ValueError, match="no folder for the class 'x'; it has a, b"):
            resolved(FOLDERS, tmp_path / 'two', classes=['a', 'x'])
        with pytest.raises(ValueError, match='a is listed twice'):
            resolved(FOLDERS, tmp_path / 'two', classes=['a', 'b', 'a'])
        with pytest.raises(ValueError, match=r'classes=names\.txt: no such file'):
            resolved(FOLDERS, tmp_path / 'two', classes='names.txt')


@pytest.mark.parametrize(('count', 'held'), [(1, 0), (2, 1), (3, 1), (5, 1), (10, 2), (101, 20)])
def test_hold_out(count, held):
    names = [str(i) for i in range(count)]
    train, val = (hold_out(names, part, 0.2) for part in ('train', 'val'))
    assert len(val) == held
    assert sorted(train + val) == sorted(names)
    assert hold_out(names, 'all', 0.2) == names


@pytest.mark.parametrize(('part', 'fraction'), [('test', 0.2), ('val', 0), ('val', 1)])
def test_hold_out_refuses(part, fraction):
    with pytest.raises(ValueError, match='must be'):
        hold_out(['a', 'b'], part, fraction)


class TestCoco:
    def test_discovers(self, tmp_path):
        make_coco(tmp_path, categories=('disc', 'ring', 'box'))
        cfg, report = resolved(COCO, tmp_path)
        assert 'annotations/instances_train2017.json (2 images)' in report
        assert '3 classes (disc, ring, box)' in report
        roi_head = cfg.model.roi_head
        assert roi_head.bbox_head.num_classes == roi_head.mask_head.num_classes == 3
        train, val = dataset(cfg), dataset(cfg, 'val_dataloader')
        assert train.metainfo['classes'] == ['disc', 'ring', 'box']
        assert len(train) == len(val) == 2
        assert train.get_data_info(0)['instances'][0]['bbox_label'] == 1
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            assert evaluator.ann_file == str(tmp_path / 'annotations/instances_val2017.json')

    def test_layout_of_an_export(self, tmp_path):
        """``train/_annotations.coco.json`` beside its images, ``valid`` the same."""
        make_coco(tmp_path / 'x')
        for split, ours in (('train2017', 'train'), ('val2017', 'valid')):
            shutil.copytree(tmp_path / 'x' / split, tmp_path / ours)
            file = tmp_path / 'x' / 'annotations' / f'instances_{split}.json'
            shutil.copy(file, tmp_path / ours / '_annotations.coco.json')
        shutil.rmtree(tmp_path / 'x')
        cfg, _ = resolved(COCO, tmp_path)
        assert paths(dataset(cfg))[0] == str(tmp_path / 'train' / '1.jpg')
        assert paths(dataset(cfg, 'val_dataloader'))[0] == str(tmp_path / 'valid' / '1.jpg')

    def test_without_validation(self, tmp_path):
        make_coco(tmp_path)
        (tmp_path / 'annotations' / 'instances_val2017.json').unlink()
        cfg, report = resolved(COCO, tmp_path)
        assert 'so no validation' in report
        for key in ('val_dataloader', 'val_evaluator', 'val_cfg', 'test_dataloader'):
            assert cfg[key] is None
        assert len(dataset(cfg)) == 2

    def test_some_classes(self, tmp_path):
        make_coco(tmp_path, categories=('disc', 'ring', 'box'))
        cfg, _ = resolved(COCO, tmp_path, classes=['box', 'ring'])
        assert cfg.classes == ['ring', 'box']  # mmdet labels in the order of the file
        data = dataset(cfg)
        assert len(data) == 1
        assert data.get_data_info(0)['instances'][0]['bbox_label'] == 0
        with pytest.raises(ValueError, match="no category 'cup'; it has disc, ring, box"):
            resolved(COCO, tmp_path, classes=['cup'])

    def test_boxes_alone(self, tmp_path):
        make_coco(tmp_path, masks=False)
        cfg, _ = resolved(BOXES, tmp_path)
        assert cfg.model.bbox_head.num_classes == 2
        with pytest.raises(
            ValueError, match=r'2 of 2 annotations have no segmentation.*retinanet_'
        ):
            resolved(COCO, tmp_path)

    def edit(self, root, split, change):
        file = root / 'annotations' / f'instances_{split}2017.json'
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    def test_messages(self, tmp_path):
        with pytest.raises(ValueError, match=r'no COCO annotations for training.*train\.json'):
            resolved(COCO, tmp_path)
        make_coco(tmp_path)
        self.edit(tmp_path, 'val', lambda c: c['categories'].reverse())
        with pytest.raises(ValueError, match=r'other categories than .*, or in another order'):
            resolved(COCO, tmp_path)
        self.edit(tmp_path, 'val', lambda c: c['categories'].reverse())
        shutil.move(tmp_path / 'train2017', tmp_path / 'elsewhere')
        with pytest.raises(ValueError, match=r'names the image 1\.jpg, which is in none of'):
            resolved(COCO, tmp_path)
        shutil.move(tmp_path / 'elsewhere', tmp_path / 'train2017')
        self.edit(tmp_path, 'train', lambda c: c['annotations'][0].pop('area'))
        with pytest.raises(
            ValueError, match=r'instances_train2017\.json: annotation 1 has no area'
        ):
            resolved(COCO, tmp_path)
        (tmp_path / 'annotations' / 'instances_train2017.json').write_text('{"images": [')
        with pytest.raises(ValueError, match='is not a COCO annotation file'):
            resolved(COCO, tmp_path)


class TestImageMasks:
    def test_discovers(self, tmp_path):
        make_ade(tmp_path)
        cfg, report = resolved(MASKS, tmp_path)
        assert (
            '4 images with masks for training, 4 for validation; 4 classes (0, 1, 2, 3)' in report
        )
        assert cfg.model.decode_head.num_classes == 4
        data = dataset(cfg)
        assert type(data) is ImageMaskFolders
        assert len(data.metainfo['palette']) == 4
        assert data.get_data_info(2)['seg_map_path'].endswith('annotations/training/2.png')
        assert len(dataset(cfg, 'val_dataloader')) == 4

    def test_a_class_of_validation_alone_is_told(self, tmp_path):
        make_ade(tmp_path)
        file = tmp_path / 'annotations' / 'validation' / '2.png'
        Image.fromarray(np.full((64, 96), 6, np.uint8)).save(file)
        cfg, report = resolved(MASKS, tmp_path)
        assert cfg.model.decode_head.num_classes == 7
        assert 'annotations/validation holds 6, which no mask for training has' in report

    def test_unlabelled_zero(self, tmp_path):
        make_ade(tmp_path)
        cfg, _ = resolved(MASKS, tmp_path, reduce_zero_label=True)
        assert cfg.classes == ['1', '2', '3']
        data = dataset(cfg)
        assert data.get_data_info(0)['reduce_zero_label'] is True
        assert data.metainfo['reduce_zero_label'] is True

    @pytest.mark.parametrize('masks', ['annotations', 'masks', 'labels'])
    def test_one_folder_is_split(self, tmp_path, masks):
        make_ade(tmp_path, splits=('',), masks=masks)
        cfg, report = resolved(MASKS, tmp_path)
        assert 'a fifth of them held out' in report
        train, val = paths(dataset(cfg)), paths(dataset(cfg, 'val_dataloader'))
        assert (len(train), len(val)) == (3, 1)
        assert not set(train) & set(val)

    def test_splits_outside(self, tmp_path):
        """``train/images`` and ``train/masks``, images of several kinds."""
        for split in ('train', 'val'):
            make_ade(tmp_path / split, splits=('',), masks='masks')
        image = tmp_path / 'train' / 'images' / '0.jpg'
        Image.open(image).save(image.with_suffix('.PNG'), format='PNG')
        image.unlink()
        cfg, _ = resolved(MASKS, tmp_path)
        assert paths(dataset(cfg))[0].endswith('train/images/0.PNG')
        assert len(dataset(cfg)) == len(dataset(cfg, 'val_dataloader')) == 4

    def test_names_from_a_file(self, tmp_path):
        make_ade(tmp_path)
        (tmp_path / 'classes.txt').write_text('sky\nsea\nsand\nsun\n')
        cfg, _ = resolved(MASKS, tmp_path)
        assert dataset(cfg).metainfo['classes'] == ['sky', 'sea', 'sand', 'sun']
        (tmp_path / 'classes.txt').write_text('sky\nsea\nsun\n')
        with pytest.raises(
            ValueError, match=r'value 3, but there are 3 classes.*reduce_zero_label'
        ):
            resolved(MASKS, tmp_path)
        cfg, _ = resolved(MASKS, tmp_path, reduce_zero_label=True)
        assert cfg.model.decode_head.num_classes == 3

    @pytest.mark.parametrize('mode', ['L', 'P', '1'])
    def test_kinds_of_masks(self, tmp_path, mode):
        make_ade(tmp_path, splits=('train',))
        for file in (tmp_path / 'annotations' / 'train').iterdir():
            values = (np.asarray(Image.open(file)) > 0).astype(np.uint8)
            mask = Image.fromarray(values, 'L')
            if mode == 'P':
                mask = Image.fromarray(values, 'P')
                mask.putpalette([0, 0, 0, 255, 0, 0])
            elif mode == '1':
                mask = Image.fromarray(values.astype(bool))
            mask.save(file)
        cfg, _ = resolved(MASKS, tmp_path)
        assert cfg.classes == ['0', '1']

    def test_messages(self, tmp_path):
        with pytest.raises(ValueError, match='no images with masks: images/train and annotations'):
            resolved(MASKS, tmp_path)
        make_ade(tmp_path)
        masks = tmp_path / 'annotations' / 'training'
        (masks / '3.png').rename(tmp_path / '3.png')
        with pytest.raises(
            ValueError, match=r'1 of 4 images .* have no mask .*3\.jpg needs 3\.png'
        ):
            resolved(MASKS, tmp_path)
        Image.new('RGB', (96, 64)).save(masks / '3.png')
        with pytest.raises(ValueError, match=r'mask .*3\.png has several channels \(RGB\)'):
            resolved(MASKS, tmp_path)
        for file in masks.iterdir():
            Image.fromarray(np.array([[0, 255]], np.uint8)).save(file)
        with pytest.raises(ValueError, match=r'hold nothing but \[0\].*instead of 255'):
            resolved(MASKS, tmp_path)


@pytest.mark.parametrize('name', [FOLDERS, COCO, BOXES, MASKS])
def test_a_second_call_changes_nothing(name, tiny_data):
    root = {FOLDERS: 'folders', MASKS: 'ade'}.get(name, 'objects')
    cfg, _ = resolved(name, tiny_data / root)
    before = cfg._cfg_dict.to_dict()
    resolve_custom(cfg)
    assert cfg._cfg_dict.to_dict() == before
    # Nor does reading what a run writes down.
    dumped = Config.fromstring(cfg.pretty_text, '.py')
    resolve_custom(dumped)
    assert dumped._cfg_dict.to_dict() == before


def test_starting_weights(tiny_data):
    cfg, report = resolved(COCO, tiny_data / 'objects', pretrained='some.pth')
    expected = dict(type='Pretrained', checkpoint='some.pth', prefix='backbone.')
    assert cfg.model.backbone.init_cfg == expected
    assert 'no starting weights' not in report
    cfg, report = resolved(COCO, tiny_data / 'objects', load_from='some.pth')
    assert cfg.model.backbone.init_cfg is None
    assert 'no starting weights' not in report


@pytest.mark.parametrize('name', [FOLDERS, COCO, BOXES, MASKS])
def test_no_validation_by_flag(name, tiny_data):
    root = {FOLDERS: 'folders', MASKS: 'ade'}.get(name, 'objects')
    off = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg, _ = resolved(name, tiny_data / root, **off)
    assert cfg.val_dataloader is None
    assert str(tiny_data / root) in cfg.test_dataloader.dataset.data_root


def test_set_classes():
    cfg = Config.fromfile(CONFIGS / COCO)
    set_classes(cfg, ('a', 'b', 'c'))
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.model.roi_head.mask_head.num_classes == 3
