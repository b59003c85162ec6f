"""What the libraries lack. Every change to another library is one of these.

=================== ==================================== ====================================== ===
file                what it changes                      why                                    [1]
=================== ==================================== ====================================== ===
mmcv_ext,           ``mmcv._ext``, where mmcv was        pip builds mmcv without its compiled   a
mmcv_operators      installed without it                 operators; mmdet does not import then
transformers5       ``mmpretrain.utils.dependency``      transformers 5 ends the import of      b
                    ``.WITH_MULTIMODAL``                 mmpretrain's, mmseg's, mmdet's models
config_scopes       ``mmengine.config.utils``            ``_base_ = ['mmseg::...']`` and        c
                    ``.MODULE2PACKAGE``, ``Config``'s    ``['coc_mm::...']`` are not found, or
                    scope of a base                      not built
tight_bbox          ``matplotlib._tight_bbox``           mmpretrain's browse_dataset gives no    e
                    ``.adjust_bbox``                     renderer
exif                ``mmcv.image.io.imfrombytes``        OpenCV does not turn WebP and AVIF     d
inferencers         ``mmengine.infer`` base class:       they know the models of their own      c
                    names of models                      packages alone
coc_mm/__init__     ``CheckpointLoader``'s scheme for    mmengine reads safetensors without     c
                    ``.safetensors``                     config and class names
coc_mm/__init__     ``PretrainedInit.__call__``, for     mmengine runs what a file holds, and   c
                    our backbone alone                   knows no official names
checkpoints.load    ``CheckpointLoader``'s other         mmengine runs what a file of others    c
                    schemes, in the tools                names
atomic_backend      mmengine's ``local`` file backend,   a kill while writing leaves half of a  c
                    while training                       checkpoint
cpu_distributed     the process group, before mmengine   mmengine knows accelerators only       c
                    makes one
results_folder      metrics' ``collect_dir``, and who    results lie in the current folder, and c
                    writes scores, with processes        all processes write the same file
picture_names       names of written pictures, while      of images of the same name in        c
                    testing                              different folders one is left
malloc              glibc's settings, while training     each step asks for all memory anew     -
=================== ==================================== ====================================== ===

[1] It can go with: a, wheels of mmcv with operators for current torch; b, an mmpretrain that works
with transformers 5; c, an mmengine that does it; d, an OpenCV that turns them; e, an
mmpretrain that works with matplotlib 3.11.

``on_import`` acts on a module when it is imported, so that none of this costs anything before.
What needs more than ``coc_mm.errors`` and ``coc_mm.utils`` gets it from ``coc_mm/__init__.py``.
"""

from coc_mm.compat.config_scopes import add_scopes, keep_default_scope
from coc_mm.compat.exif import turn_by_exif
from coc_mm.compat.mmcv_ext import install as install_mmcv_ext
from coc_mm.compat.on_import import on_import
from coc_mm.compat.tight_bbox import find_renderer
from coc_mm.compat.transformers5 import leave_out_multimodal

__all__ = ['install', 'on_import']


def install() -> None:
    """Let the libraries be changed when they are imported."""
    install_mmcv_ext()
    on_import('mmengine.config.utils', add_scopes)
    on_import('mmengine.config.config', keep_default_scope)
    on_import('mmcv.image.io', turn_by_exif)
    on_import('matplotlib._tight_bbox', find_renderer)
    on_import('mmpretrain.utils.dependency', leave_out_multimodal)
