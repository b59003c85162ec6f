"""Write a trained model for other runtimes: what ``tools/deployment/export.py`` runs."""

import argparse
import contextlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.model import revert_sync_batchnorm
from rich.console import Console
from torch import nn

from coc_mm.apis.config import load_config, merge_options
from coc_mm.apis.infer import load_model
from coc_mm.cli.options import add_cfg_options
from coc_mm.errors import UserError
from coc_mm.models.backbones import ContextCluster
from coc_mm.models.backbones.context_cluster import MIN_SIZE
from coc_mm.models.layers import ContextClusterBlock
from coc_mm.models.layers.context_cluster_block import _scaled
from coc_mm.ops.backends.linear_at_centers import (
    ExportableMixer,
    ExportableMLP,
    ExportableStage,
)

__all__ = ['DeployModel', 'export_program', 'run_export', 'write_onnx']

SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}
# The first with Gelu as one operator.
OPSET = 20
LARGEST = 16384  # pixels of a side; guards need an end


class DeployModel(nn.Module):
    """A model from pixels to what its head, or for detectors its neck, gives.

    Args:
        model (nn.Module): Of mmpretrain, mmdet or mmseg, in evaluation mode on the CPU, its
            backbone a :class:`ContextCluster`. Left as it is.
        scope (str): 'mmpretrain', 'mmdet' or 'mmseg'.
    """

    image_mean: torch.Tensor  # where the images are normalised
    image_std: torch.Tensor

    def __init__(self, model: nn.Module, scope: str) -> None:
        super().__init__()
        preprocessor: Any = model.data_preprocessor
        self.scope = scope
        # Images are read as BGR; what does not turn them is fed BGR.
        turns = getattr(preprocessor, 'to_rgb', getattr(preprocessor, '_channel_conversion', False))
        self.bgr = not turns
        self.normalises = bool(getattr(preprocessor, '_enable_normalize', False))
        if self.normalises:
            self.register_buffer('image_mean', preprocessor.mean.clone())
            self.register_buffer('image_std', preprocessor.std.clone())
        self.model = revert_sync_batchnorm(deepcopy(model)).eval().requires_grad_(False)
        backbone = self.model.backbone
        backbone.with_cp = False
        for stage, proposals, folds in zip(
            backbone.stages, backbone.proposals, backbone.folds, strict=True
        ):
            blocks = [_exportable(block) for block in stage.blocks]
            stage.blocks = nn.ModuleList([ExportableStage(blocks, proposals, folds)])

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs: 'scores', 'logits' or 'level0', 'level1', ..."""
        if self.scope == 'mmdet':
            neck = getattr(self.model, 'neck', None)
            levels = neck.num_outs if neck is not None else len(self.model.backbone.out_indices)
            return [f'level{i}' for i in range(levels)]
        return ['scores' if self.scope == 'mmpretrain' else 'logits']

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        """Run.

        Args:
            image (Tensor): (B, 3, H, W), RGB, 0 to 255, float32.

        Returns:
            tuple[Tensor]: mmpretrain: the probability of each class, (B, classes). mmseg: the
            logits of each class at the size of the image, (B, classes, H, W). mmdet: the maps
            of the neck, (B, C, H_i, W_i).
        """
        x = image.flip(1) if self.bgr else image
        if self.normalises:
            x = (x - self.image_mean) / self.image_std
        if self.scope == 'mmdet':
            return tuple(self.model.extract_feat(x))
        if self.scope == 'mmseg':
            meta = dict(img_shape=(image.shape[2], image.shape[3]))
            return (self.model.encode_decode(x, [meta]),)
        return (self.model(x, mode='tensor').softmax(1),)


def _exportable(block: ContextClusterBlock) -> tuple[ExportableMixer, ExportableMLP]:
    mixer, mlp = block.mixer, block.mlp
    out_weight, out_bias = _scaled(mixer.out_proj, block.layer_scale1)
    return (
        ExportableMixer(
            *(block.norm1, mixer.in_proj.weight, mixer.in_proj.bias, out_weight, out_bias),
            *(mixer.sim_alpha, mixer.sim_beta, mixer.num_heads, mixer.denominator),
        ),
        ExportableMLP(
            *(block.norm2, mlp.fc1.weight, mlp.fc1.bias),
            *_scaled(mlp.fc2, block.layer_scale2),
        ),
    )


def least_size(folds: Sequence[tuple[int, int]]) -> int:
    """Return the least side of an image whose regions are told apart while exporting.

    Args:
        folds (Sequence[tuple[int, int]]): Of the four stages.

    Returns:
        int: Pixels; every map has more rows and columns than regions.
    """
    wanted = 1
    for stage in reversed(folds):
        wanted = max(2 * wanted - 1, max(stage) + 1)
    return max(4 * wanted, MIN_SIZE)


def export_program(deployable: DeployModel, shape: tuple[int, int]) -> torch.export.ExportedProgram:
    """Trace a model, the number of images free, for dense models also their size.

    Args:
        deployable (DeployModel): The model.
        shape (tuple[int, int]): Height and width of the image to trace with; for classifiers
            the only one.

    Returns:
        torch.export.ExportedProgram: With one input, (B, 3, H, W).
    """
    free = {0: torch.export.Dim('batch', min=1, max=4096)}
    if deployable.scope != 'mmpretrain':
        least = least_size(deployable.model.backbone.folds)
        free[2] = torch.export.Dim('height', min=least, max=LARGEST)
        free[3] = torch.export.Dim('width', min=least, max=LARGEST)
    image = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad(), _plain_upsampling(deployable.scope), _quiet():
        return torch.export.export(
            deployable,
            (image,),
            dynamic_shapes=(free,),
            strict=False,
            # Which sizes of regions follow from those of maps is beyond the prover.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


@contextlib.contextmanager
def _plain_upsampling(scope):
    """Let mmseg double a size as a whole number: as ``int(2.0 * size)`` it would be fixed."""
    if scope != 'mmseg':
        yield
        return
    from mmseg.models.utils import Upsample, resize

    def forward(self, x):
        size = self.size or [n * int(self.scale_factor) for n in x.shape[-2:]]
        return resize(x, size, None, self.mode, self.align_corners)

    with mock.patch.object(Upsample, 'forward', forward):
        yield


@contextlib.contextmanager
def _quiet():
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


def write_onnx(
    program: torch.export.ExportedProgram, names: Sequence[str], path: Path, facts: dict[str, str]
) -> None:
    """Translate a program and write it.

    Args:
        program (torch.export.ExportedProgram): From :func:`export_program`.
        names (Sequence[str]): Of the outputs.
        path (Path): The file.
        facts (dict[str, str]): What the file says of itself.
    """
    import onnx

    with torch.no_grad(), _quiet(), contextlib.redirect_stdout(None):
        found = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, verbose=False, optimize=True
        )
    assert found is not None, 'dynamo=True makes a program'
    model = found.model_proto
    _rename(model.graph, model.graph.input, ['image'])
    _rename(model.graph, model.graph.output, names)
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, str(path))


def _rename(graph, values, names):
    """Give inputs or outputs names, everywhere that they occur."""
    new = dict(zip((value.name for value in values), names, strict=True))
    for value in values:
        value.name = new[value.name]
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [new.get(name, name) for name in ends]


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog='export.py',
        description='Write a trained model as ONNX or as a program of torch.export, after checking '
        'it against PyTorch on photographs.',
    )
    parser.add_argument('config', help='the config file')
    parser.add_argument('checkpoint', help='the checkpoint file')
    parser.add_argument('--format', required=True, choices=list(SUFFIXES), help='what to write')
    parser.add_argument(
        '--out', help='the file; default: ./work_dirs/CONFIG_NAME/CONFIG_NAME.onnx or .pt2'
    )
    parser.add_argument(
        '--images', help='check on the images of this folder; default: pictures of scikit-image'
    )
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar='N',
        help='height and width of the images, or both; classifiers take no other. '
        'Default: what the config tests with, 512 for detectors and segmentors',
    )
    parser.add_argument(
        '--rounds', type=int, default=5, help='times that each side is timed; default: 5'
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f'argument --rounds: at least 1, got {args.rounds}')
    if args.shape and len(args.shape) > 2:
        parser.error('argument --shape: one or two numbers')
    args.shape = args.shape and tuple(args.shape * 2 if len(args.shape) == 1 else args.shape)
    return args


def _test_size(config):
    """Height and width that a classifier is tested with."""
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    for step in reversed(dataset.get('pipeline') or []):
        size = step.get('crop_size', step.get('scale'))
        if isinstance(size, int):
            return size, size
        if size and len(size) == 2:
            return (*size,) if 'crop_size' in step else tuple(size[::-1])
    return 224, 224


def _target(args):
    stem, suffix = Path(args.config).stem, SUFFIXES[args.format]
    out = Path(args.out or Path('work_dirs') / stem / f'{stem}{suffix}')
    if out.is_dir():
        raise UserError(f'--out {out} is a folder; name a {suffix} file in it.')
    if out.suffix != suffix:
        raise UserError(f'--out {out}: --format {args.format} writes a {suffix} file; name one.')
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f'--out {out} cannot be written: {parent} is no folder to write into.')
    return out


def _need_runtime(format):
    try:
        if format == 'onnx':
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'--format onnx needs onnx, onnxscript and onnxruntime ({error}): '
            'pip install onnx onnxscript onnxruntime'
        ) from None


def _load(args):
    config = load_config(args.config, args.cfg_options)
    merge_options(config, args.cfg_options)
    model: Any = load_model(config, args.checkpoint)
    if not isinstance(getattr(model, 'backbone', None), ContextCluster):
        raise UserError(
            f'config {args.config} has no Context Cluster as its backbone; export works for those.'
        )
    scope = config.default_scope
    shape = args.shape or (_test_size(config) if scope == 'mmpretrain' else (512, 512))
    least = MIN_SIZE if scope == 'mmpretrain' else least_size(model.backbone.folds)
    if min(shape) < least or max(shape) > LARGEST:
        raise UserError(f'--shape: sides from {least} to {LARGEST} can be exported, got {shape}.')
    return model, scope, shape


def run_export(argv: Sequence[str] | None = None) -> None:
    """Export, check and time a model, as ``tools/deployment/export.py`` does.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Raises:
        UserError: The arguments or files cannot be used, the model cannot be traced, or what
            was traced disagrees with PyTorch; no file is left then.
        CheckpointError: The checkpoint cannot be read.
    """
    from coc_mm.apis.export_check import check, load_pictures, speed

    args = _parse(argv)
    out = _target(args)
    _need_runtime(args.format)
    model, scope, shape = _load(args)
    pictures = load_pictures(args.images)
    console = Console()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.stem}.part{out.suffix}')
    try:
        console.print('tracing, which takes a minute or several ...')
        names = _write(args, model, scope, shape, part)
        report = check(model, scope, args.format, part, names, pictures, shape)
        console.print(report.table())
        if not report.passed:
            raise UserError(
                f'what was exported gives something else than PyTorch: {report.reason}; '
                'nothing is written.'
            )
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    for line in speed(model, scope, args.format, out, pictures, shape, args.rounds):
        console.print(line)
    console.print(f'written: {out}', markup=False, highlight=False, soft_wrap=True)


def _write(args, model, scope, shape, path):
    """Trace and write; return the names of the outputs."""
    try:
        deployable = DeployModel(model, scope)
        names = deployable.output_names
        program = export_program(deployable, shape)
        if args.format == 'onnx':
            classes = (getattr(model, 'dataset_meta', getattr(model, '_dataset_meta', None))) or {}
            facts = dict(
                input='RGB, 0 to 255, float32, (batch, 3, height, width)',
                config=Path(args.config).name,
                classes=json.dumps(list(classes.get('classes') or [])),
            )
            write_onnx(program, names, path, facts)
        else:
            with _quiet():
                torch.export.save(program, path)
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # the tracers have no common class of errors
        if os.environ.get('COC_MM_TRACEBACK', '0') != '0':
            raise
        reason = next((x.strip() for x in str(error).split('\n') if x.strip()), '')
        raise UserError(
            f'this model cannot be exported: {type(error).__name__}: {reason[:300]}\n'
            'Heads other than linear classifiers and Semantic FPN may use what cannot be traced '
            'with free sizes (COC_MM_TRACEBACK=1 shows where).'
        ) from error
    return names
