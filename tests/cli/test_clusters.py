"""tools/visualization/clusters.py from its arguments to its files."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_projects import write_project
from tool_fixtures import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('visualization/clusters')


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A tiny classifier with three checkpoints, and two pictures."""
    pytest.importorskip('mmpretrain')
    from coc_mm.apis.config import load_config
    from coc_mm.apis.start import build_model

    folder = tmp_path_factory.mktemp('clusters')
    config = write_project(folder, 'mmpretrain')
    for epoch in (1, 2, 10):
        torch.manual_seed(epoch)
        content = dict(
            state_dict=build_model(load_config(str(config))).state_dict(),
            meta=dict(dataset_meta=dict(classes=('disc', 'box')), epoch=epoch),
        )
        torch.save(content, folder / f'epoch_{epoch}.pth')
    (folder / 'pictures').mkdir()
    rng = np.random.default_rng(0)
    for name, size in (('wide.png', (64, 150)), ('tall.jpg', (120, 70))):
        pixels = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
        pixels[10:40, 20:60] = (240, 20, 20)
        Image.fromarray(pixels).save(folder / 'pictures' / name, quality=95)
    return folder, config


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_an_image_gives_a_row_and_grids(tool, project, tmp_path, capsys):
    folder, config = project
    image, checkpoint = folder / 'pictures' / 'wide.png', folder / 'epoch_1.pth'
    arguments = [str(image), str(config), str(checkpoint), '--out-dir', str(tmp_path)]
    assert tool([*arguments, '--height', '64']) == 0
    grids = [f'wide_stage{s}_block0.png' for s in range(4)]
    assert files_of(tmp_path) == [*grids, 'wide_stages.png']
    out = capsys.readouterr().out
    said = [line for line in out.splitlines() if line.startswith(str(image))]
    assert len(said) == 1
    assert any(name in said[0] for name in ('disc (', 'box ('))
    assert '%)' in said[0]
    assert 'untrained' not in out
    row = np.asarray(Image.open(tmp_path / 'wide_stages.png'))
    assert row.shape[1] > 5 * 150
    # The input on the sheet is the picture, its red in place.
    red = (row[..., 0] > 200) & (row[..., 1] < 60) & (row[..., 2] < 60)
    assert red[:, :200].sum() == pytest.approx(30 * 40, rel=0.1)


def test_one_head_of_an_untrained_model(tool, project, tmp_path, capsys):
    folder, config = project
    arguments = ['--stage', '1', '--block', '-1', '--head', '1', '--alpha', '0']
    image = folder / 'pictures' / 'wide.png'
    assert tool([str(image), str(config), *arguments, '--out-dir', str(tmp_path)]) == 0
    assert files_of(tmp_path) == ['wide_stage1_block0_head1.png']
    assert 'untrained' in capsys.readouterr().out
    picture = np.asarray(Image.open(tmp_path / 'wide_stage1_block0_head1.png'))
    assert picture.shape == (448, 1050, 3)  # 64 x 150, enlarged to be seen


def test_size_of_the_networks_input(tool, project, tmp_path):
    folder, config = project
    image, checkpoint = folder / 'pictures' / 'wide.png', folder / 'epoch_1.pth'
    arguments = [str(image), str(config), str(checkpoint), '--stage', '0', '--head', '0']
    arguments += ['--alpha', '1', '--out-dir', str(tmp_path)]
    shown = []
    for size in ('96', '600'):
        assert tool([*arguments, '--size', size]) == 0
        picture = Image.open(tmp_path / 'wide_stage0_block0_head0.png')
        shown.append(np.asarray(picture)[:, :, 0])
    # Points of 4 x 4 pixels of the input: at 96, far larger ones than at 600.
    changes = [(np.diff(rows.astype(int), axis=1) != 0).sum() for rows in shown]
    assert shown[0].shape == shown[1].shape
    assert changes[1] > changes[0]


def test_all_of_a_folder(tool, project, tmp_path, capsys):
    folder, config = project
    arguments = [str(folder / 'pictures'), str(config), str(folder / 'epoch_2.pth'), '--all']
    assert tool([*arguments, '--out-dir', str(tmp_path), '--height', '48']) == 0
    names = ['stages.png']
    for image in ('tall', 'wide'):
        names += [f'{image}_stages.png']
        names += [f'{image}_stage{s}_block0.png' for s in range(4)]
        names += [f'{image}_stage{s}_block0_head{h}.png' for s in range(4) for h in range(2)]
    assert files_of(tmp_path) == sorted(names)
    assert 'all images' in capsys.readouterr().out


def test_gif_over_checkpoints(tool, project, tmp_path):
    folder, config = project
    image = str(folder / 'pictures' / 'wide.png')
    out = ['--out-dir', str(tmp_path), '--height', '48']
    assert tool([image, str(config), *out, '--gif', str(folder)]) == 0
    assert Image.open(tmp_path / 'wide.gif').n_frames == 3
    # The pictures beside it show the last checkpoint, 10 and not 2.
    still = (tmp_path / 'wide_stages.png').read_bytes()
    assert tool([image, str(config), str(folder / 'epoch_10.pth'), *out]) == 0
    assert (tmp_path / 'wide_stages.png').read_bytes() == still
    some = [str(folder / f'epoch_{n}.pth') for n in (2, 1)]
    assert tool([image, str(config), *out, '--stage', '0', '--gif', *some]) == 0
    assert Image.open(tmp_path / 'wide.gif').n_frames == 2


def refused(tool, arguments, out_dir, capsys):
    """Run what must fail; return the message."""
    assert tool([*map(str, arguments), '--out-dir', str(out_dir)]) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ')
    assert 'Traceback' not in err
    assert not out_dir.exists()
    return err


def test_what_cannot_be_used_is_named(tool, project, tmp_path, capsys):
    folder, config = project
    image, checkpoint = folder / 'pictures' / 'wide.png', folder / 'epoch_1.pth'
    out = tmp_path / 'out'
    text = tmp_path / 'text.png'
    text.write_text('no image')
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(checkpoint.read_bytes()[:3000])
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'backbone.x': torch.zeros(3)}), other)
    cases = [
        ([image, config, checkpoint, '--stage', '4'], 'stages 0 to 3'),
        ([image, config, checkpoint, '--stage', '0', '--block', '3'], 'blocks only 0'),
        ([image, config, checkpoint, '--head', '2'], 'heads 0 to 1'),
        ([image, config, checkpoint, '--device', 'cuda:99'], 'cuda:99'),
        ([text, config, checkpoint], 'text.png'),
        ([tmp_path / 'none.png', config, checkpoint], 'none.png'),
        ([image, tmp_path / 'none.py', checkpoint], 'none.py does not exist'),
        ([image, 'no-such-model', checkpoint], 'no-such-model'),
        ([image, config, tmp_path / 'none.pth'], 'none.pth does not exist'),
        ([image, config, cut], 'truncated or damaged'),
        ([image, config, other], 'another model'),
        ([image, config, checkpoint, '--gif', checkpoint, other], 'another model'),
        ([image, config, checkpoint, '--gif', folder / 'pictures'], 'no checkpoints'),
    ]
    for arguments, message in cases:
        assert message in refused(tool, arguments, out, capsys), arguments
    assert len(cases) == 13


@pytest.mark.parametrize(
    'arguments',
    [
        ['--alpha', '1.5'],
        ['--height', '5'],
        ['--size', '8'],
        ['--all', '--head', '0'],
        ['--stage', 'x'],
    ],
)
def test_usage(tool, project, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool(['image.png', str(project[1]), *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_bad_images_of_a_folder_are_skipped_and_counted(tool, project, tmp_path, capsys):
    folder, config = project
    mixed = tmp_path / 'mixed'
    mixed.mkdir()
    (mixed / 'a.png').write_bytes(b'')
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(mixed / 'b.png')  # below 32 x 32
    (mixed / 'c.png').write_bytes((folder / 'pictures' / 'wide.png').read_bytes())
    out = tmp_path / 'out'
    assert tool([str(mixed), str(config), '--out-dir', str(out), '--height', '48']) == 2
    captured = capsys.readouterr()
    assert '2 of 3 images could not be used: a.png, b.png' in captured.err
    assert 'a.png' in captured.out
    assert '32 x 32' in captured.out
    assert 'c_stages.png' in files_of(out)
    assert not any(name.startswith(('a_', 'b_')) for name in files_of(out))
