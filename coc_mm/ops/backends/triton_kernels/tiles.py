# ruff: noqa: N803 -- sizes are capitals, as in the shapes
"""What the kernels share: where a region lies, its windows, tiles of points and exact products.

A program serves one region of one head of one image (a group), or a share of its points. Groups
are numbered head first, so that neighbouring programs read neighbouring bytes.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET', '0') == '1')
EPS = tl.constexpr(1e-12)  # of torch.nn.functional.normalize
HALF_STEP = tl.constexpr(2.0**-25)  # half the spacing of float32 just below 1


@triton.jit
def locate(group, H, W, E, FH, FW):
    """Return image, head, first row, first column, height and width of a group.

    Region ``i`` of an axis covers ``[i * length // folds, (i + 1) * length // folds)``.
    """
    head = group % E
    rest = group // E
    j = rest % FW
    rest = rest // FW
    i = rest % FH
    top = i * H // FH
    left = j * W // FW
    return rest // FH, head, top, left, (i + 1) * H // FH - top, (j + 1) * W // FW - left


@triton.jit
def corner(ptr, image, head, top, left, s_b, s_h, s_w, s_e, ALIGN: tl.constexpr):
    """Point at the first point of a region; 64 bits, for maps of more than 2^31 elements."""
    offset = image.to(tl.int64) * s_b + head.to(tl.int64) * s_e
    offset += top.to(tl.int64) * s_h + left.to(tl.int64) * s_w
    return ptr + tl.multiple_of(offset, ALIGN)


@triton.jit
def places(row, col, s_h, s_w, s_d, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr):
    """Return the offsets (BLOCK_N, BLOCK_D) of points from the corner of their region."""
    offset = row.to(tl.int64) * s_h + col.to(tl.int64) * s_w
    return tl.multiple_of(offset, ALIGN)[:, None] + (tl.arange(0, BLOCK_D) * s_d)[None, :]


@triton.jit
def points_of(first, width, BLOCK_N: tl.constexpr):
    """Return number, row and column in their region of the points of a tile."""
    n = first + tl.arange(0, BLOCK_N)
    row = n // width
    return n, row, n - row * width


@triton.jit
def channels(inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the mask (BLOCK_N, BLOCK_D) of the channels of the points ``inside``."""
    mask = inside[:, None]
    if D != BLOCK_D:
        mask = mask & (tl.arange(0, BLOCK_D) < D)[None, :]
    return mask


@triton.jit
def load_rows(ptr, M: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load a contiguous (M, D) as (BLOCK_M, BLOCK_D), zero beyond."""
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    return tl.load(ptr + m[:, None] * D + d[None, :], (m < M)[:, None] & (d < D)[None, :], 0.0)


@triton.jit
def store_rows(
    ptr, rows, M: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Store the first (M, D) of (BLOCK_M, BLOCK_D) contiguously."""
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    tl.store(ptr + m[:, None] * D + d[None, :], rows, (m < M)[:, None] & (d < D)[None, :])


@triton.jit
def take_rows(ptr, index, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load for every point the row of its center, (BLOCK_N, BLOCK_D), from a contiguous (M, D)."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(ptr + index[:, None] * D + d[None, :], (d < D)[None, :], 0.0)


@triton.jit
def windows(height, width, PH: tl.constexpr, PW: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the window of every center: first and last-plus-one row, the same of columns.

    Center ``k`` of ``p`` on an axis of ``n`` points averages those from ``k * n // p`` to before
    ``ceil((k + 1) * n / p)``. Places beyond the centers have windows without points.
    """
    m = tl.arange(0, BLOCK_M)
    k = m // PW
    l = m % PW  # noqa: E741
    row_0 = k * height // PH
    row_1 = ((k + 1) * height + PH - 1) // PH
    col_0 = l * width // PW
    col_1 = ((l + 1) * width + PW - 1) // PW
    return row_0, tl.where(m < PH * PW, row_1, row_0), col_0, col_1


@triton.jit
def within(row, col, row_0, row_1, col_0, col_1):
    """Say which points lie in which windows; the arguments broadcast."""
    return (row >= row_0) & (row < row_1) & (col >= col_0) & (col < col_1)


@triton.jit
def window_sizes(row_0, row_1, col_0, col_1):
    """Return how many points each window averages, 1 where there is no window, float32."""
    return tl.maximum((row_1 - row_0) * (col_1 - col_0), 1).to(tl.float32)


@triton.jit
def barred(height, width, PH: tl.constexpr, PW: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return 0 for a center points may join, -inf for places beyond and for repeated centers.

    Where a region has fewer points than centers some windows are the same: the first of them
    takes the points.
    """
    m = tl.arange(0, BLOCK_M)
    k = m // PW
    l = m % PW  # noqa: E741
    row_again = (k * height // PH == (k - 1) * height // PH) & (
        ((k + 1) * height + PH - 1) // PH == (k * height + PH - 1) // PH
    )
    col_again = (l * width // PW == (l - 1) * width // PW) & (
        ((l + 1) * width + PW - 1) // PW == (l * width + PW - 1) // PW
    )
    bar = (m >= PH * PW) | ((k > 0) & row_again) | ((l > 0) & col_again)
    return tl.where(bar, float('-inf'), 0.0)


@triton.jit
def dot(a, b, acc):
    """Add ``a @ b`` to ``acc``, float32 in full precision."""
    if INTERPRETED and b.dtype == tl.bfloat16:  # whose bits Triton's interpreter would multiply
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision='ieee')


@triton.jit
def halves(a, dtype: tl.constexpr):
    """Split float32 into two numbers of a 16-bit type whose sum, times a scale, it is.

    Points are exact in their own type, so that two products on the tensor cores give what one in
    float32 would, to 2^-17 (bfloat16) or 2^-22 (float16) of a term. float16 is scaled, as scaled
    losses exceed its range.

    Returns:
        tuple: high part (float32 itself in that type), low part, scale.
    """
    scale = 1.0
    if dtype == tl.float16:
        peak = tl.max(tl.max(tl.abs(a), 1), 0)
        scale = tl.where(peak > 0, peak, 1.0)
        a = a / scale
    high = a.to(dtype)
    return high, (a - high.to(tl.float32)).to(dtype), scale


@triton.jit
def dot_halves(points, high, low, scale):
    """Multiply points (BLOCK_N, K), exact in their type, with what :func:`halves` returned."""
    product = dot(points, high, tl.zeros([points.shape[0], high.shape[1]], tl.float32))
    if points.dtype != tl.float32:
        product = dot(points, low, product)
    if points.dtype == tl.float16:
        product = product * scale
    return product


@triton.jit
def add_product(acc, a, points):
    """Add ``a @ points`` to ``acc``: ``a`` is float32, points are exact in their type."""
    if points.dtype == tl.float32:
        acc = dot(a, points, acc)
    else:
        high, low, scale = halves(a, points.dtype)
        if points.dtype == tl.float16:
            acc += dot(low, points, dot(high, points, tl.zeros_like(acc))) * scale
        else:
            acc = dot(low, points, dot(high, points, acc))
    return acc
