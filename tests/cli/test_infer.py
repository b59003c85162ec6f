"""``tools/infer.py`` on a real photograph, and what it refuses."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image
from sklearn.datasets import load_sample_image
from tiny_projects import SCOPES


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """A temple, 320 x 213 pixels."""
    path = tmp_path_factory.mktemp('photo') / 'china.jpg'
    Image.fromarray(load_sample_image('china.jpg')).resize((320, 213)).save(path)
    return path


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


@pytest.mark.parametrize('kind', ['absent', 'text', 'cut', 'small', 'empty folder'])
def test_one_bad_image_is_refused(refused, projects, photo, tmp_path, kind):
    path = tmp_path / 'image.jpg'
    says = [str(path)]
    if kind == 'absent':
        says.append('does not exist')
    elif kind == 'text':
        path.write_text('not an image')
        says.append('is not an image')
    elif kind == 'cut':
        path.write_bytes(photo.read_bytes()[:5000])
        says.append('is a damaged image')
    elif kind == 'small':
        Image.new('RGB', (20, 40)).save(path)
        says.append('32 x 32')
    else:
        path.mkdir()
        says.append('holds no images')
    project = projects['mmpretrain']
    refused('infer', path, project.config, project.checkpoint, says=says, leaves=['work_dirs'])


def test_flags_that_cannot_be(refused, tool, projects, photo, capsys):
    project = projects['mmpretrain']
    arguments = [photo, project.config, project.checkpoint]
    refused('infer', *arguments, '--device', 'cuda:99', says=['--device cuda:99', 'try cpu'])
    refused('infer', *arguments, '--device', 'gpu', says=['--device gpu'])
    says = ['is the folder of the images']
    refused('infer', *arguments, '--out-dir', photo.parent, says=says)
    for flag in (['--topk', '0'], ['--score-thr', '2']):
        with pytest.raises(SystemExit, match='2'):
            tool('infer')([*map(str, arguments), *flag])
        assert f'argument {flag[0]}' in capsys.readouterr().err


def test_options_reach_the_model(refused, projects, photo):
    project = projects['mmpretrain']
    option = ('--cfg-options', 'model.backbone.arch=tiny')
    says = ['of another model']
    refused('infer', photo, project.config, project.checkpoint, *option, says=says)
