"""Whole data sets, small ones, through the command."""

import importlib.util
import io
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from test_archives import tree, write_tar, write_zip
from test_download import server  # noqa: F401  a fixture

from coc_mm.cli import prepare as command
from coc_mm.cli.prepare import run_prepare
from coc_mm.errors import run_command
from coc_mm.prepare import RECIPES, download, read_zip
from coc_mm.prepare.archives import Limits

ROOT = Path(__file__).resolve().parents[2]
SYNSETS = ('n01440764', 'n01443537', 'n01484850')
VAL_CLASSES = (2, 0, 1, 2)


def _small(recipe, counts, **checksums):
    """A recipe for a small edition of its data set."""
    parts = tuple(
        replace(part, counts={key: (part.counts[key][0], counts[key]) for key in part.counts})
        for part in recipe.parts
    )
    archives = tuple(
        replace(archive, checksum=checksums.get(archive.name), size=10)
        for archive in recipe.archives
    )
    return replace(recipe, parts=tuple(replace(p, size=10) for p in parts), archives=archives)


def _files(folder, names, size=500):
    return {f'{folder}/{name}': name.encode() * size for name in names}


COCO = {
    'train2017.zip': _files('train2017', ['1.jpg', '2.jpg', '3.jpg']),
    'val2017.zip': _files('val2017', ['4.jpg', '5.jpg']),
    'annotations_trainval2017.zip': _files(
        'annotations',
        ['instances_train2017.json', 'instances_val2017.json', 'captions_val2017.json'],
    ),
}
COCO_TREE = {name: content for files in COCO.values() for name, content in files.items()}


@pytest.fixture
def recipes(monkeypatch):
    """Let the command know small editions."""
    ade = {
        f'ADEChallengeData2016/{kind}/{split}': 2
        for kind in ('images', 'annotations')
        for split in ('training', 'validation')
    }
    small = {
        'coco': _small(RECIPES['coco'], {'train2017': 3, 'val2017': 2, 'annotations': 2}),
        'ade20k': _small(RECIPES['ade20k'], ade),
        'imagenet': _small(RECIPES['imagenet'], {'train': 6, 'val': 4}),
        'scanobjectnn': _small(RECIPES['scanobjectnn'], {'h5_files/main_split': 2}),
    }
    monkeypatch.setattr(command, 'RECIPES', small)
    return small


@pytest.fixture
def run(capsys, tmp_path):
    """Run the command; return its status and what it said."""

    def call(*argv):
        status = run_command(run_prepare, [str(arg) for arg in argv])
        out, err = capsys.readouterr()
        assert 'Traceback' not in err
        return status, out + err

    return call


@pytest.fixture
def coco_archives(tmp_path):
    folder = tmp_path / 'archives'
    folder.mkdir()
    for name, files in COCO.items():
        write_zip(folder / name, files)
    return folder


def data(root):
    """What lies under a root but for our notes and the archives."""
    own = ('.prepared/', '.prepare.lock', 'archives/')
    return {name: content for name, content in tree(root).items() if not name.startswith(own)}


def test_coco_from_a_folder_then_only_what_is_missing(recipes, run, tmp_path, coco_archives):
    root = tmp_path / 'coco'
    status, said = run('coco', '--root', root, '--archives', coco_archives)
    assert status == 0, said
    assert data(root) == COCO_TREE
    assert run('coco', '--root', root, '--check') == (0, f'{root} is complete.\n')

    for path in coco_archives.iterdir():
        if path.name != 'train2017.zip':
            path.unlink()
    assert run('coco', '--root', root, '--archives', coco_archives)[0] == 0  # needs none of them
    (root / 'train2017/2.jpg').unlink()
    status, said = run('coco', '--root', root, '--check')
    assert status == 2
    assert 'train2017: 1 of 3 files missing or of another size, e.g. train2017/2.jpg' in said
    assert 'val2017:' not in said
    assert run('coco', '--root', root, '--archives', coco_archives)[0] == 0
    assert data(root) == COCO_TREE


def test_a_tree_made_otherwise_is_counted(recipes, run, tmp_path):
    root = tmp_path / 'coco'
    for name, content in COCO_TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    assert run('coco', '--root', root)[0] == 0
    (root / 'annotations/instances_val2017.json').unlink()
    (root / 'val2017/4.jpg').unlink()
    status, said = run('coco', '--root', root, '--check')
    assert status == 2
    assert 'annotations/instances_val2017.json is missing' in said
    assert 'val2017 holds 1 of 2 .jpg files' in said
    assert run('coco', '--root', root, '--check', '--only', 'train2017')[0] == 0


def test_coco_from_a_mirror(recipes, run, tmp_path, coco_archives, server):  # noqa: F811
    server.content = {f'/m/{path.name}': path.read_bytes() for path in coco_archives.iterdir()}
    root = tmp_path / 'coco'
    arguments = ('coco', '--root', root, '--url', f'{server.url}/m/', '--delete-downloads')
    status, said = run(*arguments, '--only', 'val2017')
    assert status == 0, said
    assert set(data(root)) == set(COCO['val2017.zip'])
    server.requests.clear()
    status, said = run(*arguments)
    assert status == 0, said
    assert data(root) == COCO_TREE
    assert sorted(path for path, _ in server.requests) == [
        '/m/annotations_trainval2017.zip',
        '/m/train2017.zip',
    ]
    assert list((root / 'archives').iterdir()) == []


def test_one_failed_download_keeps_the_others(
    recipes,
    run,
    tmp_path,
    coco_archives,
    server,  # noqa: F811
):
    server.content = {f'/{path.name}': path.read_bytes() for path in coco_archives.iterdir()}
    server.content['/val2017.zip'] = b'<html>login</html>'
    root = tmp_path / 'coco'
    status, said = run('coco', '--root', root, '--url', server.url)
    assert status == 2
    assert 'val2017.zip answered with a web page' in said
    assert sorted(path.name for path in (root / 'archives').iterdir()) == [
        'annotations_trainval2017.zip',
        'train2017.zip',
    ]
    assert data(root) == {}


def test_checksums_are_those_published(recipes, run, tmp_path, coco_archives, monkeypatch):
    monkeypatch.setitem(
        command.RECIPES,
        'coco',
        _small(
            RECIPES['coco'],
            {'train2017': 3, 'val2017': 2, 'annotations': 2},
            **{a.name: a.checksum for a in RECIPES['coco'].archives},
        ),
    )
    arguments = ('coco', '--root', tmp_path / 'coco', '--archives', coco_archives)
    status, said = run(*arguments)
    assert status == 2
    assert 'md5 is' in said
    assert 'published is cced6f7f71b7629ddf16f17bbcfab6b2' in said
    assert data(tmp_path / 'coco') == {}
    assert run(*arguments, '--skip-checksum')[0] == 0
    assert data(tmp_path / 'coco') == COCO_TREE


def test_an_archive_with_too_little_leaves_nothing(recipes, run, tmp_path, coco_archives):
    write_zip(coco_archives / 'train2017.zip', _files('train2017', ['1.jpg', '2.jpg']))
    write_zip(coco_archives / 'val2017.zip', _files('test2017', ['1.jpg', '2.jpg']))
    arguments = ('coco', '--root', tmp_path / 'coco', '--archives', coco_archives)
    status, said = run(*arguments)
    assert status == 2
    assert '2 of 3 .jpg files of train2017' in said
    status, said = run(*arguments, '--only', 'val2017')
    assert 'nothing below val2017' in said
    assert data(tmp_path / 'coco') == {}


def test_bad_arguments_and_a_small_disk(recipes, run, tmp_path, coco_archives, monkeypatch):
    root = tmp_path / 'coco'
    assert 'has the parts train2017' in run('coco', '--root', root, '--only', 'test')[1]
    assert 'no such folder' in run('coco', '--archives', tmp_path / 'no')[1]
    with monkeypatch.context() as patch:
        patch.setattr('shutil.disk_usage', lambda path: type('', (), dict(free=1)))
        status, said = run('coco', '--root', root, '--archives', coco_archives)
    assert status == 2
    assert 'are needed' in said
    assert not root.exists()
    (tmp_path / 'file').write_text('in the way')
    for way in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        status, said = run('coco', '--root', way, '--archives', coco_archives)
        assert status == 2
        assert f'error: {way} cannot be made' in said
    for wrong in (('--url', 'ftp://x'), ('--jobs', '0'), ('--jobs', 'x')):
        with pytest.raises(SystemExit):
            run('coco', '--root', root, *wrong)
    nowhere = ('--url', 'http://127.0.0.1:9', '--root', root / 'deeper')
    hasty = partial(download, tries=1)
    monkeypatch.setattr('coc_mm.prepare.tree.download', hasty)
    assert run('coco', *nowhere)[0] == 2
    assert not root.exists(), 'an empty tree is left'


def _ade():
    return {
        f'ADEChallengeData2016/{kind}/{split}/{i}{suffix}': f'{kind}{split}{i}'.encode()
        for kind, suffix in (('images', '.jpg'), ('annotations', '.png'))
        for split in ('training', 'validation')
        for i in range(2)
    } | {'ADEChallengeData2016/objectInfo150.txt': b'wall'}


def test_ade20k(recipes, run, tmp_path):
    (tmp_path / 'in').mkdir()
    write_zip(tmp_path / 'in/ADEChallengeData2016.zip', _ade())
    assert run('ade20k', '--root', tmp_path / 'ade', '--archives', tmp_path / 'in')[0] == 0
    assert data(tmp_path / 'ade') == _ade()


def test_scanobjectnn_takes_the_main_splits(recipes, run, tmp_path):
    names = [f'{split}_objectdataset_augmentedrot_scale75.h5' for split in ('training', 'test')]
    wanted = _files('h5_files/main_split', names) | _files('h5_files/main_split_nobg', names)
    (tmp_path / 'in').mkdir()
    arguments = ('scanobjectnn', '--root', tmp_path / 's', '--archives', tmp_path / 'in')
    status, said = run(*arguments)
    assert status == 2
    assert 'agree to the terms of use at https://hkust-vgd.github.io/scanobjectnn' in said
    assert not (tmp_path / 's').exists()
    write_zip(tmp_path / 'in/h5_files.zip', wanted | _files('h5_files/split1', names))
    assert run(*arguments)[0] == 0
    assert data(tmp_path / 's') == wanted


def _tar_bytes(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _write_imagenet(folder, synsets=SYNSETS):
    folder.mkdir(exist_ok=True)
    classes = {name: {f'{name}_{i}.JPEG': name.encode() + b'%d' % i for i in range(2)}
               for name in synsets}  # fmt: skip
    write_tar(
        folder / 'ILSVRC2012_img_train.tar',
        {f'{name}.tar': _tar_bytes(files) for name, files in classes.items()},
    )
    images = {f'ILSVRC2012_val_{i + 1:08}.JPEG': b'val%d' % i for i in range(4)}
    # Another order than the numbers': what counts is the number, not the place.
    write_tar(folder / 'ILSVRC2012_img_val.tar', dict(reversed(images.items())))
    kind = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O'), ('num_children', 'O')]
    rows = [(i + 1, name, 'fish', 0) for i, name in enumerate(SYNSETS)] + [(9, 'n00001740', 'x', 3)]
    mat = io.BytesIO()
    savemat(mat, dict(synsets=np.array(rows, dtype=kind)))
    truth = ''.join(f'{label + 1}\n' for label in VAL_CLASSES).encode()
    kit = {'meta.mat': mat.getvalue(), 'ILSVRC2012_validation_ground_truth.txt': truth}
    write_tar(
        folder / 'ILSVRC2012_devkit_t12.tar.gz',
        {f'ILSVRC2012_devkit_t12/data/{name}': content for name, content in kit.items()},
        'w:gz',
    )
    expected = {
        f'train/{synset}/{name}': content
        for synset, files in classes.items()
        for name, content in files.items()
    }
    for (name, content), label in zip(images.items(), VAL_CLASSES, strict=True):
        expected[f'val/{SYNSETS[label]}/{name}'] = content
    return expected


def test_imagenet_and_what_is_missing_of_it(recipes, run, tmp_path):
    root, folder = tmp_path / 'imagenet', tmp_path / 'in'
    arguments = ('imagenet', '--root', root, '--archives', folder)
    folder.mkdir()
    status, said = run(*arguments)
    assert status == 2
    assert 'register at https://image-net.org' in said
    expected = _write_imagenet(folder)
    assert run(*arguments)[0] == 0
    assert data(root) == expected

    # A class was lost, e.g. by a killed run: it comes back, the others are left alone.
    kept = root / f'train/{SYNSETS[0]}/{SYNSETS[0]}_0.JPEG'
    number = kept.stat().st_ino
    for path in (root / 'train' / SYNSETS[1]).iterdir():
        path.unlink()
    assert '2 of 6 files' in run('imagenet', '--root', root, '--check')[1]
    assert run(*arguments)[0] == 0
    assert data(root) == expected
    assert kept.stat().st_ino == number


def test_imagenet_cut_short_keeps_whole_classes(recipes, run, tmp_path):
    root, folder = tmp_path / 'imagenet', tmp_path / 'in'
    expected = _write_imagenet(folder)
    path = folder / 'ILSVRC2012_img_train.tar'
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    arguments = ('imagenet', '--root', root, '--archives', folder, '--only', 'train')
    status, said = run(*arguments)
    assert status == 2
    assert 'damaged' in said or 'truncated' in said
    for synset in (root / 'train').iterdir():
        assert len(list(synset.iterdir())) == 2
    path.write_bytes(whole)
    assert run(*arguments)[0] == 0
    assert data(root) == {name: x for name, x in expected.items() if name.startswith('train')}


def test_imagenets_archives_must_be_imagenets(recipes, run, tmp_path):
    folder = tmp_path / 'in'
    _write_imagenet(folder)
    arguments = ('imagenet', '--root', tmp_path / 'i', '--archives', folder, '--only')
    write_tar(folder / 'ILSVRC2012_img_train.tar', {'holiday.jpg': b'x'})
    assert 'not the tar of a class' in run(*arguments, 'train')[1]
    write_tar(folder / 'ILSVRC2012_img_val.tar', {'ILSVRC2012_val_00000005.JPEG': b'x'})
    assert 'has no class' in run(*arguments, 'val')[1]
    write_tar(folder / 'ILSVRC2012_devkit_t12.tar.gz', {'x/meta.mat': b'junk'}, 'w:gz')
    assert 'is not the development kit' in run(*arguments, 'val')[1]
    assert data(tmp_path / 'i') == {}


def test_the_tool_is_there():
    path = ROOT / 'tools' / 'dataset_converters' / 'prepare.py'
    spec = importlib.util.spec_from_file_location('tool_prepare', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(['coco', '--check', '--root', '/nonexistent']) == 2


def test_recipes_agree_with_the_configs():
    from mmengine.config import Config

    base = ROOT / 'configs' / '_base_' / 'datasets'
    roots = {
        'imagenet': ('imagenet_bs128_coc_224.py', 'data/imagenet', ('train', 'val')),
        'coco': ('coco_instance.py', 'data/coco/', ('train2017', 'val2017')),
    }
    for name, (config, expected, folders) in roots.items():
        found = Config.fromfile(base / config).data_root
        assert found == expected
        assert Path(found) == Path(RECIPES[name].root)
        assert {part.name for part in RECIPES[name].parts} >= set(folders)
    ade = Config.fromfile(base / 'ade20k_512x512.py')
    (part,) = RECIPES['ade20k'].parts
    prefixes = ade.train_dataloader.dataset.data_prefix.values()
    for prefix in prefixes:
        full = Path(ade.data_root, prefix).relative_to(RECIPES['ade20k'].root)
        assert full.as_posix() in part.counts


def test_archives_of_other_disks_are_never_trusted_by_name(tmp_path):
    """A tar named .zip is refused by the reader of zips, not unpacked."""
    path = write_tar(tmp_path / 'a.zip', {'a': b'x'})
    with pytest.raises(ValueError, match='no such archive'):
        list(read_zip(path, Limits(10, 10)))
