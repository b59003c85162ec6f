"""Hold an exported model against PyTorch, and time both.

Which center a point joins is a choice: where two are equally near, rounding decides, and another
order of summation may decide otherwise. So what the exported model chose is read from it and given
to PyTorch's reference formulation, which must then agree to 1e-4; every choice that PyTorch would
have made otherwise must be such a tie, and is counted.
"""

import contextlib
import functools
import importlib.util
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from rich.table import Table

from coc_mm.apis.export import min_size
from coc_mm.errors import UserError
from coc_mm.models.layers import ContextClusterMixer
from coc_mm.ops.backends import reference
from coc_mm.ops.regions import region_layout
from coc_mm.utils.images import find_images, read_picture

TOLERANCE = 1e-4  # of the greatest value of a map
TIE = 1e-4  # of the similarity, which lies between 0 and 1
_PICTURES = ('astronaut', 'chelsea', 'coffee', 'rocket')
_MAX_PICTURES = 8


def load_pictures(
    folder: str | None = None, channels: int = 3, load: Any = None
) -> list[torch.Tensor]:
    """Read at most eight photographs of a folder, or scikit-image's: (1, C, H, W), RGB, 0 to 255.

    ``load`` is the config's loader. Bands are repeated or left out for other than three channels.
    """
    if folder is not None:
        files = find_images(folder)[:_MAX_PICTURES]
        images = [read_picture(file, load)[1] for file in files]
    elif importlib.util.find_spec('skimage') is None:
        raise UserError(
            'no photographs to check on: name some with --images FOLDER, '
            'or pip install scikit-image'
        )
    else:
        from skimage import data

        images = [getattr(data, name)() for name in _PICTURES]
    bands = [i % 3 for i in range(channels)]
    return [torch.tensor(x[..., bands]).permute(2, 0, 1)[None].float() for x in images]


def batch_of(pictures: Sequence[torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Resize pictures to one batch, (B, C, H, W), whole numbers from 0 to 255."""
    resized = [
        F.interpolate(x, tuple(shape), mode='bilinear', antialias=True).round().clamp(0, 255)
        for x in pictures
    ]
    return torch.cat(resized)


class Exported:
    """An exported file, ready to run; if ``watched``, it also tells the centers it chose."""

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
        """Run on images (B, C, H, W): outputs and choices, indices (B, R, N, E) per mixer."""
        if self.onnx:
            found = self.session.run(None, {'image': image.numpy()})
            outs = [torch.from_numpy(x) for x in found]
            return outs[: self.count], outs[self.count :]
        with torch.no_grad():
            if not self.watched:
                return list(self.module(image)), []
            watch = _Watch(self.module)
            return list(watch.run(image)), watch.choices


class _Watch(torch.fx.Interpreter):
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
    """Choices that PyTorch would make otherwise."""

    points: int = 0  # choices made
    other: int = 0  # those that differ
    widest: float = 0.0  # greatest difference in similarity between what the two chose


@contextlib.contextmanager
def replaying(model: torch.nn.Module, choices: Sequence[torch.Tensor]) -> Iterator[AssignmentTies]:
    """Let mixers, in their order, take choices (B, R, N, E); yield what they chose otherwise."""
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
        for mixer in _mixers(model):  # each, or blocks bypass their mixer
            bound = functools.partial(forward, mixer)
            stack.enter_context(mock.patch.object(mixer, 'forward', bound))
        yield ties


def _mixers(model):
    return [module for module in model.modules() if isinstance(module, ContextClusterMixer)]


def check(
    model: Any,
    scope: str,
    path: Path,
    names: Sequence[str],
    pictures: Sequence[torch.Tensor],
    shape: tuple[int, int],
) -> tuple[Table, str]:
    """Compare an exported file with PyTorch, up to the first thing that differs.

    ``names`` are those of its outputs, ``shape`` is height and width. Returned are a table with a
    row per batch and why the check failed, empty if it passed.
    """
    exported = Exported(path, watched=True)
    table = Table(
        *('images', 'error, of the greatest value', 'ties of centers', 'of choices', 'labels'),
        title='the exported model beside PyTorch',
    )
    least = min_size(scope, model.backbone.folds)
    mixers = len(_mixers(model))
    count, last, (height, width) = len(pictures), shape, shape
    if scope != 'mmpretrain':  # dense models take odd sizes, too
        count, last = min(2, count), (height - height // 5, width - width // 7 + 1)
    for batch, size in ((1, shape), (count, last)):
        image = batch_of(pictures[:batch], (max(size[0], least), max(size[1], least)))
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
            why = f'a point joined a center {ties.widest:.1e} less similar than the best'
            return table, f'{label}: {why}'
        if not same:
            return table, f'{label}: the likeliest class differs'
    return table, ''


def _compare_labels(
    scope: str, found: torch.Tensor, replayed: torch.Tensor, plain: torch.Tensor
) -> tuple[str, bool]:
    """Say how many labels equal PyTorch's own, and whether that may be so."""
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
        seconds = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            exported(image)
            middle = time.perf_counter()
            library_outputs(model, scope, image)
            seconds.append((middle - start, time.perf_counter() - middle))
        ours, theirs = map(statistics.median, zip(*seconds[1:], strict=True))
        yield (
            f'{"x".join(map(str, image.shape))}, {torch.get_num_threads()} threads, medians of '
            f'{rounds}: {runtime} {1000 * ours:.1f} ms, PyTorch {1000 * theirs:.1f} ms '
            f'({theirs / ours:.2f} x)'
        )
