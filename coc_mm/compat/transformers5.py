"""mmpretrain beside transformers 5.

mmpretrain 1.3 wants ``transformers<5`` for its multimodal models, but imports them with any later
release, too; a class whose base could not be imported then ends ``import mmpretrain.models``, and
with it mmseg's and mmdet's, in ``TypeError: NoneType takes no arguments``.
"""

from importlib.metadata import version
from typing import Any


def leave_out_multimodal(module: Any) -> None:
    """Have ``mmpretrain.utils.dependency`` take transformers 5 for none; the models say so."""
    if module.WITH_MULTIMODAL and int(version('transformers').split('.')[0]) >= 5:
        module.WITH_MULTIMODAL = False
