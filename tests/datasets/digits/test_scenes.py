import json
import multiprocessing

import cv2
import numpy as np
import pytest

from coc_mm.datasets import SceneSpec, ensure_digit_scenes, load_digits_split
from coc_mm.datasets.digits.scenes import MANIFEST, encode_rle

SPLITS = (('train', 'training', 8), ('test', 'validation', 4))


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def read_coco(root, folder):
    return json.loads((root / 'annotations' / f'instances_{folder}.json').read_text())


def decode(rle):
    runs = np.array(rle['counts'])
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(rle['size'], order='F')


def test_masks_boxes_and_semantic_maps_agree(tiny_scenes, tiny_spec):
    sizes = []
    for split, folder, count in SPLITS:
        coco = read_coco(tiny_scenes, folder)
        _, labels, positions = load_digits_split(split)
        label_of = dict(zip(positions.tolist(), labels.tolist(), strict=True))
        for image in coco['images']:
            pixels = cv2.imread(str(tiny_scenes / 'images' / folder / image['file_name']))
            assert pixels.shape == (tiny_spec.height, tiny_spec.width, 3)
            semantic = np.zeros(pixels.shape[:2], dtype=np.uint8)
            covered = np.zeros(pixels.shape[:2], dtype=int)
            for ann in [a for a in coco['annotations'] if a['image_id'] == image['id']]:
                mask = decode(ann['segmentation'])
                rows, cols = np.nonzero(mask)
                box = [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
                assert ann['bbox'] == box
                sizes.append(max(box[2:]))
                assert ann['area'] == mask.sum() > 0
                # Only digits of the split, under their own label.
                assert label_of[ann['digit_index']] == ann['category_id'] - 1
                covered += mask
                semantic[mask] = ann['category_id']
            assert covered.max() == 1
            name = image['file_name'].replace('.jpg', '.png')
            stored = cv2.imread(
                str(tiny_scenes / 'annotations' / folder / name), cv2.IMREAD_UNCHANGED
            )
            np.testing.assert_array_equal(stored, semantic)
        assert len(coco['images']) == count
        assert len({ann['id'] for ann in coco['annotations']}) == len(coco['annotations'])
    assert len(sizes) >= 3 * 12
    assert min(sizes) >= 12
    assert max(sizes) > 1.5 * min(sizes)


@pytest.mark.parametrize('shape', [(1, 1), (3, 5), (7, 2)])
def test_rle_agrees_with_pycocotools(shape):
    mask_utils = pytest.importorskip('pycocotools.mask')
    rng = np.random.RandomState(0)
    for mask in (np.zeros(shape, bool), np.ones(shape, bool), rng.rand(*shape) > 0.5):
        rle = encode_rle(mask)
        theirs = mask_utils.decode(mask_utils.frPyObjects(rle, *shape))
        np.testing.assert_array_equal(theirs.astype(bool), mask)
        np.testing.assert_array_equal(decode(rle), mask)


def test_same_seed_same_bytes_other_seed_other_scenes(tiny_scenes, tiny_spec, tmp_path):
    again = ensure_digit_scenes(tmp_path / 'again', tiny_spec)
    assert contents(again) == contents(tiny_scenes)
    fewer = SceneSpec(**{**vars(tiny_spec), 'num_train': 2, 'num_test': 1})
    part = contents(ensure_digit_scenes(tmp_path / 'fewer', fewer))
    whole = contents(tiny_scenes)
    images = [name for name in part if name.suffix in ('.jpg', '.png')]
    assert len(images) == 6
    assert all(part[name] == whole[name] for name in images)
    other = SceneSpec(**{**vars(fewer), 'seed': 1})
    changed = contents(ensure_digit_scenes(tmp_path / 'other', other))
    assert not any(part[name] == changed[name] for name in images)


def _change_generator(root):
    manifest = json.loads((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(json.dumps({**manifest, 'generator': 'older'}))


DAMAGE = {
    'deleted': lambda root: (root / 'images/training/scene_00003.jpg').unlink(),
    'changed': lambda root: (root / 'annotations/validation/scene_00001.png').write_bytes(b'x'),
    'manifest': lambda root: (root / MANIFEST).write_text('{"spec": '),
    'generator': _change_generator,
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_tree_is_rebuilt(damage, tmp_path):
    spec = SceneSpec(num_train=4, num_test=2, height=64, width=64, min_size=24, max_size=40)
    root = ensure_digit_scenes(tmp_path / 'scenes', spec)
    whole = contents(root)
    DAMAGE[damage](root)
    assert contents(root) != whole
    ensure_digit_scenes(root, spec)
    assert contents(root) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ['scenes', 'scenes.lock']


def test_sound_tree_is_reused_and_another_spec_replaces_it(tmp_path):
    spec = dict(num_train=2, num_test=1, height=64, width=64, min_size=24, max_size=40)
    root = ensure_digit_scenes(tmp_path / 'scenes', spec)
    before = root.stat().st_ino
    ensure_digit_scenes(root, spec)
    assert root.stat().st_ino == before
    ensure_digit_scenes(root, {**spec, 'num_test': 2})
    assert len(list((root / 'images/validation').iterdir())) == 2


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'holiday.jpg').write_bytes(b'mine')
    with pytest.raises(FileExistsError, match=r'no manifest\.json.*another data_root'):
        ensure_digit_scenes(tmp_path)
    assert (tmp_path / 'images' / 'holiday.jpg').read_bytes() == b'mine'


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'imencode', lambda *_: (False, None))
    with pytest.raises(OSError, match='cannot encode'):
        ensure_digit_scenes(tmp_path / 'scenes', dict(num_train=1, num_test=1))
    assert [p.name for p in tmp_path.iterdir()] == ['scenes.lock']


def _race(root, start, results):
    start.wait()
    root = ensure_digit_scenes(root, dict(num_train=6, num_test=2))
    results.put((root.stat().st_ino, len(list(root.rglob('*.jpg')))))


def test_processes_do_not_clash(tmp_path):
    context = multiprocessing.get_context('fork')
    start, results = context.Barrier(3), context.Queue()
    racers = [
        context.Process(target=_race, args=(tmp_path / 'scenes', start, results)) for _ in range(3)
    ]
    for racer in racers:
        racer.start()
    found = {results.get(timeout=60) for _ in racers}
    for racer in racers:
        racer.join()
    # All three ended with the one folder that a single process wrote.
    assert len(found) == 1
    assert found.pop()[1] == 8
