# ruff: noqa: N803 -- sizes are capitals, as in the shapes
"""What the kernels share: where a region lies, tiles of its points, windows and exact products.

A map of points is a pointer and the distance between neighboring points, ``row`` elements, which
hold the channels of all heads. A program serves one region of one head of one image (a group), or
a part of its points. Groups are numbered head first: neighboring programs read neighboring bytes.
"""

import os
from typing import NamedTuple

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET', '0') == '1')
EPS = tl.constexpr(1e-12)  # of torch.nn.functional.normalize
HALF_STEP = tl.constexpr(2.0**-25)  # half the spacing of float32 just below 1


class Meta(NamedTuple):
    """What kernels are compiled for: follows from shapes and dtype, never from strides."""

    PH: tl.constexpr  # proposals, rows
    PW: tl.constexpr  # proposals, columns
    M: tl.constexpr  # their product
    D: tl.constexpr  # channels of a head
    ALIGN: tl.constexpr  # a power of two that divides D
    BY_COUNT: tl.constexpr  # the denominator
    BLOCK_N: tl.constexpr  # points of a tile
    BLOCK_M: tl.constexpr  # M, filled up to a power of two
    BLOCK_D: tl.constexpr  # D, filled up to a power of two


class Region(NamedTuple):
    """What a program serves."""

    group: tl.tensor  # number of region, head and image, 64 bits
    head: tl.tensor
    corner: tl.tensor  # number of its first point in the map, 64 bits
    height: tl.tensor
    width: tl.tensor
    map_width: tl.tensor
    begin: tl.tensor  # the points that are the program's, row-major in the region
    end: tl.tensor
    saved: tl.tensor  # where what is kept for each point starts, 64 bits


class Tile(NamedTuple):
    """Some points of a region, (BLOCK_N,) each."""

    inside: tl.tensor  # False beyond the end
    row: tl.tensor  # in the region
    col: tl.tensor
    offset: tl.tensor  # number of the point in the map, less the region's corner
    saved: tl.tensor  # the point's place in what is kept


@triton.jit
def locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS):
    """Return the region of this program."""
    program = tl.program_id(0)
    group = program // SPLITS
    begin = program % SPLITS * SPLIT
    head = group % E
    rest = group // E
    j = rest % FW
    rest = rest // FW
    i = rest % FH
    top = i * H // FH
    left = j * W // FW
    height = (i + 1) * H // FH - top
    width = (j + 1) * W // FW - left
    corner = ((rest // FH).to(tl.int64) * H + top) * W + left
    end = tl.minimum(begin + SPLIT, height * width)
    group = group.to(tl.int64)
    return Region(group, head, corner, height, width, W, begin, end, group * POINTS)


@triton.jit
def at_corner(ptr, row, region, meta: tl.constexpr):
    """Point at a region of a map; 64 bits, for maps of more than 2^31 elements."""
    size: tl.constexpr = meta.ALIGN * ptr.dtype.element_ty.primitive_bitwidth // 8
    # Torch aligns to 16 bytes or better what it allocates.
    align: tl.constexpr = size if size < 16 else 16
    return tl.multiple_of(ptr + (region.corner * row + region.head * meta.D), align), row


@triton.jit
def tile_at(first, region, meta: tl.constexpr):
    """Return the tile that begins with a point of the region."""
    n = first + tl.arange(0, meta.BLOCK_N)
    row = n // region.width
    col = n - row * region.width
    offset = row.to(tl.int64) * region.map_width + col
    return Tile(n < region.end, row, col, offset, region.saved + n)


@triton.jit
def point_offsets(tile, row, meta: tl.constexpr):
    """Return offsets from the corner and mask of the channels of points, (BLOCK_N, BLOCK_D)."""
    align: tl.constexpr = meta.ALIGN
    d = tl.arange(0, meta.BLOCK_D)
    mask = tile.inside[:, None]
    if meta.D != meta.BLOCK_D:
        mask = mask & (d < meta.D)[None, :]
    return tl.multiple_of(tile.offset * row, align)[:, None] + d[None, :], mask


@triton.jit
def load_points(x, tile, meta: tl.constexpr):
    """Load a tile of a map, (BLOCK_N, BLOCK_D), zero beyond."""
    offsets, mask = point_offsets(tile, x[1], meta)
    return tl.load(x[0] + offsets, mask, 0.0)


@triton.jit
def store_points(x, tile, points, meta: tl.constexpr):
    """Store a tile of a map."""
    offsets, mask = point_offsets(tile, x[1], meta)
    tl.store(x[0] + offsets, points.to(x[0].dtype.element_ty), mask)


@triton.jit
def row_offsets(group, meta: tl.constexpr):
    """Return offsets and mask of the rows of a group in a contiguous (groups, M, D)."""
    m = tl.arange(0, meta.BLOCK_M)
    d = tl.arange(0, meta.BLOCK_D)
    offsets = group * (meta.M * meta.D) + (m[:, None] * meta.D + d[None, :])
    return offsets, (m < meta.M)[:, None] & (d < meta.D)[None, :]


@triton.jit
def load_rows(ptr, group, meta: tl.constexpr):
    """Load the rows of a group as (BLOCK_M, BLOCK_D), zero beyond."""
    offsets, mask = row_offsets(group, meta)
    return tl.load(ptr + offsets, mask, 0.0)


@triton.jit
def store_rows(ptr, group, rows, meta: tl.constexpr):
    """Store the rows of a group."""
    offsets, mask = row_offsets(group, meta)
    tl.store(ptr + offsets, rows, mask)


@triton.jit
def gather_rows(ptr, group, index, meta: tl.constexpr):
    """Load for every point the row of its center, (BLOCK_N, BLOCK_D)."""
    d = tl.arange(0, meta.BLOCK_D)
    offsets = index[:, None] * meta.D + d[None, :]
    return tl.load(ptr + group * (meta.M * meta.D) + offsets, (d < meta.D)[None, :], 0.0)


@triton.jit
def window(m, axis_points, proposals):
    """Return the first and the last-plus-one point that a center averages on an axis."""
    return m * axis_points // proposals, ((m + 1) * axis_points + proposals - 1) // proposals


@triton.jit
def windows(region, meta: tl.constexpr):
    """Return the window of every center, first and last-plus-one row and column, and its size.

    Places beyond the centers have windows without points, of size 1.
    """
    m = tl.arange(0, meta.BLOCK_M)
    row_0, row_1 = window(m // meta.PW, region.height, meta.PH)
    col_0, col_1 = window(m % meta.PW, region.width, meta.PW)
    row_1 = tl.where(m < meta.M, row_1, row_0)
    size = tl.maximum((row_1 - row_0) * (col_1 - col_0), 1).to(tl.float32)
    return (row_0, row_1, col_0, col_1), size


@triton.jit
def within(row, col, row_0, row_1, col_0, col_1):
    """Say which points lie in which windows, as 0 and 1; the arguments broadcast."""
    inside = (row >= row_0) & (row < row_1) & (col >= col_0) & (col < col_1)
    return inside.to(tl.float32)


@triton.jit
def center_mask(region, meta: tl.constexpr):
    """Return 0 for a center points may join, -inf for places beyond and for repeated centers."""
    m = tl.arange(0, meta.BLOCK_M)
    k = m // meta.PW
    l = m % meta.PW  # noqa: E741
    row = window(k, region.height, meta.PH)
    above = window(k - 1, region.height, meta.PH)
    col = window(l, region.width, meta.PW)
    left = window(l - 1, region.width, meta.PW)
    repeated = (k > 0) & (row[0] == above[0]) & (row[1] == above[1])
    repeated |= (l > 0) & (col[0] == left[0]) & (col[1] == left[1])
    return tl.where((m >= meta.M) | repeated, float('-inf'), 0.0)


@triton.jit
def dot(a, b, acc):
    """Add ``a @ b`` to ``acc``, float32 in full precision."""
    if INTERPRETED and b.dtype == tl.bfloat16:  # whose bits Triton's interpreter would multiply
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision='ieee')


@triton.jit
def split_fp32(a, dtype: tl.constexpr):
    """Split float32 into three numbers of a 16-bit type whose sum, times a scale, it is.

    Points are exact in their own type: with the first two parts a product on the tensor cores is
    that in float32 to 2^-17 (bfloat16) or 2^-22 (float16) of a term, with the third of bfloat16 to
    2^-24. float16 is scaled, as scaled losses exceed its range. Return the three parts (for float32
    itself and zeros) and the scale.
    """
    scale = 1.0
    if dtype == tl.float16:
        peak = tl.max(tl.max(tl.abs(a), 1), 0)
        scale = tl.where(peak > 0, peak, 1.0)
        a = a / scale
    high = a.to(dtype)
    rest = a - high.to(tl.float32)
    middle = rest.to(dtype)
    return high, middle, (rest - middle.to(tl.float32)).to(dtype), scale


@triton.jit
def dot_split(points, parts, THIRD: tl.constexpr):
    """Multiply points (BLOCK_N, K), exact in their type, with what :func:`split_fp32` returned."""
    product = tl.zeros([points.shape[0], parts[0].shape[1]], tl.float32)
    if points.dtype == tl.bfloat16 and THIRD:  # small parts first
        product = dot(points, parts[2], product)
    if points.dtype != tl.float32:
        product = dot(points, parts[1], product)
    product = dot(points, parts[0], product)
    if points.dtype == tl.float16:
        product = product * parts[3]
    return product


@triton.jit
def add_product(acc, a, points):
    """Add ``a @ points`` to ``acc``: ``a`` is float32, points are exact in their type."""
    if points.dtype == tl.float32:
        acc = dot(a, points, acc)
    else:
        high, middle, _, scale = split_fp32(a, points.dtype)
        if points.dtype == tl.float16:
            acc += dot(middle, points, dot(high, points, tl.zeros_like(acc))) * scale
        else:
            acc = dot(middle, points, dot(high, points, acc))
    return acc
