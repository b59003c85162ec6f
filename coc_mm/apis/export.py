"""Export a trained model to ONNX or as a program of torch.export."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from coc_mm.models.backbones.context_cluster import MIN_SIZE

#: Format -> suffix of the file.
SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}
#: Greatest side of an image in pixels, for the guards of a traced program.
MAX_SIZE = 16384
_OPSET = 20  # the first with Gelu as one operator


class DeployModel(nn.Module):
    """A model from pixels to what its head, or for detectors its neck, gives.

    Args:
        model (nn.Module): In evaluation mode on the CPU, its backbone a :class:`ContextCluster`;
            it is copied.
        scope (str): 'mmpretrain', 'mmdet' or 'mmseg'.
    """

    image_mean: torch.Tensor  # where the images are normalized
    image_std: torch.Tensor

    def __init__(self, model: nn.Module, scope: str) -> None:
        super().__init__()
        preprocessor: Any = model.data_preprocessor
        self.scope = scope
        self.model: Any = revert_sync_batchnorm(deepcopy(model)).eval().requires_grad_(False)
        backbone = self.model.backbone
        backbone.with_cp = False
        for block in chain(*backbone.blocks):
            block.fold()
        self.channels = backbone.in_channels
        # Images are read as BGR; what does not turn them is fed BGR.
        turns = getattr(preprocessor, 'to_rgb', getattr(preprocessor, '_channel_conversion', False))
        self.bgr = self.channels == 3 and not turns
        kinds = type(getattr(model, 'head', None)).__mro__
        self.multilabel = 'MultiLabelClsHead' in [kind.__name__ for kind in kinds]
        self.normalizes = bool(getattr(preprocessor, '_enable_normalize', False))
        if self.normalizes:
            self.register_buffer('image_mean', preprocessor.mean.clone())
            self.register_buffer('image_std', preprocessor.std.clone())

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs: 'scores', 'logits' or 'level0', 'level1', ..."""
        if self.scope == 'mmdet':
            neck = getattr(self.model, 'neck', None)
            levels = neck.num_outs if neck is not None else len(self.model.backbone.out_indices)
            return [f'level{i}' for i in range(levels)]
        return ['scores' if self.scope == 'mmpretrain' else 'logits']

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        """Run on images (B, C, H, W), RGB where C is 3, 0 to 255, float32.

        Gives probabilities (B, classes), logits (B, classes, H, W) or, of a detector, the maps
        of its neck (B, C, H_i, W_i).
        """
        x = image.flip(1) if self.bgr else image
        if self.normalizes:
            x = (x - self.image_mean) / self.image_std
        if self.scope == 'mmdet':
            return tuple(self.model.extract_feat(x))
        if self.scope == 'mmseg':
            return (self.model.encode_decode(x, [dict(img_shape=tuple(image.shape[2:]))]),)
        scores = self.model(x, mode='tensor')
        return (scores.sigmoid() if self.multilabel else scores.softmax(1),)


def min_size(scope: str, folds: Sequence[tuple[int, int]]) -> int:
    """Return the least side of an image that can be exported, in pixels.

    To be traced, each map of a dense model needs more rows and columns than ``folds``.
    """
    if scope == 'mmpretrain':
        return MIN_SIZE
    wanted = 1
    for stage in reversed(folds):
        wanted = max(2 * wanted - 1, max(stage) + 1)
    return max(4 * wanted, MIN_SIZE)


def export_program(deployable: DeployModel, shape: tuple[int, int]) -> torch.export.ExportedProgram:
    """Trace a model with the number of images free, for dense models also their size.

    ``shape``, height and width, is the size to trace with; for classifiers the only one.
    """
    free = {0: torch.export.Dim('batch', min=1, max=4096)}
    if deployable.scope != 'mmpretrain':
        least = min_size(deployable.scope, deployable.model.backbone.folds)
        free[2] = torch.export.Dim('height', min=least, max=MAX_SIZE)
        free[3] = torch.export.Dim('width', min=least, max=MAX_SIZE)
    random = torch.Generator().manual_seed(0)
    image = torch.rand(2, deployable.channels, *shape, generator=random) * 255
    upsampling = contextlib.nullcontext if deployable.scope != 'mmseg' else _plain_upsampling
    with torch.no_grad(), upsampling(), _quiet():
        # Which sizes of regions follow from those of maps is beyond the prover.
        settings: dict = dict(strict=False, prefer_deferred_runtime_asserts_over_guards=True)
        return torch.export.export(deployable, (image,), dynamic_shapes=(free,), **settings)


@contextlib.contextmanager
def _plain_upsampling() -> Iterator[None]:
    """Let mmseg double a size as a whole number: as ``int(2.0 * size)`` it would be fixed."""
    from mmseg.models.utils import Upsample, resize

    def forward(self, x):
        size = self.size or [n * int(self.scale_factor) for n in x.shape[-2:]]
        return resize(x, size, None, self.mode, self.align_corners)

    with mock.patch.object(Upsample, 'forward', forward):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


def save_program(
    program: torch.export.ExportedProgram,
    path: Path,
    names: Sequence[str],
    facts: Mapping[str, str],
) -> None:
    """Write a program as ``.pt2`` or ``.onnx``, there with names of outputs and metadata."""
    if path.suffix == SUFFIXES['torch-export']:
        with _quiet():
            torch.export.save(program, path)
        return
    import onnx

    with torch.no_grad(), _quiet(), contextlib.redirect_stdout(None):
        found = torch.onnx.export(
            program, dynamo=True, opset_version=_OPSET, verbose=False, optimize=True
        )
    assert found is not None  # with dynamo=True
    model = found.model_proto
    _rename(model.graph, model.graph.input, ['image'])
    _rename(model.graph, model.graph.output, names)
    onnx.helper.set_model_props(model, dict(facts))
    onnx.save(model, str(path))


def _rename(graph, values, names):
    new = dict(zip((value.name for value in values), names, strict=True))
    for value in values:
        value.name = new[value.name]
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [new.get(name, name) for name in ends]
