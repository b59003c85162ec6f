"""Files, data sets, transforms and the metric."""

import struct

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from coc_mm.registry import DATASETS, METRICS, TRANSFORMS
from projects.point_cloud.point_cloud import data as _registered  # noqa: F401
from projects.point_cloud.point_cloud.data.readers import SURFACE_POINTS, read_points

POINTS = np.array([[0, 0, 0], [1.5, 0, -2], [0.25, 3, 1]], np.float32)
PLY = 'ply\nformat {} 1.0\ncomment made by hand\nelement vertex {}\n{}end_header\n'
XYZ = 'property float x\nproperty float y\nproperty float z\n'
RGB = 'property uchar red\n'


def text_ply(rows='0 0 0 9\n1.5 0 -2 9\n0.25 3 1 9\n'):
    return (PLY.format('ascii', 3, XYZ + RGB) + rows).encode()


def binary_ply(order):
    form = 'binary_little_endian' if order == '<' else 'binary_big_endian'
    rows = b''.join(struct.pack(f'{order}3fB', *row, 9) for row in POINTS)
    return PLY.format(form, 3, XYZ + RGB).encode() + rows


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('a.xyz', b'# x y z\n0 0 0 7\n\n1.5,0,-2\n0.25 3 1 # last'),
        ('a.ply', text_ply()),
        ('a.ply', binary_ply('<')),
        ('a.PLY', binary_ply('>')),
        ('a.off', b'OFF\n3 0 0\n0 0 0\n1.5 0 -2\n0.25 3 1\n'),
    ],
    ids=['xyz', 'ascii', 'little', 'big', 'off'],
)
def test_formats(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    points = read_points(tmp_path / name)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, POINTS)


def test_a_mesh_is_sampled_by_area(tmp_path):
    """Two squares, one of four times the area, and a face that is a quad with a color."""
    vertices = ['0 0 0', '2 0 0', '2 2 0', '0 2 0', '5 0 0', '6 0 0', '6 1 0', '5 1 0']
    faces = ['4 0 1 2 3 255 0 0', '3 4 5 6', '3 4 6 7']
    text = '\n'.join(['OFF', '8 3 0', *vertices, *faces])
    (tmp_path / 'a.off').write_text(text)
    points = read_points(tmp_path / 'a.off')
    assert points.shape == (SURFACE_POINTS, 3)
    assert abs((points[:, 0] < 3).mean() - 0.8) < 0.02
    assert ((points[:, 0] <= 2) | (points[:, 0] >= 5)).all()
    np.testing.assert_array_equal(points, read_points(tmp_path / 'a.off'))


@pytest.mark.parametrize(
    ('name', 'content', 'text'),
    [
        ('a.xyz', b'', '0 points'),
        ('a.xyz', b'1 2\n', 'line 1: expected three'),
        ('a.xyz', b'1 2 1e300\n', '1 of 1 points'),
        ('a.ply', b'plx\n', 'begin with'),
        ('a.ply', b'ply\nformat ascii 1.0\nelement vertex 3\n', 'header does not end'),
        ('a.ply', text_ply('0 0 0 9\n1.5 2.5\n3 4 5 9\n'), 'vertex 1 is incomplete'),
        ('a.ply', binary_ply('<')[:-5], 'are declared'),
        ('a.off', b'OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n', 'face 0 does not fit'),
        ('a.npy', b'no array at all, honestly', 'damaged'),
        ('a.pcd', b'', 'are read as clouds'),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=text) as caught:
        read_points(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (('train', 3), ('test', 2)):
        for name in ('cat', 'dog'):
            (tmp_path / split / name / 'deep').mkdir(parents=True)
            for i in range(count):
                np.save(tmp_path / split / name / 'deep' / f'{i}.npy', rng.random((50 + i, 3)))
    return tmp_path


def test_folder(folder):
    build = dict(type='PointFolder', data_root=str(folder))
    train = DATASETS.build(dict(split='train', **build))
    assert len(train) == 6
    assert train.metainfo['classes'] == ('cat', 'dog')
    assert [train.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    test = DATASETS.build(dict(split='test', keep_points=20, **build))
    again = DATASETS.build(dict(split='test', keep_points=20, **build))
    assert len(test) == 4
    for i in range(4):
        points = test.get_data_info(i)['points']
        assert points.shape == (20, 3)
        np.testing.assert_array_equal(points, again.get_data_info(i)['points'])


def test_damaged_clouds_are_counted(folder, caplog):
    (folder / 'train/cat/bad1.xyz').write_text('1 2 nan')
    (folder / 'train/dog/bad2.ply').write_bytes(b'ply\n')
    build = dict(type='PointFolder', data_root=str(folder), split='train')
    with pytest.raises(ValueError, match='2 of 8 clouds are damaged') as caught:
        DATASETS.build(build)
    assert 'bad1.xyz' in str(caught.value)
    assert 'bad2.ply' in str(caught.value)
    assert len(DATASETS.build(dict(on_bad='skip', **build))) == 6


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (dict(split='val'), 'none of the 2 classes'),
        (dict(data_root='nowhere'), 'is no folder'),
        (dict(classes=['cat', 'cow']), "folders \\['dog'\\]"),
        (dict(on_bad='ignore'), 'on_bad must be'),
    ],
)
def test_folders_that_do_not_fit(folder, change, text):
    with pytest.raises(ValueError, match=text):
        DATASETS.build({**dict(type='PointFolder', data_root=str(folder), split='train'), **change})


def test_scanobjectnn(tmp_path, write_h5):
    rng = np.random.default_rng(0)
    data, label = rng.random((6, 20, 3)), np.array([0, 14, 3, 3, 1, 2])
    expected = {
        ('PB_T50_RS', 'main'): 'main_split/training_objectdataset_augmentedrot_scale75.h5',
        ('PB_T50_R', '2'): 'split2/training_objectdataset_augmentedrot.h5',
        ('OBJ_ONLY', 'main'): 'main_split_nobg/training_objectdataset.h5',
    }
    for (variant, fold), name in expected.items():
        write_h5(tmp_path / name, data, label)
        found = DATASETS.build(
            dict(
                type='ScanObjectNN', data_root=str(tmp_path), split='train',
                variant=variant, fold=fold,
            )
        )  # fmt: skip
        assert [found.get_data_info(i)['gt_label'] for i in range(6)] == label.tolist()
    np.testing.assert_allclose(found.get_data_info(5)['points'], data[5], rtol=1e-6)
    assert len(found.metainfo['classes']) == 15


def test_modelnet40(tmp_path, write_h5):
    for i in range(2):
        write_h5(tmp_path / f'ply_data_test{i}.h5', np.ones((3, 8, 3)) * i, [[i], [39], [7]])
    found = DATASETS.build(dict(type='ModelNet40', data_root=str(tmp_path), split='test'))
    assert [found.get_data_info(i)['gt_label'] for i in range(6)] == [0, 39, 7, 1, 39, 7]
    assert found.get_data_info(4)['points'].min() == 1
    assert len(found.metainfo['classes']) == 40


def test_damaged_h5(tmp_path, write_h5):
    path = tmp_path / 'main_split/test_objectdataset_augmentedrot_scale75.h5'
    build = dict(type='ScanObjectNN', data_root=str(tmp_path), split='test')
    with pytest.raises(ValueError, match='does not exist'):
        DATASETS.build(build)
    data, label = np.random.default_rng(0).random((4, 8, 3)), np.array([0, 99, 2, 3])
    data[2, 3, 1] = np.inf
    write_h5(path, data, label)
    with pytest.raises(ValueError, match=r'2 of 4 clouds are damaged.*cloud 1.*label 99'):
        DATASETS.build(build)
    assert len(DATASETS.build(dict(on_bad='skip', **build))) == 2
    path.write_bytes(b'\x89HDF\r\n\x1a\n' + b'\0' * 40)
    with pytest.raises(ValueError, match='damaged or no HDF5'):
        DATASETS.build(build)


def test_embedded_data():
    pytest.importorskip('sklearn')
    digits = DATASETS.build(dict(type='DigitPoints', split='test', indices=20))
    assert len(digits) == 20
    solids = dict(type='SyntheticSolids', per_class=2, points=64)
    train, test = (DATASETS.build(dict(split=split, **solids)) for split in ('train', 'test'))
    assert len(train) == 20
    for i in range(20):
        first, second = (d.get_data_info(i)['points'] for d in (train, test))
        assert first.shape == (64, 3)
        assert np.isfinite(first).all()
        assert not np.array_equal(first, second)
    again = DATASETS.build(dict(split='train', **solids))
    np.testing.assert_array_equal(
        train.get_data_info(7)['points'], again.get_data_info(7)['points']
    )


def transform(points, **cfg):
    np.random.seed(0)
    with DefaultScope.overwrite_default_scope('coc_mm'):
        return TRANSFORMS.build(cfg)(dict(points=points, name='c', gt_label=1, sample_idx=0))


def test_transforms():
    points = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    sampled = transform(points, type='SamplePoints', num_points=16)['points']
    np.testing.assert_array_equal(sampled, points[:16])
    padded = transform(points, type='SamplePoints', num_points=100, shuffle=True)['points']
    rows, counts = np.unique(padded, axis=0, return_counts=True)
    assert len(rows) == 40
    assert set(counts) == {2, 3}
    far = transform(points, type='SamplePoints', num_points=5, how='farthest')['points']
    assert len(np.unique(far, axis=0)) == 5
    centerd = transform(points + 7, type='CenterPoints')['points']
    np.testing.assert_allclose(centerd.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(centerd, axis=1).max(), 1, rtol=1e-6)
    assert np.isfinite(transform(points[:1], type='CenterPoints')['points']).all()
    moved = transform(points, type='ScaleShiftPoints')['points']
    slope = (moved[1:] - moved[0]) / (points[1:] - points[0])
    np.testing.assert_allclose(slope, np.broadcast_to(slope[0], slope.shape), rtol=1e-2)
    assert (slope > 0.66).all()
    assert (slope < 1.51).all()
    for axis in ('x', 'y', 'z', 'any'):
        turned = transform(points, type='RotatePoints', axis=axis)['points']
        np.testing.assert_allclose(turned @ turned.T, points @ points.T, atol=1e-4)
        if axis != 'any':
            i = 'xyz'.index(axis)
            np.testing.assert_allclose(turned[:, i], points[:, i], atol=1e-6)
    shaken = transform(points, type='JitterPoints', sigma=1, clip=0.05)['points']
    np.testing.assert_allclose(np.abs(shaken - points).max(), 0.05, rtol=1e-3)
    votes = transform(
        points, type='VotePoints', transforms=[dict(type='ScaleShiftPoints')], votes=3
    )
    assert len(votes['inputs']) == len(votes['data_samples']) == 3
    np.testing.assert_array_equal(votes['inputs'][0], points)
    assert not torch.equal(votes['inputs'][1], votes['inputs'][2])


def test_metric():
    metric = METRICS.build(dict(type='PointAccuracy', per_class=True))
    metric.dataset_meta = dict(classes=('a', 'b', 'c', 'd'))
    labels = [(0, 0), (0, 0), (0, 1), (0, 0), (2, 2), (2, 0), (3, 3)]
    samples = [dict(gt_label=torch.tensor(t), pred_label=torch.tensor(p)) for t, p in labels]
    metric.process({}, samples)
    found = metric.evaluate(len(labels))
    assert found['OA'] == pytest.approx(100 * 5 / 7)
    assert found['mAcc'] == pytest.approx(100 * (3 / 4 + 1 / 2 + 1) / 3)
    assert found['acc/c'] == 50
    assert 'acc/b' not in found


@pytest.mark.parametrize(
    'config',
    [
        dict(type='SamplePoints', num_points=0),
        dict(type='SamplePoints', num_points=4, how='nearest'),
        dict(type='RotatePoints', axis='w'),
        dict(type='ScanObjectNN', split='val'),
        dict(type='ScanObjectNN', split='test', variant='PB'),
    ],
    ids=str,
)
def test_bad_settings_are_refused(config):
    registry = DATASETS if 'split' in config else TRANSFORMS
    with (
        DefaultScope.overwrite_default_scope('coc_mm'),
        pytest.raises(ValueError, match=r'must|choose'),
    ):
        registry.build(config)
