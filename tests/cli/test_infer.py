"""``tools/infer.py`` on a real photograph, and what it refuses."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_projects import SCOPES


def _infer(tool, project, *argv):
    image, *flags = map(str, argv)
    return tool('infer')([image, str(project.config), str(project.checkpoint), *flags])


@pytest.mark.parametrize('scope', SCOPES)
def test_tool_prints_and_draws(tool, projects, photo, tmp_path, capsys, scope):
    project = projects[scope]
    DefaultScope.get_instance(f'before {scope}', scope_name='mmengine')  # of an earlier run
    assert _infer(tool, project, photo, '--score-thr', '0', '--topk', '9') == 0
    assert DefaultScope.get_current_instance().scope_name == 'mmengine'
    printed = capsys.readouterr().out
    names = {'mmpretrain': ['probability'], 'mmdet': ['mask pixels'], 'mmseg': ['pixels', '%']}
    assert all(name in printed for name in names[scope]), printed
    picture = tmp_path / 'work_dirs' / project.config.stem / 'infer' / 'china.jpg'
    assert picture.is_file()
    assert str(picture.relative_to(tmp_path)) in printed
    drawn = np.asarray(Image.open(picture).convert('RGB').resize((320, 213)), float)
    original = np.asarray(Image.open(photo), float)
    assert np.abs(drawn - original).mean() > 0.5  # something is painted
    assert np.corrcoef(drawn.ravel(), original.ravel())[0, 1] > 0.3  # on this photograph


def test_boxes_below_the_threshold_are_said_to_be_there(tool, projects, photo, capsys):
    assert _infer(tool, projects['mmdet'], photo, '--score-thr', '1') == 0
    printed = ' '.join(capsys.readouterr().out.split())
    assert 'no object with a score of 1.0 or more; the best has 0.' in printed


@pytest.mark.parametrize(
    ('kind', 'says'),
    [
        ('absent', 'does not exist'),
        ('text', 'is not an image'),
        ('cut', 'is a damaged image'),
        ('small', '32 x 32'),
        ('folder', 'holds no images'),
    ],
)
def test_one_bad_image_is_refused(refused, projects, photo, tmp_path, kind, says):
    path = tmp_path / 'image.jpg'
    if kind in ('text', 'cut'):
        path.write_bytes(b'not an image' if kind == 'text' else photo.read_bytes()[:5000])
    elif kind == 'small':
        Image.new('RGB', (20, 40)).save(path)
    elif kind == 'folder':
        path.mkdir()
    files = (projects['mmpretrain'].config, projects['mmpretrain'].checkpoint)
    refused('infer', path, *files, says=[str(path), says], leaves=['work_dirs'])


def test_a_folder_with_folders(tool, projects, photo, tmp_path, capsys):
    """One picture for each image, also the second time, when they lie in the folder."""
    for name in ('a/0.jpg', 'b/0.jpg', 'a/0.gif'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(photo).resize((40, 40)).save(tmp_path / 'in' / name)
    (tmp_path / 'in' / 'notes.txt').touch()
    out = tmp_path / 'in' / 'out'
    for _ in range(2):
        assert _infer(tool, projects['mmpretrain'], tmp_path / 'in', '--out-dir', out) == 0
        names = sorted(x.relative_to(out).as_posix() for x in out.rglob('*.*'))
        assert names == ['a/0.gif.png', 'a/0.jpg', 'b/0.jpg']
        assert 'left out, not read as images: .txt (1)' in capsys.readouterr().out


def test_flags_that_cannot_be(refused, misused, projects, photo):
    arguments = ['infer', photo, projects['mmpretrain'].config, projects['mmpretrain'].checkpoint]
    refused(*arguments, '--device', 'cuda:99', says=['--device cuda:99', 'try cpu'])
    refused(*arguments, '--device', 'gpu', says=['--device gpu'])
    refused(*arguments, '--out-dir', photo.parent, says=['is the folder of the images'])
    # An option reaches the model.
    refused(*arguments, '--cfg-options', 'model.backbone.arch=tiny', says=['of another model'])
    misused(*arguments, '--topk', 0, says='argument --topk')
    misused(*arguments, '--score-thr', 2, says='argument --score-thr')


def test_many_images_as_data(tool, projects, photo, tmp_path, capsys):
    """Folders, in batches, with a bad image; equal names keep their folders."""
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        Image.open(photo).resize((64, 48)).save(tmp_path / name / 'x.png')
    (tmp_path / 'b' / 'bad.png').write_text('no image')
    project = projects['mmseg']
    argv = ['a', 'b', str(project.config), str(project.checkpoint), '--batch-size', '2']
    assert tool('infer')([*argv, '--save', 'vis', 'json', 'png', '--out-dir', 'out']) == 2
    said = capsys.readouterr()
    assert 'skipped b/bad.png: ' in said.out
    assert '1 of 3 images could not be used: b/bad.png' in said.err
    written = {str(path.relative_to('out')) for path in Path('out').rglob('*.*')}
    masks = {f'masks/{name}/x.png.png' for name in 'ab'}
    assert written == {'a/x.png', 'b/x.png', 'predictions.json', *masks}
    with pytest.raises(SystemExit):
        tool('infer')([*argv, '--save', 'xml'])


def test_a_video_becomes_a_video(tool, projects, tmp_path):
    writer = cv2.VideoWriter('clip.mp4', cv2.VideoWriter.fourcc(*'mp4v'), 10, (64, 48))
    for i in range(3):
        writer.write(np.full((48, 64, 3), 60 * i, np.uint8))
    writer.release()
    assert (
        _infer(tool, projects['mmdet'], 'clip.mp4', '--out-dir', 'out', '--save', 'vis', 'csv') == 0
    )
    assert {path.name for path in Path('out').iterdir()} == {'clip.mp4', 'predictions.csv'}
    drawn = cv2.VideoCapture('out/clip.mp4')
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (3, 10)


def test_data_of_another_task(refused, projects, photo):
    files = (projects['mmpretrain'].config, projects['mmpretrain'].checkpoint)
    refused('infer', photo, *files, '--save', 'coco', says=['--save coco is for models of mmdet'])
