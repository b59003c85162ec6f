"""Datasets that are a folder: images in class folders, images with masks.

They need none of the task libraries themselves; their items are what mmpretrain's
and mmseg's pipelines expect.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmengine.dataset import BaseDataset

from coc_mm.registry import DATASETS
from coc_mm.utils.images import IMAGE_SUFFIXES

__all__ = ['PARTS', 'ClassFolders', 'ImageMaskFolders', 'hold_out', 'list_images']

MASK_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff')
#: Of a folder without a validation split: all, or what :func:`hold_out` gives.
PARTS = ('all', 'train', 'val')
T = TypeVar('T')


def list_images(folder: str | Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """List the images below a folder.

    Args:
        folder (str | Path): The folder.
        suffixes (Sequence[str]): What counts as an image, in any case.

    Returns:
        list[str]: Paths relative to the folder with ``/``, sorted; nothing hidden.
    """
    folder = Path(folder)
    found = (path.relative_to(folder) for path in folder.rglob('*'))
    return sorted(
        path.as_posix()
        for path in found
        if path.suffix.lower() in suffixes and not any(x.startswith('.') for x in path.parts)
    )


def hold_out(names: list[T], part: str, fraction: float) -> list[T]:
    """Split names into those to train with and those held out.

    The choice depends on the names alone, so it is the same in every run.

    Args:
        names (list): In a fixed order.
        part (str): 'train', 'val', or 'all' for no split.
        fraction (float): Share held out, above 0 and below 1; at least one name is,
            if there are two.

    Returns:
        list: The part, in the given order.

    Raises:
        ValueError: ``part`` or ``fraction`` is out of range.
    """
    if part not in PARTS:
        raise ValueError(f'part must be one of {", ".join(PARTS)}, got {part!r}')
    if not 0 < fraction < 1:
        raise ValueError(f'val_fraction must be above 0 and below 1, got {fraction!r}')
    if part == 'all':
        return names
    count = min(max(1, round(len(names) * fraction)), len(names) - 1)
    held = set(random.Random(len(names)).sample(range(len(names)), max(0, count)))
    return [name for i, name in enumerate(names) if (i in held) == (part == 'val')]


@DATASETS.register_module()
class ClassFolders(BaseDataset):
    """Images in one folder per class.

    Args:
        data_root (str): The root folder.
        data_prefix (dict): ``img_path``, the folder below it that holds the class
            folders. Defaults to ``dict(img_path='')``, the root itself.
        metainfo (dict): ``classes``, the names of the class folders in the order of
            their labels.
        part (str): 'all', or 'train' and 'val' to hold images of every class out.
            Defaults to 'all'.
        val_fraction (float): Share of each class held out. Defaults to 0.2.
        **kwargs: Arguments of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: Folders and classes differ, or there is no image.
    """

    def __init__(
        self, data_root: str = '', part: str = 'all', val_fraction: float = 0.2, **kwargs: Any
    ) -> None:
        self.part, self.val_fraction = part, val_fraction
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images.

        Returns:
            list[dict]: With ``img_path`` (str) and ``gt_label`` (int).
        """
        root = Path(self.data_prefix['img_path'])
        classes = list(self.metainfo['classes'])
        folders = sorted(x.name for x in root.iterdir() if x.is_dir() and x.name[0] != '.')
        unknown = [name for name in folders if name not in classes]
        if unknown:
            raise ValueError(
                f'{root} holds folders that are no class: {", ".join(unknown[:5])}. The '
                f'{len(classes)} classes are {", ".join(classes[:5])}...; remove the folders, '
                'or add them to the classes (classes.txt).'
            )
        items = []
        for label, name in enumerate(classes):
            images = list_images(root / name) if name in folders else []
            for image in hold_out(images, self.part, self.val_fraction):
                items.append(dict(img_path=str(root / name / image), gt_label=label))
        if not items:
            raise ValueError(f'{root} holds no images ({", ".join(IMAGE_SUFFIXES)})')
        return items


@DATASETS.register_module()
class ImageMaskFolders(BaseDataset):
    """Images in one folder, index masks of the same names in another.

    Args:
        data_root (str): The root folder.
        data_prefix (dict): ``img_path`` and ``seg_map_path``, folders below it.
        metainfo (dict): ``classes`` in the order of their indices, ``palette``.
        reduce_zero_label (bool): Index 0 is unlabelled and index 1 the first class.
            Defaults to False, index 0 is the first class. 255 is always unlabelled.
        part (str): 'all', or 'train' and 'val' to hold images out. Defaults to 'all'.
        val_fraction (float): Share held out. Defaults to 0.2.
        **kwargs: Arguments of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: There is no image, or an image without a mask.
    """

    def __init__(
        self,
        data_root: str = '',
        reduce_zero_label: bool = False,
        part: str = 'all',
        val_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        self.reduce_zero_label = reduce_zero_label
        self.part, self.val_fraction = part, val_fraction
        super().__init__(data_root=data_root, **kwargs)
        self._metainfo.update(reduce_zero_label=reduce_zero_label, label_map=None)

    def load_data_list(self) -> list[dict]:
        """List the pairs.

        Returns:
            list[dict]: With ``img_path``, ``seg_map_path`` and what mmseg's
            ``LoadAnnotations`` asks for.
        """
        images, masks = self.data_prefix['img_path'], self.data_prefix['seg_map_path']
        pairs = hold_out(pair_masks(images, masks), self.part, self.val_fraction)
        return [
            dict(
                img_path=str(Path(images, image)),
                seg_map_path=str(Path(masks, mask)),
                label_map=None,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for image, mask in pairs
        ]


def pair_masks(images: str | Path, masks: str | Path) -> list[tuple[str, str]]:
    """Find the mask of every image, which differs from it in the suffix alone.

    Args:
        images (str | Path): Folder of the images.
        masks (str | Path): Folder of the masks.

    Returns:
        list[tuple[str, str]]: Relative paths, sorted.

    Raises:
        ValueError: There is no image, or an image without a mask.
    """
    found = list_images(images)
    if not found:
        raise ValueError(f'{images} holds no images ({", ".join(IMAGE_SUFFIXES)})')
    by_stem = {mask.rsplit('.', 1)[0]: mask for mask in list_images(masks, MASK_SUFFIXES)}
    missing = [name for name in found if name.rsplit('.', 1)[0] not in by_stem]
    if missing:
        stem = missing[0].rsplit('.', 1)[0]
        raise ValueError(
            f'{len(missing)} of {len(found)} images in {images} have no mask in {masks}, e.g. '
            f'{missing[0]} needs {stem}.png; add the masks, or take the images away.'
        )
    return [(name, by_stem[name.rsplit('.', 1)[0]]) for name in found]
