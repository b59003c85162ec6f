"""Images with masks: what is found, and what a config becomes."""

import shutil

import numpy as np
import pytest
from own_data import MASKS, dataset, paths, resolved
from PIL import Image
from shrunk_configs import make_ade

from coc_mm.datasets import ImageMaskFolders


def refused(says, name, root, **options):
    with pytest.raises(ValueError, match=says):
        resolved(name, root, **options)


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

    def test_masks_of_fewer_classes_and_images(self, tmp_path):
        make_ade(tmp_path)
        (tmp_path / 'classes.txt').write_text('sky\nsea\nsand\nsun\nsnow\n')
        _, report = resolved(MASKS, tmp_path)
        assert 'nothing to train on of sea, sand, snow.' in report
        cfg, report = resolved(MASKS, tmp_path, **{'train_dataloader.dataset.indices': 2})
        assert len(dataset(cfg)) == 2
        assert '2 of 4 images with masks for training, 4 for validation' in report

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
        refused(r'value 3, but there are 3 classes.*reduce_zero_label', MASKS, tmp_path)
        cfg, _ = resolved(MASKS, tmp_path, reduce_zero_label=True)
        assert cfg.model.decode_head.num_classes == 3

    def test_messages(self, tmp_path):
        refused('no images with masks: images/train and annotations', MASKS, tmp_path)
        make_ade(tmp_path)
        masks = tmp_path / 'annotations' / 'training'
        (masks / '3.png').rename(tmp_path / '3.png')
        refused(r'1 of 4 images .* have no mask .*3\.jpg needs 3\.png', MASKS, tmp_path)
        Image.new('RGB', (96, 64)).save(masks / '3.png')
        refused(r'mask .*3\.png has several channels \(RGB\)', MASKS, tmp_path)
        for file in masks.iterdir():
            Image.fromarray(np.zeros((64, 96), np.uint8)).save(file)
        shutil.rmtree(tmp_path / 'annotations' / 'validation')
        refused(r'hold nothing but \[0\].*instead of 255', MASKS, tmp_path)
