import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from coc_mm.errors import UserError
from coc_mm.utils.images import find_images, read_image, to_picture


def test_images_of_a_folder(tmp_path, capsys):
    folder = tmp_path / 'in'
    more = ('sub/f.png', '__MACOSX/f.png', 'sub/.cache/g.png', 'drawn/b.png', 'h.HEIC')
    for name in ('b.JPG', 'a.webp', '._a.webp', 'n.txt', 'c.jfif', 'd.avif', 'e.gif', *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'i.tif').touch()
    (folder / 'link').symlink_to(tmp_path / 'elsewhere')
    found = find_images(str(folder), leave=folder / 'drawn')
    names = ['a.webp', 'b.JPG', 'c.jfif', 'd.avif', 'e.gif', 'link/i.tif', 'sub/f.png']
    assert [path.relative_to(folder).as_posix() for path in found] == names
    assert 'left out, not read as images: .heic (1), .txt (1)' in capsys.readouterr().out
    assert find_images(str(folder / 'n.txt')) == [folder / 'n.txt']
    (tmp_path / 'none').mkdir()
    (tmp_path / 'none' / 'h.HEIC').touch()
    with pytest.raises(UserError, match=r'holds no images .*, but \.heic \(1\)'):
        find_images(str(tmp_path / 'none'))
    with pytest.raises(UserError, match='does not exist'):
        find_images(str(tmp_path / 'none.png'))


def test_what_a_loader_reads_may_be_no_picture(tmp_path):
    path = tmp_path / 'data.tif'
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match='values of 32 bits'):
        read_image(path)
    load = LoadImageFromFile(color_type='unchanged')
    np.testing.assert_array_equal(read_image(path, load)['img'], values)
    values[0, 0] = np.nan
    Image.fromarray(values).save(path)
    with pytest.raises(UserError, match='NaN or infinite'):
        read_image(path, load)
    path.write_text('no image')
    with pytest.raises(UserError, match='is not an image in a format that can be read'):
        read_image(path, load)


def test_pictures():
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_picture(bgr), bgr[..., ::-1])
    np.testing.assert_array_equal(to_picture(bgr.astype(np.float32), bgr=False), bgr)  # to_float32
    np.testing.assert_array_equal(to_picture(bgr[..., 0]), bgr[..., :1].repeat(3, -1))
    bands = rng.integers(0, 2**16, (4, 5, 7), dtype=np.uint16)
    picture = to_picture(bands, bgr=False)
    assert picture.shape == (4, 5, 3)
    assert (picture.min(), picture.max()) == (0, 255)
