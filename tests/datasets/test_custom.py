"""Own data: what is found in a folder, and what a config becomes."""

import json
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from own_data import (
    BOXES,
    COCO,
    FOLDERS,
    MASKS,
    build,
    change_entries,
    dataset,
    labels,
    paths,
    resolved,
    write_coco,
)
from PIL import Image
from shrunk_configs import CONFIGS, make_ade, make_class_folders, make_coco

from coc_mm.datasets import resolve_custom
from coc_mm.utils.images import list_images


@pytest.fixture(params=[FOLDERS, COCO, BOXES, MASKS])
def tiny_data(request, tmp_path):
    """A config's name and a folder with data for it."""
    make = {FOLDERS: make_class_folders, MASKS: make_ade}.get(request.param, make_coco)
    make(tmp_path)
    return request.param, tmp_path


def test_other_configs_are_left_alone():
    cfg = Config.fromfile(CONFIGS / 'classification' / 'coc-tiny_8xb128_in1k.py')
    before = cfg._cfg_dict.to_dict()
    assert resolve_custom(cfg) == []
    assert cfg._cfg_dict.to_dict() == before


def refused(says, name, root, **options):
    with pytest.raises(ValueError, match=says):
        resolved(name, root, **options)


def test_refuses_a_root_and_a_kind_that_are_none(tmp_path):
    refused(r'nowhere is no folder; .*data_root=FOLDER', FOLDERS, tmp_path / 'nowhere')
    refused('must be one of class_folders, coco', FOLDERS, tmp_path, custom_data='voc')


class TestClassFolders:
    def test_one_folder_is_split(self, tmp_path):
        make_class_folders(tmp_path, ('owl', 'cat', 'dog'), per_class=5)
        (tmp_path / '.cache').mkdir()
        (tmp_path / 'cat' / 'notes.txt').write_text('')
        cfg, report = resolved(FOLDERS, tmp_path)
        assert '3 classes (cat, dog, owl)' in report
        assert 'no starting weights' in report
        train, val = dataset(cfg), dataset(cfg, 'val_dataloader')
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

    @pytest.mark.parametrize(('train', 'val'), [('train', 'test'), ('TRAIN', 'Val')])
    def test_splits_are_kept(self, tmp_path, train, val):
        make_class_folders(tmp_path / train, ('b', 'a'), per_class=3)
        make_class_folders(tmp_path / val, ('b', 'a'), per_class=2)
        cfg, report = resolved(FOLDERS, tmp_path)
        assert f'6 training images in {train}, validation in {val}; 2 classes (a, b)' in report
        assert len(dataset(cfg)) == 6
        assert labels(dataset(cfg, 'test_dataloader')) == [0, 0, 1, 1]

    def test_validation_beside_the_classes(self, tmp_path):
        make_class_folders(tmp_path, ('a', 'b'), per_class=3)
        make_class_folders(tmp_path / 'Val', ('a', 'b'), per_class=1)
        cfg, _ = resolved(FOLDERS, tmp_path)
        assert cfg.classes == ['a', 'b']
        assert (len(dataset(cfg)), len(dataset(cfg, 'val_dataloader'))) == (6, 2)
        make_class_folders(tmp_path / 'x', ('bus', 'train'), per_class=3)  # a class, no split
        cfg, _ = resolved(FOLDERS, tmp_path / 'x')
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

    def test_lines_that_name_folder_and_class(self, tmp_path):
        make_class_folders(tmp_path, ('n01440764', 'n01443537'), per_class=2)
        (tmp_path / 'classes.txt').write_text('n01443537 goldfish\nn01440764 tench, Tinca\n')
        cfg, _ = resolved(FOLDERS, tmp_path)
        data = dataset(cfg)
        assert data.metainfo['classes'] == ['goldfish', 'tench, Tinca']
        assert ['n01443537' in path for path in paths(data)] == [True, False]

    def test_what_is_left_out_is_said(self, tmp_path):
        make_class_folders(tmp_path / 'train', ('a', 'b'), per_class=2)
        folder = tmp_path / 'train'
        for name in ('bird', 'c', '__MACOSX', '_x', '.cache'):
            (folder / name).mkdir()
        for name in ('bird/1.HEIC', '__MACOSX/._0.jpg', 'a/notes.txt', 'a/.hidden.jpg'):
            (folder / name).write_bytes(b'x')
        cfg, report = resolved(FOLDERS, tmp_path)
        assert f'{folder}: left out: folders without images: bird, c; files that' in report
        assert '.txt (1), .heic (1).' in report
        assert len(dataset(cfg)) == 2
        assert dataset(cfg).get_cat_ids(1) == [1]

    def test_all_that_can_be_read_is_used(self, tmp_path):
        make_class_folders(tmp_path / 'x', ('a', 'b'), per_class=5)
        for suffix in ('.jfif', '.JPG'):
            shutil.copy(tmp_path / 'x' / 'a' / 'a0.jpg', tmp_path / 'x' / 'a' / f'more{suffix}')
        make_class_folders(tmp_path, ('elsewhere',), per_class=3)
        (tmp_path / 'x' / 'b' / 'disk').symlink_to(tmp_path / 'elsewhere')
        (tmp_path / 'x' / 'b' / 'loop').symlink_to(tmp_path / 'x' / 'b')
        cfg, report = resolved(FOLDERS, tmp_path / 'x')
        assert 'left out' not in report
        assert len(dataset(cfg)) + len(dataset(cfg, 'val_dataloader')) == 7 + 8

    @pytest.mark.parametrize(
        ('train', 'val', 'other'),
        [
            ('Training_Set', 'Test_Set', None),
            ('training-images', 'dev', 'test'),
            ('', 'val', 'test'),
            ('train', 'val2017', 'Testing'),
        ],
    )
    def test_other_spellings(self, tmp_path, train, val, other):
        for split in (train, val, *([other] if other else [])):
            make_class_folders(tmp_path / split, ('a', 'b'), per_class=3 if split == train else 2)
        cfg, report = resolved(FOLDERS, tmp_path)
        assert cfg.classes == ['a', 'b']
        assert (len(dataset(cfg)), len(dataset(cfg, 'val_dataloader'))) == (6, 4)
        assert (f'not used: {other}.' in report) == bool(other)

    def test_unknown_splits_are_no_classes(self, tmp_path):
        for split in ('learn', 'check'):
            make_class_folders(tmp_path / split, ('a', 'b'))
        says = 'check, learn all hold the folders a, b, so they look like splits'
        refused(says, FOLDERS, tmp_path)

    def test_counts_are_of_what_is_trained(self, tmp_path):
        make_class_folders(tmp_path, ('a', 'b'), per_class=10)
        for options, counts, says in (
            ({'train_dataloader.dataset.indices': 3}, (3, 4), 'nothing to train on of b.'),
            ({'train_dataloader.dataset.indices': -9}, (9, 4), '9 training images'),
            ({'val_dataloader.dataset.val_fraction': 0.4}, (12, 8), '0.4 of each class held out'),
        ):
            cfg, report = resolved(FOLDERS, tmp_path, **options)
            assert (len(dataset(cfg)), len(dataset(cfg, 'val_dataloader'))) == counts
            assert not set(paths(dataset(cfg))) & set(paths(dataset(cfg, 'val_dataloader')))
            assert f'{counts[0]} training images' in report
            assert says in report
        options = {'train_dataloader.dataset.indices': []}
        refused('indices of train_dataloader.dataset leave no image', FOLDERS, tmp_path, **options)

    def test_messages(self, tmp_path):
        make_class_folders(tmp_path / 'one', ('a',))
        says = 'holds the folders a with images, and a classifier needs at least two classes'
        refused(says, FOLDERS, tmp_path / 'one')
        make_class_folders(tmp_path / 'seg' / 'train', ('images', 'masks'))
        says = 'holds the folders images, masks with images, .* configs of detection and seg'
        refused(says, FOLDERS, tmp_path / 'seg')
        make_class_folders(tmp_path / 'two', ('a', 'b'))
        for classes, says in (
            (['a', 'x'], "no folder for the class 'x'; it has a, b"),
            (['a', 'b', 'a'], 'a is listed twice'),
            ('names.txt', r'classes=names\.txt: no such file'),
            (3, 'classes=3: list names'),
        ):
            refused(says, FOLDERS, tmp_path / 'two', classes=classes)
        make_class_folders(tmp_path / 'three', ('a', 'b', 'c'))
        says = 'holds folders that are no class: c'
        refused(says, FOLDERS, tmp_path / 'three', classes=['a', 'b'])
        make_class_folders(tmp_path / 'other' / 'train', ('a', 'b'))
        make_class_folders(tmp_path / 'other' / 'val', ('x',))
        refused('val holds no images of the classes a, b', FOLDERS, tmp_path / 'other')
        make_class_folders(tmp_path / 'few', ('a', 'b'), per_class=1)
        refused('too few images of every class to hold some out', FOLDERS, tmp_path / 'few')


def class_table(root, rows, split='train', names=('cat', 'dog')):
    (root / split).mkdir(parents=True, exist_ok=True)
    for name, *_ in rows:
        Image.new('RGB', (32, 32), 'red' if split == 'train' else 'blue').save(root / split / name)
    lines = [' ,'.join(map(str, row)) for row in (('filename', *names), *rows)]
    (root / split / '_classes.csv').write_text('\n'.join(lines))


class TestClassTables:
    """Roboflow's ``_classes.csv``: 0 and 1 for each class."""

    def test_one_class_of_each_image(self, tmp_path):
        class_table(tmp_path, [('1.jpg', 0, 1), ('2.jpg', 1, 0)])
        class_table(tmp_path, [('3.jpg', 1, 0)], 'valid')
        cfg, _ = resolved(FOLDERS, tmp_path)
        assert cfg.classes == ['cat', 'dog']
        assert [Path(path).name for path in paths(dataset(cfg))] == ['2.jpg', '1.jpg']
        assert labels(dataset(cfg)) == [0, 1]
        assert paths(dataset(cfg, 'val_dataloader')) == [str(tmp_path / 'valid' / '3.jpg')]

    @pytest.mark.parametrize('row', [(1, 1), (0, 0)])
    def test_several_or_none_are_refused(self, tmp_path, row):
        class_table(tmp_path, [('1.jpg', 0, 1), ('2.jpg', *row)])
        says = rf'_classes\.csv, line 3: 2\.jpg has {sum(row)} classes.*MultiLabelClsHead'
        refused(says, FOLDERS, tmp_path)


def test_copies_in_validation_are_counted(tmp_path):
    for i, split in enumerate(('train', 'val')):
        for j, name in enumerate('ab'):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new('L', (40, 40), 100 * i + 50 * j).save(tmp_path / split / name / '0.png')
    assert 'are copies' not in resolved(FOLDERS, tmp_path)[1]
    shutil.copy(tmp_path / 'train' / 'a' / '0.png', tmp_path / 'val' / 'b' / '1.png')
    for split in ('train', 'val'):
        Image.new('L', (40, 40), len(split)).save(tmp_path / split / 'a' / f'x.rf.{split}.png')
    assert '2 of 4 images for validation are copies of images' in resolved(FOLDERS, tmp_path)[1]


@pytest.mark.parametrize(
    'text',
    ['name,r,g,b\ncat,1,2,3\ndog,4,5,6\n', 'id,Class Name\n0,cat\n1,dog\n', 'cat,9\ndog,8\n'],
)
def test_classes_of_a_csv(tmp_path, text):
    make_class_folders(tmp_path, ('cat', 'dog'), per_class=2)
    (tmp_path / 'list.csv').write_text(text)
    assert resolved(FOLDERS, tmp_path, classes='list.csv')[0].classes == ['cat', 'dog']


class TestCoco:
    def test_discovers(self, tmp_path):
        make_coco(tmp_path, categories=('disc', 'ring', 'box'))
        cfg, report = resolved(COCO, tmp_path)
        assert 'annotations/instances_train2017.json (2 images, 2 annotations)' in report
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
        assert '(1 images, 1 annotations), held out (1 images, 1 annotations)' in report
        train, val = paths(dataset(cfg)), paths(dataset(cfg, 'val_dataloader'))
        assert len(train) == len(val) == 1
        assert train != val
        assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file

    def test_some_classes(self, tmp_path):
        make_coco(tmp_path, categories=('disc', 'ring', 'box'))
        cfg, _ = resolved(COCO, tmp_path, classes=['box', 'ring'])
        assert cfg.classes == ['ring', 'box']  # mmdet labels in the order of the file
        data = dataset(cfg)
        assert len(data) == 1
        assert data.get_data_info(0)['instances'][0]['bbox_label'] == 0
        refused("no category 'cup'; it has disc, ring, box", COCO, tmp_path, classes=['cup'])

    def test_boxes_alone(self, tmp_path):
        make_coco(tmp_path, masks=False)
        cfg, _ = resolved(BOXES, tmp_path)
        assert cfg.model.bbox_head.num_classes == 2
        refused(r'2 of 2 annotations have no segmentation.*retinanet_', COCO, tmp_path)

    @pytest.mark.parametrize('wrap', [lambda x: x, lambda x: [x], lambda x: dict(metrics=[x])])
    @pytest.mark.parametrize(
        ('kind', 'keys'),
        [
            ('CocoMetric', {'type', 'metric', 'format_only', 'ann_file'}),
            ('LVISMetric', {'type', 'metric', 'format_only', 'ann_file'}),
            ('VOCMetric', {'type'}),
        ],
    )
    def test_evaluators(self, tmp_path, wrap, kind, keys):
        make_coco(tmp_path)
        metric = dict(type=kind, metric='bbox', ann_file='of/the/base.json', format_only=False)
        cfg = Config.fromfile(CONFIGS / BOXES)
        cfg.data_root, cfg.val_evaluator = str(tmp_path), wrap(metric)
        resolve_custom(cfg)
        found = cfg.val_evaluator
        found = found[0] if isinstance(found, list) else found.get('metrics', [found])[0]
        assert set(found) == keys
        assert found.get('ann_file', 'val2017').count('val2017') == 1

    def test_messages(self, tmp_path):
        refused(r'no COCO annotations for training.*train\.json', COCO, tmp_path)
        make_coco(tmp_path)
        file = tmp_path / 'annotations' / 'instances_val2017.json'
        content = json.loads(file.read_text())
        content['categories'].reverse()
        file.write_text(json.dumps(content))
        refused(r'other categories than .*, or in another order', COCO, tmp_path)
        shutil.rmtree(tmp_path / 'train2017')
        refused(r'names the image 1\.jpg, which is in none of', COCO, tmp_path)

    def test_settings_of_the_dataset_are_kept(self, tmp_path):
        def half(content):
            content['annotations'] = content['annotations'][:4]

        write_coco(tmp_path, half)
        for options, count, says in (
            ({}, 2, '2 images without boxes'),
            (
                {'train_dataloader.dataset.filter_cfg.filter_empty_gt': False},
                4,
                '(4 images, 4 annotations)',
            ),
            (
                {'train_dataloader.dataset.indices': 1},
                1,
                'train.json (1 of 4 images, 4 annotations)',
            ),
        ):
            cfg, report = resolved(BOXES, tmp_path, **options)
            assert len(dataset(cfg)) == count
            assert says in report

    def test_a_class_without_boxes_is_named(self, tmp_path):
        write_coco(tmp_path, change_entries(category_id=1))
        assert 'train.json: no box to train on of b;' in resolved(BOXES, tmp_path)[1]

    def test_one_normalized_copy_for_all(self, tmp_path):
        write_coco(tmp_path, change_entries(id=lambda entry: entry['id'] - 1))
        before = (tmp_path / 'annotations' / 'val.json').read_bytes()
        cfg, report = resolved(BOXES, tmp_path)
        assert (tmp_path / 'annotations' / 'val.json').read_bytes() == before
        copy = cfg.val_evaluator.ann_file
        assert copy == cfg.val_dataloader.dataset.ann_file == cfg.test_evaluator.ann_file
        assert min(entry['id'] for entry in json.loads(Path(copy).read_text())['annotations']) == 1
        assert 'val.json: annotation ids are missing, text, twice or below 1' in report
        assert cfg.train_dataloader.dataset.ann_file != copy


class TestWrappers:
    """Datasets inside of others are completed where they are."""

    def wrapped(self, name, root, loader='train_dataloader', **wrapper):
        cfg = Config.fromfile(CONFIGS / name)
        cfg.data_root = str(root)
        inner = cfg[loader].dataset
        cfg[loader].dataset = dict(wrapper, dataset=inner)
        resolve_custom(cfg)
        return cfg

    @pytest.mark.parametrize(
        ('wrapper', 'count'),
        [
            (dict(type='RepeatDataset', times=3), 36),
            (dict(type='ClassBalancedDataset', oversample_thr=0.5), 24),
        ],
    )
    def test_class_folders(self, tmp_path, wrapper, count):
        make_class_folders(tmp_path)
        cfg = self.wrapped(FOLDERS, tmp_path, **wrapper)
        assert cfg.train_dataloader.dataset.type == wrapper['type']
        assert len(build(cfg)) == count

    def test_folds(self, tmp_path):
        make_class_folders(tmp_path)
        fold = dict(type='KFoldDataset', num_splits=3, fold=0)
        train = build(cfg := self.wrapped(FOLDERS, tmp_path, **fold))
        assert '15 images, of which KFoldDataset chooses' in resolve_custom(cfg)[0]
        val = build(self.wrapped(FOLDERS, tmp_path, 'val_dataloader', **fold, test_mode=True),
                    'val_dataloader')  # fmt: skip
        assert (len(train), len(val)) == (10, 5)

    def test_concat_and_mosaic(self, tmp_path):
        write_coco(tmp_path)
        cfg = Config.fromfile(CONFIGS / BOXES)
        cfg.data_root = str(tmp_path)
        inner = dict(type='CocoDataset', pipeline=[])
        cfg.train_dataloader.dataset = dict(
            type='MultiImageMixDataset',
            dataset=dict(type='ConcatDataset', datasets=[inner, dict(inner, indices=3)]),
            pipeline=[dict(type='Mosaic', img_scale=(64, 64))],
        )
        resolve_custom(cfg)
        data = build(cfg)
        assert type(data).__name__ == 'MultiImageMixDataset'
        assert len(data) == 4 + 3


def test_a_second_call_changes_nothing(tiny_data):
    cfg, _ = resolved(*tiny_data)
    before = cfg._cfg_dict.to_dict()
    resolve_custom(cfg)
    assert cfg._cfg_dict.to_dict() == before
    # Nor does reading what a run writes down.
    dumped = Config.fromstring(cfg.pretty_text, '.py')
    resolve_custom(dumped)
    assert dumped._cfg_dict.to_dict() == before


def test_splits_are_never_classes(tmp_path):
    for split in ('train', 'valid', 'test'):
        make_class_folders(tmp_path, (split,), per_class=2)
    refused('no class folders, but splits without classes: test, train, valid', FOLDERS, tmp_path)
    make_class_folders(tmp_path, ('a', 'b'), per_class=3)
    assert resolved(FOLDERS, tmp_path)[0].classes == ['a', 'b']


def test_starting_weights(tmp_path):
    make_coco(tmp_path)
    cfg, report = resolved(COCO, tmp_path, pretrained='some.pth')
    expected = dict(type='Pretrained', checkpoint='some.pth', prefix='backbone.')
    assert cfg.model.backbone.init_cfg == expected
    assert 'no starting weights' not in report
    cfg, report = resolved(COCO, tmp_path, load_from='some.pth')
    assert cfg.model.backbone.init_cfg is None
    assert 'no starting weights' not in report


def test_no_validation_by_flag(tiny_data):
    off = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg, _ = resolved(*tiny_data, **off)
    assert cfg.val_dataloader is None
    assert str(tiny_data[1]) in cfg.test_dataloader.dataset.data_root
