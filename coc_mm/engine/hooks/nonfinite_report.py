"""What is said and kept of a batch whose loss or gradients are not finite."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from coc_mm.checkpoints.save import save_checkpoint
from coc_mm.errors import CheckpointError

__all__ = ['describe', 'files_of', 'plain', 'save_batch']

_PATHS = ('img_path', 'lidar_path', 'file_name')
_NAMED = 8  # files in a message
_PICTURED = 16  # images on a sheet


def describe(data_batch: Any, outputs: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """Say which numbers of an iteration are not finite, and of which files.

    Args:
        data_batch (Any): The batch, as the data loader gave it.
        outputs (Mapping): Losses by name, with their sum ``loss``.

    Returns:
        tuple[str, dict[str, float]]: A phrase, and the losses as numbers.
    """
    numbers = {name: _number(value) for name, value in outputs.items()}
    losses = {name: value for name, value in numbers.items() if value is not None}
    bad = [f'{name} is {value}' for name, value in losses.items() if not math.isfinite(value)]
    good = [f'{name} {value:.4g}' for name, value in losses.items() if math.isfinite(value)]
    if not bad:
        text = f'the gradients are not finite ({", ".join(good)})'
    else:
        text = ', '.join(bad) + (f' ({", ".join(good)})' if good else '')
    files = files_of(data_batch)
    if files:
        more = f' and {len(files) - _NAMED} more' if len(files) > _NAMED else ''
        text += f'; batch: {", ".join(files[:_NAMED])}{more}'
    return text, losses


def _number(value: Any) -> float | None:
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):  # e.g. a tensor of several elements
        return None


def files_of(data: Any) -> list[str]:
    """List the files that a batch was read from.

    Args:
        data (Any): Nested dicts, lists and data elements with ``img_path`` among their metainfo.

    Returns:
        list[str]: Paths in the order of the batch.
    """
    if isinstance(data, BaseDataElement):
        data = data.metainfo
    if isinstance(data, Mapping):
        own = [os.fspath(data[k]) for k in _PATHS if isinstance(data.get(k), (str, os.PathLike))]
        return own or [path for value in data.values() for path in files_of(value)]
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return [path for value in data for path in files_of(value)]
    return []


def plain(data: Any) -> Any:
    """Turn a batch into tensors, numbers, text and containers, which torch loads safely.

    Args:
        data (Any): Nested containers, data elements, arrays.

    Returns:
        Any: The like, for ``torch.load(..., weights_only=True)``; objects of other kinds, such
        as masks of polygons, as their text.
    """
    if isinstance(data, torch.Tensor):
        return data.detach().as_subclass(torch.Tensor).cpu().clone()  # not the storage of a view
    if isinstance(data, BaseDataElement):
        return dict(metainfo=plain(data.metainfo), **{k: plain(v) for k, v in data.all_items()})
    if isinstance(data, np.ndarray) and data.dtype != object:
        numeric = data.dtype.kind in 'biuf'
        return torch.from_numpy(np.ascontiguousarray(data)) if numeric else data.tolist()
    if isinstance(data, np.generic):
        return data.item()
    if isinstance(data, Mapping):
        return {k if isinstance(k, int) else str(k): plain(v) for k, v in data.items()}
    if isinstance(data, (tuple, list)):
        return [plain(value) for value in data]
    if data is None or type(data) in (bool, int, float, str):
        return data
    inner = getattr(data, 'tensor', None)  # boxes of mmdet
    if isinstance(inner, torch.Tensor):
        return plain(inner)
    return repr(data) if not isinstance(data, os.PathLike) else os.fspath(data)


def save_batch(runner: Runner, data_batch: Any, losses: dict[str, float], message: str) -> str:
    """Save a batch to ``nonfinite/iter_N.pth`` in the work dir, with a sheet of its images.

    Args:
        runner (Runner): The runner of the training.
        data_batch (Any): The batch, as the data loader gave it.
        losses (dict[str, float]): By name.
        message (str): What was found.

    Returns:
        str: Where it is, or why it could not be saved.
    """
    number = runner.iter + 1
    name = f'iter_{number}' + (f'_process_{get_rank()}' if get_world_size() > 1 else '')
    path = Path(runner.work_dir) / 'nonfinite' / f'{name}.pth'
    batch = data_batch if isinstance(data_batch, Mapping) else {'batch': data_batch}
    content = dict(plain(batch))
    content.update(iteration=number, epoch=runner.epoch + 1, losses=losses, message=message)
    try:
        save_checkpoint(content, path)
    except (CheckpointError, RuntimeError) as error:  # torch's writer raises the latter
        return f'its inputs could not be saved: {error}'
    sheet = path.with_suffix('.png')
    return f'saved in {path}' + (f' and {sheet.name}' if _draw(runner, data_batch, sheet) else '')


def _images(data_batch: Any) -> list[torch.Tensor]:
    """Find the images (C, H, W) of a batch; none where it holds something else."""
    inputs = data_batch.get('inputs') if isinstance(data_batch, Mapping) else None
    if not isinstance(inputs, (torch.Tensor, list, tuple)):
        return []
    images = [x for x in inputs if isinstance(x, torch.Tensor) and x.ndim == 3]
    return [x for x in images if x.shape[0] in (1, 3) and x.numel()][:_PICTURED]


def _draw(runner, data_batch: Any, path: Path) -> bool:
    from torchvision.utils import make_grid, save_image

    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    preprocessor = getattr(model, 'data_preprocessor', None)
    # OpenCV reads blue first; the preprocessor turns that around.
    turned = any(getattr(preprocessor, name, False) for name in ('_channel_conversion', 'to_rgb'))
    shown = []
    for image in _images(data_batch):
        image = image.detach().float().cpu()
        if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 255):
            image = torch.nan_to_num(image, posinf=0.0, neginf=0.0)
            image = 255 * (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
        image = (image.flip(0) if turned else image).expand(3, -1, -1) / 255
        shown.append(image)
    if not shown:
        return False
    height, width = (max(image.shape[d] for image in shown) for d in (1, 2))
    padded = [
        torch.nn.functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in shown
    ]
    try:
        save_image(make_grid(padded, nrow=math.ceil(len(padded) ** 0.5)), path)
    except OSError:  # the numbers have been saved; a picture is an extra
        return False
    return True
