"""The digit scenes as the datasets of mmdet and mmseg read them.

Both functions write the scenes where they are missing and return the library's own dataset.
"""

from typing import Any

from coc_mm.datasets.digits.digits import CLASSES, PALETTE, check_split
from coc_mm.datasets.digits.scenes import FOLDERS, ensure_digit_scenes
from coc_mm.registry import DATASETS


@DATASETS.register_module(name='DigitScenesCoco')
def digit_scenes_coco(
    data_root: str = 'data/digit_scenes',
    split: str = 'train',
    spec: dict | None = None,
    **kwargs: Any,
) -> Any:
    """The scenes with boxes and masks, read by mmdet's ``CocoDataset``.

    Args:
        data_root (str): Where the scenes lie or shall be written.
        split (str): ``'train'`` or ``'test'``.
        spec (dict, optional): Fields of :class:`SceneSpec`.
    """
    folder = FOLDERS[check_split(split)]
    from mmdet.datasets import CocoDataset

    ensure_digit_scenes(data_root, spec)
    return CocoDataset(
        data_root=str(data_root),
        ann_file=f'annotations/instances_{folder}.json',
        data_prefix=dict(img=f'images/{folder}/'),
        metainfo=dict(classes=CLASSES, palette=PALETTE),
        **kwargs,
    )


@DATASETS.register_module(name='DigitScenesSeg')
def digit_scenes_seg(
    data_root: str = 'data/digit_scenes',
    split: str = 'train',
    spec: dict | None = None,
    **kwargs: Any,
) -> Any:
    """The scenes with semantic maps, read by mmseg's ``BaseSegDataset``: 11 classes.

    Arguments are those of :func:`digit_scenes_coco`.
    """
    folder = FOLDERS[check_split(split)]
    from mmseg.datasets import BaseSegDataset

    ensure_digit_scenes(data_root, spec)
    return BaseSegDataset(
        data_root=str(data_root),
        data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        metainfo=dict(classes=('background', *CLASSES), palette=[(40, 40, 40), *PALETTE]),
        **kwargs,
    )
