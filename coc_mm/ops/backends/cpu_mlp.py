"""``x + fc2(gelu(fc1(norm(x))))`` on the CPU, tile by tile."""

import threading
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from coc_mm.ops.backends.reference import differentiable_grads

# Hidden features of one tile, in bytes: they fit the last cache, and calls stay few.
TILE_BYTES = 8 << 20


class MLPWeights(NamedTuple):
    """The tensors of the MLP half of a block."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor  # (C,)
    weight1: Tensor  # (hidden, C)
    bias1: Tensor  # (hidden,)
    weight2: Tensor  # (C, hidden)
    bias2: Tensor  # (C,)


def residual_mlp(
    x: Tensor, weights: MLPWeights, eps: float, residual: bool = True, inplace: bool = False
) -> Tensor:
    """Normalise each image of (B, H, W, C), apply an MLP with GELU to each point, add the input.

    All in float32 or float64. ``inplace`` lets the output take the place of ``x`` where no gradient
    is wanted.
    """
    if torch.compiler.is_compiling():  # one opaque operator compiles in no time; no gradients
        return _opaque(x, list(weights), eps, residual)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
        return _ResidualMLP.apply(x, *weights, eps, residual)
    # ctx.needs_input_grad does not know that gradients are switched off.
    return _forward(x.contiguous(), weights, eps, residual, inplace=inplace)[0]


@torch.library.custom_op(
    'coc_mm::residual_mlp',
    mutates_args=(),
    device_types='cpu',
    schema='(Tensor x, Tensor[] weights, float eps, bool residual) -> Tensor',
)
def _opaque(x, weights, eps, residual):
    return _forward(x.contiguous(), MLPWeights(*weights), eps, residual)[0]


@_opaque.register_fake
def _(x, *args):
    return x.new_empty(x.shape)


def _forward(x, w, eps, residual, keep=False, inplace=False):
    """Return the output, and what the backward pass needs beside the arguments."""
    mean, rstd = moments(x, eps)
    # Hidden features before GELU, kept for the backward pass only.
    kept = x.new_empty(*x.shape[:3], len(w.bias1)).flatten(1, 2) if keep else None
    scale, offset = affine(mean, rstd, w.norm_weight, w.norm_bias)
    out = x if inplace else torch.empty_like(x)
    flat, target = x.flatten(1, 2), out.flatten(1, 2)
    for images, points in _tiles(x, len(w.bias1)):
        y = _normalise(flat, scale, offset, images, points)
        hidden = _buffer('hidden', x, len(y), len(w.bias1))
        before = hidden if kept is None else kept[images, points].flatten(0, 1)
        torch.addmm(w.bias1, y, w.weight1.t(), out=before)
        torch.ops.aten.gelu.out(before, out=hidden)
        tile = target[images, points]
        if residual:
            torch.add(flat[images, points], w.bias2, out=tile)
        else:
            tile.copy_(w.bias2)
        tile.flatten(0, 1).addmm_(hidden, w.weight2.t())
    return out, mean, rstd, kept


class _ResidualMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *args):
        *weights, eps, residual = args
        x = x.contiguous()
        out, *saved = _forward(x, MLPWeights(*weights), eps, residual, keep=True)
        ctx.save_for_backward(x, *weights, *saved)
        ctx.eps, ctx.residual = eps, residual
        return out

    @staticmethod
    def backward(ctx, grad):
        x, *weights, mean, rstd, kept = ctx.saved_tensors
        w = MLPWeights(*weights)
        if torch.is_grad_enabled():  # create_graph=True: the gradient of this gradient is wanted

            def again(x, *weights):
                return _whole(x, MLPWeights(*weights), ctx.eps, ctx.residual)

            return (*differentiable_grads(again, (x, *w), grad), None, None)
        grad = grad.contiguous()
        scale, offset = affine(mean, rstd, w.norm_weight, w.norm_bias)
        grad_weight1, grad_weight2 = torch.zeros_like(w.weight1), torch.zeros_like(w.weight2)
        grad_bias1 = torch.zeros_like(w.bias1)
        grad_y = torch.empty_like(x)
        flat, flat_grad, target = (t.flatten(1, 2) for t in (x, grad, grad_y))
        for images, points in _tiles(x, 2 * len(w.bias1)):
            y = _normalise(flat, scale, offset, images, points)
            above = flat_grad[images, points].flatten(0, 1)
            hidden = kept[images, points].flatten(0, 1)
            active, grad_hidden = (_buffer(n, x, *hidden.shape) for n in ('active', 'grad'))
            torch.ops.aten.gelu.out(hidden, out=active)
            grad_weight2.addmm_(above.t(), active)
            torch.mm(above, w.weight2, out=active)
            torch.ops.aten.gelu_backward.grad_input(active, hidden, grad_input=grad_hidden)
            grad_weight1.addmm_(grad_hidden.t(), y)
            grad_bias1 += grad_hidden.sum(0)
            torch.mm(grad_hidden, w.weight1, out=target[images, points].flatten(0, 1))
        grad_x, *grad_norm = norm_backward(grad_y, x, mean, rstd, w.norm_weight)
        if ctx.residual:
            grad_x = grad_x + grad
        grad_bias2 = grad.sum((0, 1, 2))
        grads = (*grad_norm, grad_weight1, grad_bias1, grad_weight2, grad_bias2)
        return (grad_x, *grads, None, None)


def _whole(x, w, eps, residual):
    """The same of operations that autograd knows."""
    out = F.group_norm(x.permute(0, 3, 1, 2), 1, w.norm_weight, w.norm_bias, eps)
    out = F.gelu(F.linear(out.permute(0, 2, 3, 1), w.weight1, w.bias1))
    out = F.linear(out, w.weight2, w.bias2)
    return x + out if residual else out


def _tiles(x, hidden):
    """List slices of images and of points: several whole images, or a part of one."""
    images, points = x.shape[0], x.shape[1] * x.shape[2]
    most = max(1, TILE_BYTES // (hidden * x.itemsize))
    if points > most:
        parts = -(-points // most)
        spans = [slice(*ends) for ends in pairwise(points * i // parts for i in range(parts + 1))]
        return [(slice(i, i + 1), span) for i in range(images) for span in spans]
    step = max(1, most // points)
    return [(slice(i, min(i + step, images)), slice(0, points)) for i in range(0, images, step)]


_BUFFERS = threading.local()


def _buffer(name, like, rows, channels):
    """Return memory that all tiles and calls of a thread use in turn: fresh pages are slow."""
    key, size, held = f'{name} {like.dtype}', rows * channels, vars(_BUFFERS)
    if key not in held or held[key].numel() < size:
        with torch.inference_mode(False):  # to be of use outside as well
            held[key] = like.new_empty(size)
    return held[key][:size].view(rows, channels)


def _normalise(x, scale, offset, images, points):
    x = x[images, points]
    out = _buffer('y', x, x.shape[0] * x.shape[1], x.shape[2])
    torch.addcmul(offset[images, None], x, scale[images, None], out=out.view_as(x))
    return out


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and inverse standard deviation (B,) of each image (B, H, W, C), contiguous."""
    x = x.flatten(1, 2)
    mean = x.mean((1, 2))
    # var_mean is ten times slower here. Point by point first: a single sum over
    # 200 000 squares would lose digits in float32.
    square = torch.linalg.vector_norm(x, dim=2).square().mean(1) / x.shape[2]
    return mean, (square - mean.square()).clamp_min(0).add(eps).rsqrt()


def affine(mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm as one product and one sum per channel, (B, C) each."""
    scale = rstd[:, None] * weight
    return scale, bias - mean[:, None] * scale


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input (B, H, W, C), weight and bias (C,) of the norm."""
    b, h, w, c = x.shape
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
        *(grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), mean[:, None], rstd[:, None], weight),
        *(b, c, h * w, 1, [True, True, True]),
    )
    return grad_x.permute(0, 2, 3, 1), grad_weight, grad_bias
