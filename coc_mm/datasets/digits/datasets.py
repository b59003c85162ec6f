"""The digit scenes as the stock datasets of mmdet and mmseg read them.

Both names are functions, not classes: they make sure that the scenes are on
disk and return the library's own ``CocoDataset`` or ``BaseSegDataset``. So a
config that names them works on a fresh clone, and a machine with one of the
two libraries can use that one.
"""

from typing import TYPE_CHECKING, Any

from coc_mm.datasets.digits.digits import CLASSES, PALETTE, check_split
from coc_mm.datasets.digits.scenes import FOLDERS, ensure_digit_scenes
from coc_mm.registry import DATASETS

if TYPE_CHECKING:
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import BaseSegDataset

SEMANTIC_CLASSES = ('background', *CLASSES)
SEMANTIC_PALETTE = [(40, 40, 40), *PALETTE]


@DATASETS.register_module(name='DigitScenesCoco')
def digit_scenes_coco(
    data_root: str = 'data/digit_scenes',
    split: str = 'train',
    spec: dict | None = None,
    **kwargs: Any,
) -> 'CocoDataset':
    """The scenes with boxes and masks, read by mmdet's ``CocoDataset``.

    Args:
        data_root (str): Where the scenes lie or shall be written. Defaults to
            ``'data/digit_scenes'``.
        split (str): ``'train'`` or ``'test'``. Defaults to ``'train'``.
        spec (dict, optional): Fields of :class:`SceneSpec`. Defaults to none,
            the default scenes.
        **kwargs: Arguments of ``CocoDataset`` (``pipeline``, ``filter_cfg``,
            ``test_mode``, ...).

    Returns:
        mmdet.datasets.CocoDataset: 10 classes, '0' to '9'.

    Raises:
        ImportError: If mmdet is missing.
        FileExistsError: If ``data_root`` holds something else.
        ValueError: If ``split`` or ``spec`` is wrong.
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
) -> 'BaseSegDataset':
    """The scenes with semantic maps, read by mmseg's ``BaseSegDataset``.

    Args:
        data_root (str): Where the scenes lie or shall be written. Defaults to
            ``'data/digit_scenes'``.
        split (str): ``'train'`` or ``'test'``. Defaults to ``'train'``.
        spec (dict, optional): Fields of :class:`SceneSpec`. Defaults to none,
            the default scenes.
        **kwargs: Arguments of ``BaseSegDataset`` (``pipeline``, ``test_mode``, ...).

    Returns:
        mmseg.datasets.BaseSegDataset: 11 classes, the background first.

    Raises:
        ImportError: If mmseg is missing.
        FileExistsError: If ``data_root`` holds something else.
        ValueError: If ``split`` or ``spec`` is wrong.
    """
    folder = FOLDERS[check_split(split)]
    from mmseg.datasets import BaseSegDataset

    ensure_digit_scenes(data_root, spec)
    return BaseSegDataset(
        data_root=str(data_root),
        data_prefix=dict(img_path=f'images/{folder}', seg_map_path=f'annotations/{folder}'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        metainfo=dict(classes=SEMANTIC_CLASSES, palette=SEMANTIC_PALETTE),
        **kwargs,
    )
