"""What a test writes about images of the same name in different folders."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_projects import write_project


def _nest(data, scope):
    """Move the second image to another folder, under the name of the first."""
    for kind in ('images', 'maps') if scope != 'mmpretrain' else ():
        for index in (0, 1) if (data / kind).is_dir() else ():
            (data / kind / str(index)).mkdir()
            shutil.move(data / kind / f'{index}.png', data / kind / str(index) / '0.png')
    if scope == 'mmdet':
        file = data / 'annotations.json'
        content = json.loads(file.read_text())
        for index, image in enumerate(content['images']):
            image['file_name'] = f'{index}/0.png'
        file.write_text(json.dumps(content))


WRITTEN = {
    'mmpretrain': {'box/0.png_0.png', 'box/1.png_0.png', 'disc/0.png_0.png', 'disc/1.png_0.png'},
    'mmdet': {'0/0.png', '1/0.png'},
    'mmseg': {'0/0.png', '1/0.png'},
}


@pytest.mark.parametrize('scope', WRITTEN)
def test_each_image_has_its_file(run, projects, scope):
    config = write_project(Path('project'), scope)
    _nest(Path('project/data'), scope)
    flags = ['--out', 'out'] if scope == 'mmseg' else ['--show-dir', 'out']
    interval = 'default_hooks.visualization.interval=1'
    project = SimpleNamespace(config=config)
    run('test', project, projects[scope].checkpoint, *flags, '--cfg-options', interval)
    folder = next(path for path in Path().rglob('out') if path.is_dir())
    found = {path.relative_to(folder).as_posix() for path in folder.rglob('*.png')}
    assert found == WRITTEN[scope]


def test_names_that_differ_stay_as_they_are(run, projects):
    run('test', projects['mmseg'], projects['mmseg'].checkpoint, '--out', 'out')
    assert {path.name for path in Path('out').iterdir()} == {'0.png', '1.png'}
