"""tools/visualization/clusters.py from its arguments to its files."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from tiny_projects import write_project

from coc_mm.apis.start import build_model

TOOL = 'visualization/clusters'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A tiny classifier with three checkpoints, and two pictures: folder, picture, config."""
    folder = tmp_path_factory.mktemp('clusters')
    config = write_project(folder, 'mmpretrain')
    meta = dict(dataset_meta=dict(classes=('disc', 'box')))
    for epoch in (1, 2, 10):
        torch.manual_seed(epoch)
        weights = build_model(Config.fromfile(config)).state_dict()
        torch.save(dict(state_dict=weights, meta=meta), folder / f'epoch_{epoch}.pth')
    (folder / 'pictures').mkdir()
    for name, size in (('wide.png', (64, 150)), ('tall.jpg', (120, 70))):
        pixels = np.random.default_rng(0).integers(0, 60, (*size, 3), dtype=np.uint8)
        pixels[10:40, 20:60] = (240, 20, 20)
        Image.fromarray(pixels).save(folder / 'pictures' / name, quality=95)
    return folder, folder / 'pictures' / 'wide.png', config


@pytest.fixture
def draw(tool, tmp_path):
    """Call the tool; return its status and the names of the pictures."""

    def call(*argv):
        status = tool(TOOL)([*map(str, argv), '--out-dir', 'out'])
        return status, sorted(path.name for path in (tmp_path / 'out').iterdir())

    return call


def test_the_view_of_the_official_script(draw, project):
    _, image, config = project
    assert draw(image, config, '--official-view', '--stage', 0, '--height', 64)[0] == 0
    with pytest.raises(SystemExit, match='2'):
        draw(image, config, '--official-view', '--size', 64)


def test_an_image_gives_a_row_and_grids(draw, project, capsys):
    folder, image, config = project
    grids = [f'wide_stage{s}_block0.png' for s in range(4)]
    arguments = (image, config, folder / 'epoch_1.pth', '--height', 64)
    assert draw(*arguments) == (0, [*grids, 'wide_stages.png'])
    out = capsys.readouterr().out
    (said,) = [line for line in out.splitlines() if line.startswith(str(image))]
    assert any(name in said for name in ('disc (', 'box ('))
    assert '%)' in said
    assert 'untrained' not in out
    row = np.asarray(Image.open('out/wide_stages.png'))
    assert row.shape[1] > 5 * 150
    # The input on the sheet is the picture, its red in place.
    red = (row[..., 0] > 200) & (row[..., 1] < 60) & (row[..., 2] < 60)
    assert red[:, :200].sum() == pytest.approx(30 * 40, rel=0.1)


def test_one_head_of_an_untrained_model(draw, project, capsys):
    chosen = ('--stage', 1, '--block', -1, '--head', 1, '--alpha', 0)
    assert draw(*project[1:], *chosen) == (0, ['wide_stage1_block0_head1.png'])
    assert 'untrained' in capsys.readouterr().out
    picture = np.asarray(Image.open('out/wide_stage1_block0_head1.png'))
    assert picture.shape == (448, 1050, 3)  # 64 x 150, enlarged to be seen


def test_all_of_a_folder(draw, project, capsys):
    folder, image, config = project
    names = ['stages.png']
    for name in ('tall', 'wide'):
        names += [f'{name}_stages.png']
        names += [f'{name}_stage{s}_block0.png' for s in range(4)]
        names += [f'{name}_stage{s}_block0_head{h}.png' for s in range(4) for h in range(2)]
    arguments = (image.parent, config, folder / 'epoch_2.pth', '--all', '--height', 48)
    assert draw(*arguments) == (0, sorted(names))
    assert 'all images' in capsys.readouterr().out


def test_gif_over_checkpoints(draw, project):
    folder, image, config = project
    assert draw(image, config, '--height', 48, '--gif', folder)[0] == 0
    assert Image.open('out/wide.gif').n_frames == 3
    # The pictures beside it show the last checkpoint, 10 and not 2.
    with Image.open('out/wide_stages.png') as still:
        still.load()
    assert draw(image, config, folder / 'epoch_10.pth', '--height', 48)[0] == 0
    assert Image.open('out/wide_stages.png').tobytes() == still.tobytes()
    some = [folder / f'epoch_{n}.pth' for n in (2, 1)]
    assert draw(image, config, '--height', 48, '--stage', 0, '--gif', *some)[0] == 0
    assert Image.open('out/wide.gif').n_frames == 2


def test_what_cannot_be_used_is_named(refused, project, tmp_path):
    folder, image, config = project
    checkpoint, other = folder / 'epoch_1.pth', tmp_path / 'other.pth'
    (tmp_path / 'text.png').write_text('no image')
    torch.save(dict(state_dict={'backbone.x': torch.zeros(3)}), other)
    for arguments, says in [
        ([image, config, checkpoint, '--stage', '4'], 'stages 0 to 3'),
        ([image, config, checkpoint, '--stage', '0', '--block', '3'], 'blocks only 0'),
        ([image, config, checkpoint, '--head', '2'], 'heads 0 to 1'),
        (['text.png', config, checkpoint], 'text.png'),
        (['none.png', config, checkpoint], 'none.png'),
        ([image, 'no-such-model', checkpoint], 'no-such-model'),
        ([image, config, other], 'another model'),
        ([image, config, checkpoint, '--gif', checkpoint, other], 'another model'),
        ([image, config, checkpoint, '--gif', folder / 'pictures'], 'no checkpoints'),
    ]:
        refused(TOOL, *arguments, '--out-dir', 'out', says=[says], leaves=['out'])


def test_usage(misused, project):
    for flags in ('--alpha 1.5', '--height 5', '--size 8', '--all --head 0', '--stage x'):
        misused(TOOL, *project[1:], *flags.split(), says=flags.split()[0])


def test_bad_images_of_a_folder_are_skipped_and_counted(draw, project, tmp_path, capsys):
    _, image, config = project
    (tmp_path / 'mixed').mkdir()
    (tmp_path / 'mixed' / 'a.png').write_bytes(b'')
    Image.new('RGB', (20, 20)).save(tmp_path / 'mixed' / 'b.png')  # below 32 x 32
    (tmp_path / 'mixed' / 'c.png').write_bytes(image.read_bytes())
    status, names = draw('mixed', config, '--height', '48')
    assert status == 2
    assert 'c_stages.png' in names
    assert not any(name.startswith(('a_', 'b_')) for name in names)
    captured = capsys.readouterr()
    assert '2 of 3 images could not be used: a.png, b.png' in captured.err
    assert '32 x 32' in captured.out


def test_bands_and_names(draw, tmp_path):
    """What the config's loader reads is drawn, and images of one name have their own pictures."""
    tifffile = pytest.importorskip('tifffile')
    bands = np.random.default_rng(0).integers(0, 4000, (2, 40, 50, 5), dtype=np.uint16)
    for folder, pixels in zip('ab', bands, strict=True):
        (tmp_path / 'in' / folder).mkdir(parents=True)
        tifffile.imwrite(tmp_path / 'in' / folder / '0.tif', pixels, photometric='minisblack')
    config = write_project(tmp_path / 'project', 'mmseg')
    config.write_text(
        config.read_text()
        + "model['backbone']['in_channels'] = 5\n"
        + "model['data_preprocessor'].update(mean=None, std=None)\n"
        + "test_pipeline[0].update(color_type='unchanged', imdecode_backend='tifffile')\n"
    )
    status, names = draw(tmp_path / 'in', config, '--stage', 0)
    assert (status, names) == (0, ['a_0.tif_stage0_block0.png', 'b_0.tif_stage0_block0.png'])
