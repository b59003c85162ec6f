"""A folder of own clouds, one folder per class."""

import os
import zlib
from pathlib import Path

import numpy as np

from coc_mm.registry import DATASETS
from projects.point_cloud.point_cloud.data.base import PointCloudDataset
from projects.point_cloud.point_cloud.data.readers import EXTENSIONS, read_points
from projects.point_cloud.point_cloud.errors import PointCloudError


@DATASETS.register_module()
class PointFolder(PointCloudDataset):
    """Files ``data_root/[split/]CLASS/**/*.{xyz,npy,ply,off}``, read once.

    Args:
        split (str): Folder between the root and the classes, e.g. 'train'.
        keep_points (int): Points of a cloud kept in memory, chosen by a generator seeded with the
            file's path within its class, so that every run sees the same.
        classes (Sequence[str] | None): Names in the order of the labels; None: the folders,
            sorted, of ``train`` where there is one, so that splits agree.
        **kwargs: Of ``PointCloudDataset``.
    """

    def __init__(self, split='', keep_points=4096, classes=None, metainfo=None, **kwargs):
        self.split, self.keep_points = split, keep_points
        metainfo = dict(metainfo or {})
        root = Path(kwargs.get('data_root') or '.')
        self.folder = root / split if split else root
        found = classes or metainfo.get('classes') or self._find_classes(root)
        metainfo['classes'] = tuple(found)
        super().__init__(metainfo=metainfo, **kwargs)

    def _find_classes(self, root):
        reference = root / 'train' if self.split and (root / 'train').is_dir() else self.folder
        if not reference.is_dir():
            raise PointCloudError(
                f'{reference} is no folder; one folder per class is expected in it '
                f'({os.path.join(str(reference), "CLASS", "name.ply")})'
            )
        names = sorted(path.name for path in reference.iterdir() if path.is_dir())
        if len(names) < 2:
            raise PointCloudError(
                f'{reference} has {len(names)} folders; one per class, two or more'
            )
        return names

    def load_clouds(self):
        """Read all files; see the base class."""
        classes = self.metainfo['classes']
        present = (
            {p.name for p in self.folder.iterdir() if p.is_dir()} if self.folder.is_dir() else ()
        )
        unknown = sorted(set(present) - set(classes))
        if unknown or not present:
            what = f'has the folders {unknown[:5]}, which are' if unknown else 'has'
            raise PointCloudError(
                f'{self.folder} {what} none of the {len(classes)} classes {list(classes)[:5]}'
            )
        for label, name in enumerate(classes):
            for path in sorted((self.folder / name).rglob('*')):
                if path.suffix.lower() not in EXTENSIONS or path.is_dir():
                    continue
                try:
                    points = read_points(path)
                except PointCloudError as error:
                    self.add_bad(str(error))
                    continue
                if len(points) > self.keep_points:
                    seed = zlib.crc32(path.relative_to(self.folder).as_posix().encode())
                    rng = np.random.default_rng(seed)
                    points = points[rng.permutation(len(points))[: self.keep_points]]
                yield str(path), points, label
