"""The operator as CUDA kernels written in Triton, registered with PyTorch's dispatcher.

The points are read from and written to the layout of the projections: both spaces in one tensor or
in two, regions found by arithmetic, nothing rearranged or padded. Similarities, sums and everything
between are float32 whatever the points are. ``coc_mm::context_cluster`` is opaque to compilers,
with shapes and gradients registered, so that ``torch.compile``, ``torch.export`` and automatic
mixed precision pass through. Equal values give the same bits every time, whatever their strides.
"""

import importlib.util
import os
import warnings

import torch

from coc_mm.ops.backends import ClusterSettings, in_float32, matmul

MAX_CENTERS = 256  # the center of a point is kept in a byte
MAX_CHANNELS = 128
# Centers x channels, filled up to powers of two: sums that registers hold, and tiles that the
# 99 KiB of shared memory of the smaller devices do.
MAX_BLOCK = 8192
MAX_PROGRAMS = 2**31 - 1
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Read once, as the kernels are compiled or interpreted for the life of the process.
INTERPRETED = os.environ.get('TRITON_INTERPRET', '0') == '1'
INSTALLED = importlib.util.find_spec('triton') is not None
# Why the kernels are left alone for the rest of the process, after they failed once.
_failure: str | None = None


def can_run_triton(
    features: torch.Tensor,
    proposals: tuple[int, int] = (2, 2),
    folds: tuple[int, int] = (1, 1),
    raise_error: bool = False,
) -> bool:
    """Say whether the Triton kernels run on these points.

    They do for float32, float16 and bfloat16 on a CUDA device of compute capability 8.0 or more,
    and on the CPU where the environment has had ``TRITON_INTERPRET=1`` since the start.
    ``raise_error`` raises a RuntimeError with the reason instead of returning False.
    """
    reason = _refusal(features, proposals, folds)
    if reason and raise_error:
        raise RuntimeError(f"the 'triton' backend cannot run: {reason}; backend='matmul' can")
    return reason is None


def _refusal(features, proposals, folds):
    device = features.device
    if not INSTALLED:
        return 'the package triton is not installed'
    if device.type != 'cuda' and not (device.type == 'cpu' and INTERPRETED):
        return (
            f'the points are on {device.type}, not on a CUDA device (the CPU serves for testing, '
            'with TRITON_INTERPRET=1 set before Python starts)'
        )
    if device.type == 'cuda':
        capability = _capability(device.index or 0)
        if capability is None:
            return 'it is for CUDA, and this PyTorch was built for ROCm'
        if capability < (8, 0):
            return f'compute capability {capability[0]}.{capability[1]} is below 8.0'
    if features.dtype not in DTYPES:
        return f'the points are {features.dtype}, not one of {", ".join(map(str, DTYPES))}'
    return _excess(features.shape, proposals, folds) or _failure


def _excess(shape, proposals, folds):
    batch, height, width, heads, channels = shape
    centers = proposals[0] * proposals[1]
    if centers > MAX_CENTERS:
        return f'{centers} centers per region are more than {MAX_CENTERS}'
    if channels > MAX_CHANNELS:
        return f'{channels} channels per head are more than {MAX_CHANNELS}'
    block_m, block_d = (max(16, 1 << (n - 1).bit_length()) for n in (centers, channels))
    if block_m * block_d > MAX_BLOCK:
        return (
            f'{centers} centers of {channels} channels (filled up to powers of two) are more than '
            f'{MAX_BLOCK} numbers'
        )
    groups = batch * heads * min(folds[0], height) * min(folds[1], width)
    # A compiler would note this as a bound of every size that is left open.
    if not torch.compiler.is_compiling() and groups > MAX_PROGRAMS:
        return f'images x regions x heads are {groups}, more than {MAX_PROGRAMS}'
    return None


def _capability(index):
    return None if torch.version.hip else torch.cuda.get_device_capability(index)


# What torch.compiler.assume_constant_result does, which imports the whole compiler (a second).
_capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward(
    features: torch.Tensor,
    values: torch.Tensor | None,
    alpha: torch.Tensor,
    beta: torch.Tensor,
    proposals: tuple[int, int],
    folds: tuple[int, int],
    denominator: str,
    can_fall_back: bool = False,
) -> torch.Tensor:
    """Cluster, aggregate and dispatch the points of every region.

    Without ``values`` they are in ``features``, (B, H, W, 2, E, D). ``can_fall_back`` computes with
    'matmul' for the rest of the process, after one warning, where Triton fails.
    """
    setting = [int(n) for n in proposals], [int(n) for n in folds], denominator == 'count'
    return _forward(features, values, alpha.float(), beta.float(), *setting, can_fall_back)[0]


def _unpack(features, values):
    return features.unbind(-3) if values is None else (features, values)


def _matmul(features, values, alpha, beta, proposals, folds, by_count):
    denominator = 'count' if by_count else 'similarity'
    settings = ClusterSettings(tuple(proposals), tuple(folds), denominator)
    return in_float32(matmul.forward)(*_unpack(features, values), alpha, beta, settings)


def _try_kernels(name, tensors, can_fall_back, features, setting):
    """Launch the kernels of a pass; None where Triton failed and that may be made good."""
    global _failure
    if _failure and can_fall_back:
        return None
    try:
        from coc_mm.ops.backends.triton_kernels import launch

        return getattr(launch, name)(*tensors, *setting)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not can_fall_back:
            raise
        import triton

        cause = f'{type(error).__name__}: {error}'
        _failure = f'its kernels failed before in this process ({cause[:200]})'
        card = 'the CPU'
        if features.is_cuda:
            capability = torch.cuda.get_device_capability(features.device)
            card = f'{torch.cuda.get_device_name(features.device)}, compute capability {capability}'
        warnings.warn(
            'the Triton kernels of context_cluster failed: the matmul backend, which is slower, '
            'does their work for the rest of this process; COC_MM_BACKEND=matmul skips this.\n'
            f'To report: {card}; torch {torch.__version__}, CUDA {torch.version.cuda}, Triton '
            f'{triton.__version__}; points {tuple(features.shape)} {features.dtype}, strides '
            f'{features.stride()}; proposals, folds, by count: {tuple(setting)}\n{cause[:4000]}',
            stacklevel=2,
        )
        return None


@torch.library.custom_op(
    'coc_mm::context_cluster',
    mutates_args=(),
    schema='(Tensor features, Tensor? values, Tensor alpha, Tensor beta, int[] proposals, '
    'int[] folds, bool by_count, bool can_fall_back) -> '
    '(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def _forward(features, values, alpha, beta, proposals, folds, by_count, can_fall_back):
    setting = proposals, folds, by_count
    x, v = _unpack(features, values)
    results = _try_kernels('forward', (x, v, alpha, beta), can_fall_back, features, setting)
    if results is None:
        out = _matmul(features, values, alpha, beta, *setting)
        results = out.contiguous(), *_new_saved(x, v, alpha, proposals, folds)
    return results


def _new_saved(x, v, alpha, proposals, folds):
    batch, height, width, heads, channels = x.shape
    cut = [torch.sym_min(fold, n) for fold, n in zip(folds, (height, width), strict=True)]
    groups = batch * cut[0] * cut[1] * heads
    points = -(-height // cut[0]) * -(-width // cut[1])
    rows = (groups, proposals[0] * proposals[1], channels)
    new = alpha.new_empty
    index = new((groups, points), dtype=torch.uint8)
    return new(groups, points), index, new(rows), new(rows[:2]), new(rows), new(rows[:2])


@_forward.register_fake
def _(features, values, alpha, beta, proposals, folds, by_count, can_fall_back):
    x, v = _unpack(features, values)
    return v.new_empty(v.shape), *_new_saved(x, v, alpha, proposals, folds)


@torch.library.custom_op(
    'coc_mm::context_cluster_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor features, Tensor? values, Tensor alpha, Tensor beta, '
    'Tensor[] saved, int[] proposals, int[] folds, bool by_count, bool can_fall_back) -> '
    '(Tensor, Tensor, Tensor, Tensor)',
)
def _backward(
    grad, features, values, alpha, beta, saved, proposals, folds, by_count, can_fall_back
):
    setting = proposals, folds, by_count
    (x, v), saved = _unpack(features, values), tuple(saved)
    grads = _new_gradients(features, values)
    tensors = grad, x, v, alpha, saved, *_unpack(*grads)
    of_scalars = _try_kernels('backward', tensors, can_fall_back, features, setting)
    if of_scalars is None:
        return _matmul_backward(grad, features, values, alpha, beta, setting)
    of_values = features.new_empty(0) if values is None else grads[1]
    return grads[0], of_values, *(t.clone().reshape(alpha.shape) for t in of_scalars)


def _matmul_backward(grad, features, values, alpha, beta, setting):
    # Autograd is off within an operator; torch.func brings its own.
    given = [features, alpha, beta] if values is None else [features, alpha, beta, values]

    def call(features, alpha, beta, values=None):
        return _matmul(features, values, alpha, beta, *setting)

    of_features, of_alpha, of_beta, *rest = torch.func.vjp(call, *given)[1](grad)
    of_values = rest[0].contiguous() if rest else features.new_empty(0)
    return of_features.contiguous(), of_values, of_alpha, of_beta


@_backward.register_fake
def _(grad, features, values, alpha, beta, saved, *setting):
    of_features, of_values = _new_gradients(features, values)
    of_values = features.new_empty(0) if values is None else of_values
    return of_features, of_values, alpha.new_empty(alpha.shape), alpha.new_empty(alpha.shape)


def _new_gradients(features, values):
    # Contiguous: one tensor for both spaces is laid out as the projection is.
    return tuple(None if t is None else t.new_empty(t.shape) for t in (features, values))


def _save(ctx, inputs, output):
    *tensors, ctx.proposals, ctx.folds, ctx.by_count, ctx.can_fall_back = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, *_):
    features, values, alpha, beta, *saved = ctx.saved_tensors
    setting = ctx.proposals, ctx.folds, ctx.by_count, ctx.can_fall_back
    of_features, of_values, *of_scalars = _backward(
        grad, features, values, alpha, beta, saved, *setting
    )
    return of_features, None if values is None else of_values, *of_scalars, None, None, None, None


def _refuse(ctx, *_):
    raise RuntimeError(
        "the 'triton' backend of context_cluster has no second derivatives: use backend='matmul'"
    )


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)
