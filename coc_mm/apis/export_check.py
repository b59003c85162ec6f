"""Hold an exported model against PyTorch, and time both.

Which center a point joins is a choice: where two are equally near, rounding decides, and another
order of summation may decide otherwise. So what the exported model chose is read from it and given
to PyTorch's reference formulation, which must then agree to 1e-4; every choice that PyTorch would
have made otherwise must be such a tie, and is counted.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table

from coc_mm.apis.export import min_size
from coc_mm.errors import UserError
from coc_mm.models.layers import ContextClusterMixer
from coc_mm.ops.backends import reference
from coc_mm.ops.regions import region_layout
from coc_mm.utils.images import find_images, read_image, to_picture

__all__ = ['AssignmentTies', 'Exported', 'check', 'load_pictures', 'speed']

TOLERANCE = 1e-4  # of the greatest value of a map
TIE = 1e-4  # of the similarity, which lies between 0 and 1
_PICTURES = ('astronaut', 'chelsea', 'coffee', 'rocket')
_MAX_PICTURES = 8


def load_pictures(folder: str | None = None, channels: int = 3) -> list[torch.Tensor]:
    """Read photographs.

    Args:
        folder (str, optional): Of images; by default those of scikit-image, else scikit-learn.
        channels (int): C; other than three are gray or repeated bands. Defaults to 3.

    Returns:
        list[Tensor]: (1, C, H, W), RGB, 0 to 255, float32; at most eight.

    Raises:
        UserError: No image, or one that cannot be read.
    """
    if folder is None:
        images = _own_pictures()
    else:
        files = find_images(folder)[:_MAX_PICTURES]
        images = [to_picture(read_image(file)['img']) for file in files]
    bands = [i % 3 for i in range(channels)]
    return [torch.tensor(x[..., bands]).permute(2, 0, 1)[None].float() for x in images]


def _own_pictures() -> list[np.ndarray]:
    try:
        from skimage import data

        return [getattr(data, name)() for name in _PICTURES]
    except (ImportError, OSError):
        pass
    try:
        from sklearn.datasets import load_sample_images

        return load_sample_images().images
    except ImportError:
        raise UserError(
            'no photographs to check on: name some with --images FOLDER, '
            'or pip install scikit-image'
        ) from None


def batch_of(pictures: Sequence[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Resize pictures to one batch, (B, C, H, W), whole numbers from 0 to 255."""
    resized = [
        F.interpolate(x, tuple(shape), mode='bilinear', antialias=True).round().clamp(0, 255)
        for x in pictures
    ]
    return torch.cat(resized)


class Exported:
    """An exported file, ready to run.

    Args:
        path (Path): ``.onnx``, else a program of torch.export.
        watched (bool): Whether the centers that it chose are wanted too. Defaults to False.
    """

    def __init__(self, path: Path, watched: bool = False) -> None:
        self.onnx, self.watched = path.suffix == '.onnx', watched
        if self.onnx:
            import onnx
            import onnxruntime

            model = onnx.load(str(path))
            self.count = len(model.graph.output)
            if watched:
                for node in model.graph.node:
                    if node.op_type == 'ArgMax':
                        model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            self.session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=['CPUExecutionProvider']
            )
        else:
            self.module = torch.export.load(path).module()

    def __call__(self, image: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run on images (B, C, H, W).

        Returns:
            tuple[list[Tensor], list[Tensor]]: The outputs; if watched, the choices, one map of
            indices (B, R, N, E) per mixer.
        """
        if self.onnx:
            outs = self.session.run(None, {'image': image.numpy()})
            outs = [torch.from_numpy(x) for x in outs]
            return outs[: self.count], outs[self.count :]
        with torch.no_grad():
            if not self.watched:
                return list(self.module(image)), []
            watch = _Watch(self.module)
            return list(watch.run(image)), watch.choices


class _Watch(torch.fx.Interpreter):
    """Run a graph and note the choices of centers."""

    def __init__(self, module):
        super().__init__(module)
        self.choices = []

    def run_node(self, node):
        out = super().run_node(node)
        if node.target is torch.ops.aten.max.dim:
            self.choices.append(out[1])
        return out


def library_outputs(model: Any, scope: str, image: torch.Tensor) -> list[torch.Tensor]:
    """Run a library's own functions on images as :class:`Exported` takes them."""
    height, width = image.shape[2:]
    pixels = image.to(torch.uint8)
    if image.shape[1] == 3:
        pixels = pixels.flip(1)  # BGR, as images are read
    data = dict(inputs=pixels if scope == 'mmpretrain' else list(pixels), data_samples=None)
    with torch.inference_mode():
        inputs = model.data_preprocessor(data, False)['inputs'][..., :height, :width]
        if scope == 'mmdet':
            return list(model.extract_feat(inputs))
        if scope == 'mmseg':
            return [model.encode_decode(inputs, [dict(img_shape=(height, width))] * len(image))]
        return [torch.stack([sample.pred_score for sample in model.predict(inputs)])]


@dataclass
class AssignmentTies:
    """Choices that PyTorch would make otherwise.

    Attributes:
        points (int): Choices made.
        other (int): Those that differ.
        widest (float): Greatest difference in similarity between what the two chose.
    """

    points: int = 0
    other: int = 0
    widest: float = 0.0


@contextlib.contextmanager
def replaying(model: torch.nn.Module, choices: Sequence[torch.Tensor]) -> Iterator[AssignmentTies]:
    """Let mixers take choices instead of making them, by the reference.

    Args:
        model (nn.Module): The model.
        choices (list[Tensor]): (B, R, N, E) each, in the order of the mixers.

    Yields:
        AssignmentTies: What the mixers would have chosen otherwise.
    """
    ties, left = AssignmentTies(), list(choices)

    def forward(mixer, x):
        features, values = mixer.project(x)
        layout = region_layout(features, mixer.proposals, mixer.folds)
        alpha, beta = mixer.sim_alpha, mixer.sim_beta
        s = reference.similarity(layout.split(features), alpha, beta, layout)
        index = left.pop(0).reshape(s.shape[0], s.shape[1], s.shape[4], s.shape[2]).mT
        gap = s.amax(-2) - s.gather(-2, index.unsqueeze(-2)).squeeze(-2)  # (B, R, E, N)
        other = index != s.argmax(-2)
        if layout.valid is not None:
            gap, other = gap * layout.valid[:, None], other & layout.valid[:, None]
        ties.points += x.shape[:3].numel() * mixer.num_heads
        ties.other += int(other.sum())
        ties.widest = max(ties.widest, gap.max().item())
        out = reference.forward(
            *(features, values, alpha, beta, layout, mixer.denominator), assignment=index
        )
        return mixer.out_proj(out.flatten(-2))

    with contextlib.ExitStack() as stack:
        for mixer in model.modules():
            if isinstance(mixer, ContextClusterMixer):
                stack.enter_context(
                    mock.patch.object(mixer, 'forward', functools.partial(forward, mixer))
                )
        yield ties


def _shapes(scope: str, shape: tuple[int, int], count: int) -> list[tuple[int, int, int]]:
    """Batches and sizes to check on: for dense models also odd ones."""
    if scope == 'mmpretrain':
        return [(1, *shape), (count, *shape)]
    height, width = shape
    return [(1, height, width), (min(2, count), height - height // 5, width - width // 7 + 1)]


def check(
    model: Any,
    scope: str,
    path: Path,
    names: Sequence[str],
    pictures: Sequence[torch.Tensor],
    shape: tuple[int, int],
) -> tuple[Table, str]:
    """Compare an exported file with PyTorch, up to the first thing that differs.

    Args:
        model (nn.Module): The model.
        scope (str): Its library.
        path (Path): The file.
        names (list[str]): Of the outputs.
        pictures (list[Tensor]): From :func:`load_pictures`.
        shape (tuple[int, int]): Height and width.

    Returns:
        tuple[Table, str]: A row per batch; why the check failed, empty if it passed.
    """
    exported = Exported(path, watched=True)
    table = Table(
        *('images', 'error, of the greatest value', 'ties of centers', 'of choices', 'labels'),
        title='the exported model beside PyTorch',
    )
    least = min_size(scope, model.backbone.folds)
    mixers = sum(isinstance(m, ContextClusterMixer) for m in model.modules())
    for count, height, width in _shapes(scope, shape, len(pictures)):
        height, width = max(height, least), max(width, least)
        image = batch_of(pictures[:count], (height, width))
        found, choices = exported(image)
        if len(choices) != mixers:
            raise RuntimeError(f'{len(choices)} choices in the graph, {mixers} mixers in the model')
        with replaying(model, choices) as ties:
            wanted = library_outputs(model, scope, image)
        plain = library_outputs(model, scope, image)
        for name, ours, theirs in zip(names, found, wanted, strict=True):
            if ours.shape != theirs.shape:
                return table, f'{name} is {tuple(ours.shape)}, not {tuple(theirs.shape)}'
        error = max(
            float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
            for ours, theirs in zip(found, wanted, strict=True)
        )
        label = 'x'.join(map(str, image.shape))
        replayed = wanted[0] if ties.other else plain[0]
        labels, same = _compare_labels(scope, found[0], replayed, plain[0])
        table.add_row(label, f'{error:.1e}', str(ties.other), str(ties.points), labels)
        if not error <= TOLERANCE:
            return table, f'{label}: maps differ by {error:.1e} of their greatest value'
        if ties.widest > TIE:
            return table, (
                f'{label}: a point joined a center {ties.widest:.1e} less similar than the best'
            )
        if not same:
            return table, f'{label}: the likeliest class differs'
    return table, ''


def _compare_labels(
    scope: str, found: torch.Tensor, replayed: torch.Tensor, plain: torch.Tensor
) -> tuple[str, bool]:
    """Say how many labels equal PyTorch's own; whether a classifier's may be so."""
    if scope == 'mmdet':
        return '', True
    ours, theirs = found.argmax(1), plain.argmax(1)
    if scope == 'mmseg':
        share = (ours == theirs).float().mean().item()
        return f'{100 * share:.3f} % of pixels equal', True
    same = int((ours == theirs).sum())
    passed = same == len(ours) or torch.equal(ours, replayed.argmax(1))
    return f'{same} of {len(ours)} equal', passed


def speed(
    model: Any,
    scope: str,
    path: Path,
    pictures: Sequence[torch.Tensor],
    shape: tuple[int, int],
    rounds: int,
) -> Iterator[str]:
    """Time the exported file and PyTorch in turn; yield a line per batch (see :func:`check`)."""
    exported = Exported(path)
    runtime = 'onnxruntime' if exported.onnx else 'torch.export'
    for batch in (1, 8) if scope == 'mmpretrain' else (1,):
        image = batch_of([pictures[i % len(pictures)] for i in range(batch)], shape)
        calls = (
            lambda image=image: exported(image),
            lambda image=image: library_outputs(model, scope, image),
        )
        seconds: list[list[float]] = [[], []]
        for turn in range(rounds + 1):
            for call, kept in zip(calls, seconds, strict=True):
                start = time.perf_counter()
                call()
                if turn:
                    kept.append(time.perf_counter() - start)
        ours, theirs = map(statistics.median, seconds)
        yield (
            f'{"x".join(map(str, image.shape))}, {torch.get_num_threads()} threads, medians of '
            f'{rounds}: {runtime} {1000 * ours:.1f} ms, PyTorch {1000 * theirs:.1f} ms '
            f'({theirs / ours:.2f} x)'
        )
