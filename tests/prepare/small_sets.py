"""Small editions of the public data sets, as archives."""

import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path


def write_zip(path, files):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files, mode='w'):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tree(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in Path(root).rglob('*')
        if path.is_file()
    }


def small(recipe, counts, **checksums):
    """A recipe for a small edition of its data set."""

    def archive(found):
        return replace(found, checksum=checksums.get(found.name), size=10)

    return replace(
        recipe,
        parts=tuple(
            replace(
                part,
                archives=tuple(map(archive, part.archives)),
                counts={key: (part.counts[key][0], counts[key]) for key in part.counts},
                size=10,
            )
            for part in recipe.parts
        ),
    )


def files(folder, names, size=500):
    return {f'{folder}/{name}': name.encode() * size for name in names}


COCO = {
    'train2017.zip': files('train2017', ['1.jpg', '2.jpg', '3.jpg']),
    'val2017.zip': files('val2017', ['4.jpg', '5.jpg']),
    'annotations_trainval2017.zip': files(
        'annotations',
        ['instances_train2017.json', 'instances_val2017.json', 'captions_val2017.json'],
    ),
}
COCO_TREE = {name: content for files in COCO.values() for name, content in files.items()}


def data(root):
    """What lies under a root but for our notes and the archives."""
    own = ('.prepared/', '.prepare.lock', 'archives/')
    return {name: content for name, content in tree(root).items() if not name.startswith(own)}
