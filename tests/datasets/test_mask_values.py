import numpy as np
import pytest
from PIL import Image

from coc_mm.datasets import mask_values as module
from coc_mm.datasets.mask_values import mask_values


def save(path, values, dtype=np.uint8):
    Image.fromarray(np.asarray(values, dtype)).save(path)


def test_values_are_read_once(tmp_path, monkeypatch):
    save(tmp_path / 'a.png', [[0, 255, 3]])
    save(tmp_path / 'b.png', [[255]])
    assert mask_values(tmp_path, ['a.png', 'b.png']) == {
        'a.png': ('L', [0, 3, 255]),
        'b.png': ('L', [255]),
    }
    reads = []
    read = module._values
    monkeypatch.setattr(module, '_values', lambda path: reads.append(path.name) or read(path))
    save(tmp_path / 'b.png', [[7, 7]])
    assert mask_values(tmp_path, ['a.png', 'b.png']) == {
        'a.png': ('L', [0, 3, 255]),
        'b.png': ('L', [7]),
    }
    assert reads == ['b.png']


@pytest.mark.parametrize('mode', ['L', 'P', '1'])
def test_kinds_of_masks(tmp_path, mode):
    values = np.array([[0, 1]], np.uint8)
    mask = Image.fromarray(values.astype(bool) if mode == '1' else values)
    if mode == 'P':
        mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(tmp_path / 'a.png')
    with Image.open(tmp_path / 'a.png') as written:
        assert written.mode == mode
    assert mask_values(tmp_path, ['a.png']) == {'a.png': (mode, [0, 1])}


@pytest.mark.parametrize(
    ('value', 'dtype', 'says'),
    [
        (-1, np.int32, 'has the value -1'),
        (256, np.int32, 'has the value 256'),
        (0.5, np.float32, r'has values that are no whole numbers \(F\)'),
    ],
)
def test_values_that_are_no_class_are_named(tmp_path, value, dtype, says):
    save(tmp_path / '1.tif', [[value]], dtype)
    with pytest.raises(ValueError, match=rf'mask .*1\.tif {says}'):
        mask_values(tmp_path, ['1.tif'])


def test_damage_is_named(tmp_path):
    (tmp_path / '2.png').write_bytes(b'text')
    with pytest.raises(ValueError, match=r'mask .*2\.png cannot be read .*replace it'):
        mask_values(tmp_path, ['2.png'])
