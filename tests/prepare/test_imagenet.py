"""ImageNet from its published archives, small ones."""

import io

import numpy as np
from scipy.io import savemat
from small_sets import data, write_tar

SYNSETS = ('n01440764', 'n01443537', 'n01484850')
VAL_CLASSES = (2, 0, 1, 2)


def _write_imagenet(folder):
    folder.mkdir(exist_ok=True)
    expected, tars = {}, {}
    for name in SYNSETS:
        files = {f'{name}_{i}.JPEG': name.encode() + b'%d' % i for i in range(2)}
        tars[f'{name}.tar'] = write_tar(folder / 'class', files).read_bytes()
        expected |= {f'train/{name}/{file}': content for file, content in files.items()}
    write_tar(folder / 'ILSVRC2012_img_train.tar', tars)
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
