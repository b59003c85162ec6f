"""Published sets of clouds: ScanObjectNN and ModelNet40, as HDF5."""

from pathlib import Path

from coc_mm.registry import DATASETS
from projects.point_cloud.point_cloud.data.base import PointCloudDataset, check_split
from projects.point_cloud.point_cloud.data.h5 import read_h5
from projects.point_cloud.point_cloud.errors import PointCloudError

SPLITS = {'train': 'training', 'test': 'test'}


class _H5Dataset(PointCloudDataset):
    def files(self):
        """List the files of the split."""
        raise NotImplementedError

    def load_clouds(self):
        """Read all files; see the base class."""
        for path in self.files():
            try:
                points, labels = read_h5(path)
            except PointCloudError as error:
                if self.on_bad == 'refuse' or not Path(path).exists():
                    raise
                self.add_bad(str(error))
                continue
            for i, (cloud, label) in enumerate(zip(points, labels, strict=True)):
                yield f'{path}, cloud {i},', cloud, label


@DATASETS.register_module()
class ScanObjectNN(_H5Dataset):
    """Scanned objects of 15 classes (`arXiv 1908.04616 <https://arxiv.org/abs/1908.04616>`_).

    Args:
        split (str): 'train' or 'test'.
        variant (str): 'PB_T50_RS' (the hardest, which papers report), 'PB_T50_R', 'PB_T25_R',
            'PB_T25', 'OBJ_BG' or 'OBJ_ONLY'.
        fold (str): 'main' or '1' to '4', the other partitions of the authors.
        **kwargs: Of ``PointCloudDataset``; ``data_root`` is the folder ``h5_files``.
    """

    METAINFO = dict(
        classes=(
            'bag', 'bin', 'box', 'cabinet', 'chair', 'desk', 'display', 'door',
            'shelf', 'table', 'bed', 'pillow', 'sink', 'sofa', 'toilet',
        )
    )  # fmt: skip
    VARIANTS = {
        'PB_T50_RS': '_augmentedrot_scale75',
        'PB_T50_R': '_augmentedrot',
        'PB_T25_R': '_augmented25rot',
        'PB_T25': '_augmented25_norot',
        'OBJ_BG': '',
        'OBJ_ONLY': '',
    }

    def __init__(self, split, variant='PB_T50_RS', fold='main', **kwargs):
        if variant not in self.VARIANTS:
            raise PointCloudError(
                f'unknown variant {variant!r}: choose one of {list(self.VARIANTS)}'
            )
        if str(fold) not in ('main', '1', '2', '3', '4'):
            raise PointCloudError(f"fold must be 'main' or '1' to '4', not {fold!r}")
        self.split, self.variant, self.fold = check_split(split), variant, str(fold)
        super().__init__(**kwargs)

    def files(self):
        """List the one file of split, variant and fold."""
        folder = 'main_split' if self.fold == 'main' else f'split{self.fold}'
        folder += '_nobg' if self.variant == 'OBJ_ONLY' else ''
        name = f'{SPLITS[self.split]}_objectdataset{self.VARIANTS[self.variant]}.h5'
        return [str(Path(self.data_root or '.', folder, name))]


@DATASETS.register_module()
class ModelNet40(_H5Dataset):
    """Sampled CAD models of 40 classes, 2048 points each (``modelnet40_ply_hdf5_2048``).

    `arXiv 1406.5670 <https://arxiv.org/abs/1406.5670>`_, in the form of PointNet; ``data_root``
    holds ``ply_data_train0.h5`` and so on.
    """

    METAINFO = dict(
        classes=(
            'airplane', 'bathtub', 'bed', 'bench', 'bookshelf', 'bottle', 'bowl', 'car', 'chair',
            'cone', 'cup', 'curtain', 'desk', 'door', 'dresser', 'flower_pot', 'glass_box',
            'guitar', 'keyboard', 'lamp', 'laptop', 'mantel', 'monitor', 'night_stand', 'person',
            'piano', 'plant', 'radio', 'range_hood', 'sink', 'sofa', 'stairs', 'stool', 'table',
            'tent', 'toilet', 'tv_stand', 'vase', 'wardrobe', 'xbox',
        )
    )  # fmt: skip

    def __init__(self, split, **kwargs):
        self.split = check_split(split)
        super().__init__(**kwargs)

    def files(self):
        """List the files of the split, in order."""
        root = Path(self.data_root or '.')
        found = sorted(root.glob(f'ply_data_{self.split}*.h5'))
        return [str(path) for path in found] or [str(root / f'ply_data_{self.split}0.h5')]
