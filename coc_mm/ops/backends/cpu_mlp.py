"""``x + fc2(gelu(fc1(norm(x))))`` in pieces."""

import threading
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from coc_mm.ops.backends.cpu_norm import affine, moments, norm_backward

# Hidden features of one piece, in bytes: they fit the last cache, and calls stay few.
PIECE = 8 << 20


def residual_mlp(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    residual: bool = True,
    own: bool = False,
) -> torch.Tensor:
    """Normalise, transform each point by an MLP with GELU, add the input.

    Args:
        x (Tensor): (B, H, W, C), float32 or float64, on the CPU.
        norm_weight (Tensor): (C,), scale of the norm over each image.
        norm_bias (Tensor): (C,), its offset.
        eps (float): Added to its variance.
        weight1 (Tensor): (hidden, C).
        bias1 (Tensor): (hidden,).
        weight2 (Tensor): (C, hidden).
        bias2 (Tensor): (C,).
        residual (bool): Whether the input is added. Defaults to True.
        own (bool): Whether the output may take the place of ``x`` where no gradient is wanted.
            Defaults to False.

    Returns:
        Tensor: (B, H, W, C).
    """
    tensors = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    if torch.compiler.is_compiling():
        # One opaque operator compiles in no time and is as fast; gradients need the whole.
        return (plain if torch.is_grad_enabled() else _opaque)(*tensors, eps, residual)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        # ctx.needs_input_grad does not know that gradients are switched off.
        return _forward(x.contiguous(), *tensors[1:], eps, residual, keep=False, own=own)[0]
    return _ResidualMLP.apply(*tensors, eps, residual)


def plain(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    eps: float,
    residual: bool,
) -> torch.Tensor:
    """The same in one piece, of operations that autograd knows."""
    out = F.group_norm(x.permute(0, 3, 1, 2), 1, norm_weight, norm_bias, eps).permute(0, 2, 3, 1)
    out = F.linear(F.gelu(F.linear(out, weight1, bias1)), weight2, bias2)
    return x + out if residual else out


def _pieces(shape, hidden, itemsize):
    """List slices of images and of points: several whole images, or a part of one."""
    images, points = shape[0], shape[1] * shape[2]
    rows = max(1, PIECE // (hidden * itemsize))
    if points > rows:
        parts = -(-points // rows)
        cuts = [points * i // parts for i in range(parts + 1)]
        spans = [slice(*cut) for cut in pairwise(cuts)]
        return [(slice(i, i + 1), span) for i in range(images) for span in spans]
    step = max(1, rows // points)
    return [(slice(i, min(i + step, images)), slice(0, points)) for i in range(0, images, step)]


class _Buffers:
    """Memory that all pieces, and all calls of a thread, use in turn: fresh pages are slow."""

    _of_thread = threading.local()

    def __init__(self, pieces, like):
        sizes = [
            (images.stop - images.start) * (points.stop - points.start) for images, points in pieces
        ]
        self.rows = max(sizes, default=0)
        self.like = like
        # What stands for a tensor (a fake one, say) must not be kept, nor meet what was.
        self.held: dict[Any, torch.Tensor] = (
            self._of_thread.__dict__ if type(like) is torch.Tensor else {}
        )

    def __call__(self, name, rows, channels):
        key, size = (name, self.like.dtype), self.rows * channels
        if key not in self.held or self.held[key].numel() < size:
            with torch.inference_mode(False):  # to be of use outside as well
                self.held[key] = self.like.new_empty(size)
        return self.held[key][: rows * channels].view(rows, channels)


def _normalised(x, scale, offset, images, points, buffers):
    x = x[images, points]
    out = buffers('y', x.shape[0] * x.shape[1], x.shape[2])
    torch.addcmul(offset[images, None], x, scale[images, None], out=out.view_as(x))
    return out


@torch.library.custom_op('coc_mm::residual_mlp', mutates_args=(), device_types='cpu')
def _opaque(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    eps: float,
    residual: bool,
) -> torch.Tensor:
    tensors = (norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    return _forward(x.contiguous(), *tensors, eps, residual, keep=False)[0]


@_opaque.register_fake
def _(x, *args):
    return x.new_empty(x.shape)


def _forward(
    x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, residual, keep, own=False
):
    """Return the output, and what the backward pass needs beside the arguments."""
    mean, rstd = moments(x, eps)
    # Hidden features before GELU, kept for the backward pass only.
    kept: Any = x.new_empty(*x.shape[:3], len(bias1)).flatten(1, 2) if keep else None
    scale, offset = affine(mean, rstd, norm_weight, norm_bias)
    out = x if own else torch.empty_like(x)
    flat, target = x.flatten(1, 2), out.flatten(1, 2)
    pieces = _pieces(x.shape, len(bias1), x.itemsize)
    buffers = _Buffers(pieces, x)
    for images, points in pieces:
        y = _normalised(flat, scale, offset, images, points, buffers)
        hidden = buffers('hidden', len(y), len(bias1))
        before = kept[images, points].flatten(0, 1) if keep else hidden
        torch.addmm(bias1, y, weight1.t(), out=before)
        torch.ops.aten.gelu.out(before, out=hidden)
        piece = target[images, points]
        if residual:
            torch.add(flat[images, points], bias2, out=piece)
        else:
            piece.copy_(bias2)
        piece.flatten(0, 1).addmm_(hidden, weight2.t())
    return out, mean, rstd, kept


class _ResidualMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, residual):
        x = x.contiguous()
        tensors = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
        out, *rest = _forward(*tensors, eps, residual, keep=True)
        ctx.save_for_backward(*tensors, *rest)
        ctx.eps, ctx.residual = eps, residual
        return out

    @staticmethod
    def backward(ctx, grad):
        x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, *rest = ctx.saved_tensors
        mean, rstd, kept = rest
        inputs = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
        if torch.is_grad_enabled():  # create_graph=True: the gradient of this gradient is wanted
            wanted = [t for t in inputs if t.requires_grad]
            out = plain(*inputs, ctx.eps, ctx.residual)
            grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            return (*(next(grads) if t.requires_grad else None for t in inputs), None, None)
        grad = grad.contiguous()
        scale, offset = affine(mean, rstd, norm_weight, norm_bias)
        grad_weight1, grad_weight2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        grad_bias1 = torch.zeros_like(bias1)
        grad_y = torch.empty_like(x)
        flat, flat_grad, target = (t.flatten(1, 2) for t in (x, grad, grad_y))
        pieces = _pieces(x.shape, 2 * len(bias1), x.itemsize)
        buffers = _Buffers(pieces, x)
        for images, points in pieces:
            y = _normalised(flat, scale, offset, images, points, buffers)
            piece = flat_grad[images, points].flatten(0, 1)
            hidden = kept[images, points].flatten(0, 1)
            active, grad_hidden = (buffers(name, len(y), len(bias1)) for name in ('active', 'grad'))
            torch.ops.aten.gelu.out(hidden, out=active)
            grad_weight2.addmm_(piece.t(), active)
            torch.mm(piece, weight2, out=active)
            torch.ops.aten.gelu_backward.grad_input(active, hidden, grad_input=grad_hidden)
            grad_weight1.addmm_(grad_hidden.t(), y)
            grad_bias1 += grad_hidden.sum(0)
            torch.mm(grad_hidden, weight1, out=target[images, points].flatten(0, 1))
        grad_x, grad_norm_weight, grad_norm_bias = norm_backward(grad_y, x, mean, rstd, norm_weight)
        if ctx.residual:
            grad_x = grad_x + grad
        grad_bias2 = grad.sum((0, 1, 2))
        return (
            *(grad_x, grad_norm_weight, grad_norm_bias),
            *(grad_weight1, grad_bias1, grad_weight2, grad_bias2, None, None),
        )
