"""Sheets of pictures, and the files that they are written to."""

import numpy as np
import pytest
from PIL import Image

from coc_mm.visualization import contact_sheet, fit, head_grid, save_gif, save_picture, stage_row
from coc_mm.visualization.sheets import _font, _lines


def test_pictures_keep_their_proportions():
    picture = np.zeros((40, 60, 3), np.uint8)
    assert fit(picture) is picture
    assert fit(picture, longest=60) is picture
    assert fit(picture, height=80).shape == (80, 120, 3)
    assert fit(picture, longest=30).shape == (20, 30, 3)
    assert fit(picture, height=80, longest=90).shape == (60, 90, 3)


def test_a_sheet_holds_its_pictures_unchanged():
    red, blue = np.zeros((50, 80, 3), np.uint8), np.zeros((50, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = contact_sheet([[(red, 'a'), (blue, '')], [(None, ''), (blue, 'b')]], 'title')
    assert (sheet == (255, 0, 0)).all(-1).sum() == red.shape[0] * red.shape[1]
    assert (sheet == (0, 0, 255)).all(-1).sum() == 2 * blue.shape[0] * blue.shape[1]
    assert sheet.shape[0] > contact_sheet([[(red, 'a')], [(blue, 'b')]]).shape[0]
    assert (sheet[:2] == 255).all()  # white paper around


def test_long_captions_are_cut_off_after_two_lines():
    lines = _lines('several words that need more than the two lines there are', _font(12), 120)
    assert len(lines) == 2
    assert lines[-1].endswith('…')
    assert all(_font(12).getlength(line) <= 120 for line in lines)


def test_grids_and_rows_show_the_input_first(make_maps):
    maps = make_maps(size=(8, 12), heads=(0, 1, 2), batch=1)
    picture = np.full((80, 120, 3), 200, np.uint8)
    sheet = head_grid(picture, maps, height=80, alpha=0, title='t')
    assert sheet.shape[1] > 2 * 120
    row = stage_row(picture, [maps.with_heads([1])], height=40, caption='input')
    assert [caption for _, caption in row] == ['input', 'stage 0, block 0, head 1']
    assert [tile.shape for tile, _ in row] == [(40, 60, 3)] * 2
    with pytest.raises(ValueError, match='too many values'):
        stage_row(picture, [maps])


def test_files_are_whole(tmp_path):
    frames = [np.full((20, 30, 3), value, np.uint8) for value in (10, 200)]
    path = save_picture(tmp_path / 'new' / 'a.png', frames[1])
    np.testing.assert_array_equal(np.asarray(Image.open(path)), frames[1])
    moving = Image.open(save_gif(tmp_path / 'new' / 'a.gif', frames))
    assert (moving.n_frames, moving.info['duration'], moving.info['loop']) == (2, 600, 0)
    with pytest.raises(Exception, match='handle this data type'):
        save_picture(path, np.zeros((2, 2, 7), np.float32))
    assert sorted(p.name for p in path.parent.iterdir()) == ['a.gif', 'a.png']
