"""mmcv's compiled operators on top of torchvision and plain PyTorch.

Each function has the name, the argument names, their order and the in-place
outputs of the binding in ``mmcv/ops/csrc/pytorch/pybind.cpp`` that it stands in
for, so that ``mmcv/ops/*.py`` calls it unchanged. What holds for all:

- CPU and CUDA tensors, empty and non-contiguous ones.
- float64 is computed in float64, every other type in float32: half and bfloat16,
  as autocast delivers them, are widened first and rounded once at the end, where
  the compiled operators compute in half and refuse bfloat16.
- Python floats become C floats first wherever the compiled signature says
  ``float``, because comparisons such as ``iou > 0.6`` hinge on it.

Only ``mmcv._ext`` imports this package (:mod:`coc_mm.compat.mmcv_ext`); it is
where torchvision is imported.
"""

import torchvision

from coc_mm.compat.mmcv_operators.boxes import nms, nms_match, softnms
from coc_mm.compat.mmcv_operators.deform import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from coc_mm.compat.mmcv_operators.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from coc_mm.compat.mmcv_operators.roi_align import roi_align_backward, roi_align_forward


def get_compiler_version() -> str:
    """Say, where mmcv reports its compiler, that there was none.

    Returns:
        str: A phrase for environment reports.
    """
    return f'not compiled (coc_mm, torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Say which CUDA mmcv was compiled with: none.

    Returns:
        str: What mmcv itself answers when compiled without CUDA.
    """
    return 'not available'


OPERATORS = {
    function.__name__: function
    for function in (
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        deform_conv_forward,
        get_compiler_version,
        get_compiling_cuda_version,
        modulated_deform_conv_backward,
        modulated_deform_conv_forward,
        ms_deform_attn_backward,
        ms_deform_attn_forward,
        nms,
        nms_match,
        roi_align_backward,
        roi_align_forward,
        sigmoid_focal_loss_backward,
        sigmoid_focal_loss_forward,
        softmax_focal_loss_backward,
        softmax_focal_loss_forward,
        softnms,
    )
}
