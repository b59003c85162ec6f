# ruff: noqa: N803 -- sizes are capitals, as in the shapes
"""The forward passes over the points of a region, and the kernels made of them.

Arguments of the kernels: ``*_ptr`` and ``*_row``, a map and the distance of its points; ``H, W,
E``, its size and heads; ``FH, FW``, the folds; ``POINTS``, the points of the largest region, which
is the row length of what is kept per point; ``SPLIT``, the points of a region that one program
takes; ``SPLITS``, how many programs share a region; ``meta``, see :class:`~.tiles.Meta`. All but
maps is contiguous.
"""

import triton
import triton.language as tl

from coc_mm.ops.backends.triton_kernels.tiles import (
    EPS,
    HALF_STEP,
    add_product,
    at_corner,
    center_mask,
    dot,
    dot_split,
    gather_rows,
    load_points,
    load_rows,
    locate,
    split_fp32,
    store_points,
    store_rows,
    tile_at,
    windows,
    within,
)

# What must not change the code that Triton makes: sizes of the map (nothing is won where 16
# divides them), and how maps lie in memory, so that equal values give equal bits.
UNSPECIALIZED = ['H', 'W', 'E', 'FH', 'FW', 'POINTS', 'SPLIT', 'SPLITS', 'alpha_ptr', 'beta_ptr']
UNSPECIALIZED += [
    f'{m}_{k}' for m in ('x', 'v', 'grad', 'grad_x', 'grad_v') for k in ('ptr', 'row')
]

# The signatures below are packed: an argument a line would be most of the file.
# fmt: off


@triton.jit
def pool(x, v, region, meta: tl.constexpr):
    """Return what a range of points contributes to the centers, (BLOCK_M, BLOCK_D) each."""
    bounds, size = windows(region, meta)
    center = tl.zeros([meta.BLOCK_M, meta.BLOCK_D], tl.float32)
    value_center = tl.zeros([meta.BLOCK_M, meta.BLOCK_D], tl.float32)
    for first in range(region.begin, region.end, meta.BLOCK_N):
        tile = tile_at(first, region, meta)
        points = load_points(x, tile, meta)
        values = load_points(v, tile, meta)
        inside = within(
            tile.row[None, :], tile.col[None, :],
            bounds[0][:, None], bounds[1][:, None], bounds[2][:, None], bounds[3][:, None],
        )
        # Zeros and ones times points: exact in every type.
        center = dot(inside.to(points.dtype), points, center)
        value_center = dot(inside.to(values.dtype), values, value_center)
    return center / size[:, None], value_center / size[:, None]


@triton.jit
def assign(x, v, unit, alpha, beta, s_ptr, index_ptr, region, meta: tl.constexpr):
    """Find the center of every point of a range; return the clusters' sums and weights.

    The argmax is that of the similarity, in which cosines that the sigmoid rounds to one number
    are equal: the first of all that lie within its rounding of the best wins.
    """
    m = tl.arange(0, meta.BLOCK_M)
    bias = beta + center_mask(region, meta)
    parts = split_fp32(tl.trans(unit), x[0].dtype.element_ty)
    total = tl.zeros([meta.BLOCK_M, meta.BLOCK_D], tl.float32)
    weight = tl.zeros([meta.BLOCK_M], tl.float32)
    for first in range(region.begin, region.end, meta.BLOCK_N):
        tile = tile_at(first, region, meta)
        points = load_points(x, tile, meta)
        values = load_points(v, tile, meta)
        length = points.to(tl.float32)
        length = tl.maximum(tl.sqrt_rn(tl.sum(length * length, 1)), EPS)
        z = dot_split(points, parts, True) * (alpha / length)[:, None] + bias[None, :]

        best = tl.max(z, 1)
        beyond = tl.exp(-best)
        s = tl.div_rn(1.0, 1.0 + beyond)
        equal = tl.minimum(best, -tl.log(beyond + HALF_STEP))
        index = tl.min(tl.where(z >= equal[:, None], m[None, :], meta.BLOCK_M), 1)
        index = tl.minimum(index, meta.M - 1)  # of a point that is NaN, near to no center
        s = tl.where(tile.inside, s, 0.0)
        tl.store(s_ptr + tile.saved, s, tile.inside)
        tl.store(index_ptr + tile.saved, index.to(tl.uint8), tile.inside)

        own = index[None, :] == m[:, None]
        share = tl.where(own, s[None, :], 0.0)
        total = add_product(total, share, values)
        if meta.BY_COUNT:
            weight += tl.sum(tl.where(own & tile.inside[None, :], 1.0, 0.0), 1)
        else:
            weight += tl.sum(share, 1)
    return total, weight


@triton.jit
def dispatch(out, g_ptr, s_ptr, index_ptr, region, meta: tl.constexpr):
    """Write to every point of a range the aggregate of its cluster times its similarity."""
    for first in range(region.begin, region.end, meta.BLOCK_N):
        tile = tile_at(first, region, meta)
        s = tl.load(s_ptr + tile.saved, tile.inside, 0.0)
        index = tl.load(index_ptr + tile.saved, tile.inside, 0).to(tl.int32)
        values = s[:, None] * gather_rows(g_ptr, region.group, index, meta)
        store_points(out, tile, values, meta)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    x_ptr, x_row, v_ptr, v_row, out_ptr, alpha_ptr, beta_ptr,
    s_ptr, index_ptr, g_ptr, total_ptr, unit_ptr, length_ptr,
    H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Do everything for one group."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    x = at_corner(x_ptr, x_row, region, meta)
    v = at_corner(v_ptr, v_row, region, meta)
    out = at_corner(out_ptr, E * meta.D, region, meta)
    m = tl.arange(0, meta.BLOCK_M)
    center, value_center = pool(x, v, region, meta)
    length = tl.sqrt_rn(tl.sum(center * center, 1))
    unit = center / tl.maximum(length, EPS)[:, None]
    store_rows(unit_ptr, region.group, unit, meta)
    total, weight = assign(
        x, v, unit, tl.load(alpha_ptr), tl.load(beta_ptr), s_ptr, index_ptr, region, meta
    )
    weight += 1
    store_rows(g_ptr, region.group, (total + value_center) / weight[:, None], meta)
    tl.store(length_ptr + region.group * meta.M + m, length, m < meta.M)
    tl.store(total_ptr + region.group * meta.M + m, weight, m < meta.M)
    tl.debug_barrier()  # other threads of the program read what was written
    dispatch(out, g_ptr, s_ptr, index_ptr, region, meta)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pool_kernel(
    x_ptr, x_row, v_ptr, v_row, center_ptr, value_center_ptr,
    H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Write what each part of a region contributes to its centers, (groups, splits, M, D)."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    x = at_corner(x_ptr, x_row, region, meta)
    v = at_corner(v_ptr, v_row, region, meta)
    center, value_center = pool(x, v, region, meta)
    program = tl.program_id(0).to(tl.int64)
    store_rows(center_ptr, program, center, meta)
    store_rows(value_center_ptr, program, value_center, meta)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def assign_kernel(
    x_ptr, x_row, v_ptr, v_row, unit_ptr, alpha_ptr, beta_ptr, s_ptr, index_ptr, total_ptr,
    weight_ptr, H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Assign each part's points; write its sums (groups, splits, M, D) and weights."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    x = at_corner(x_ptr, x_row, region, meta)
    v = at_corner(v_ptr, v_row, region, meta)
    unit = load_rows(unit_ptr, region.group, meta)
    total, weight = assign(
        x, v, unit, tl.load(alpha_ptr), tl.load(beta_ptr), s_ptr, index_ptr, region, meta
    )
    program = tl.program_id(0).to(tl.int64)
    store_rows(total_ptr, program, total, meta)
    m = tl.arange(0, meta.BLOCK_M)
    tl.store(weight_ptr + program * meta.M + m, weight, m < meta.M)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dispatch_kernel(
    out_ptr, g_ptr, s_ptr, index_ptr,
    H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Write the output of each part's points."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    out = at_corner(out_ptr, E * meta.D, region, meta)
    dispatch(out, g_ptr, s_ptr, index_ptr, region, meta)
