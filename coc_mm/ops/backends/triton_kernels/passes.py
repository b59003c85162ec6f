# ruff: noqa: N803 -- sizes are capitals, as in the shapes
"""The passes over the points of a region, forward and backward, and the kernels made of them.

With ``W[n, m]`` the similarity of point ``n`` to the center it joined and 0 elsewhere, the output
is ``W g`` with ``g = (W' v + pool v) / total``. Backward:

- ``collect``: the gradient of the sum that ``total`` divides, ``grad_g = W' grad / total``;
- ``values_gradient``: ``grad_v = W grad_g + pool' grad_g``; the gradient of every similarity, and
  by it those of alpha, beta and the unit centers;
- ``features_gradient``: ``grad_x``, by the cosine of each point and by the centers it was averaged
  into.

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


@triton.jit
def collect(grad, s_ptr, index_ptr, region, meta: tl.constexpr):
    """Return the weighted sum of a range of points over each cluster, (BLOCK_M, BLOCK_D)."""
    m = tl.arange(0, meta.BLOCK_M)
    total = tl.zeros([meta.BLOCK_M, meta.BLOCK_D], tl.float32)
    for first in range(region.begin, region.end, meta.BLOCK_N):
        tile = tile_at(first, region, meta)
        s = tl.load(s_ptr + tile.saved, tile.inside, 0.0)
        index = tl.load(index_ptr + tile.saved, tile.inside, 0).to(tl.int32)
        weight = tl.where(index[None, :] == m[:, None], s[None, :], 0.0)
        total = add_product(total, weight, load_points(grad, tile, meta))
    return total


@triton.jit
def spread(tile, bounds, parts, like):
    """Give every point the sum of what the centers it was averaged into hold for it."""
    inside = within(
        tile.row[:, None], tile.col[:, None],
        bounds[0][None, :], bounds[1][None, :], bounds[2][None, :], bounds[3][None, :],
    )
    return dot_split(inside.to(like.dtype), parts, False)


@triton.jit
def values_gradient(
    x, v, grad, grad_v, g_ptr, grad_g_ptr, shrink_ptr, unit_ptr, s_ptr, index_ptr, pull_ptr,
    alpha, region, meta: tl.constexpr,
):
    """Write ``grad_v`` and each point's pull towards its unit center.

    Return the gradients of the unit centers (BLOCK_M, BLOCK_D), of alpha and of beta.
    """
    m = tl.arange(0, meta.BLOCK_M)
    bounds, size = windows(region, meta)
    grad_g = load_rows(grad_g_ptr, region.group, meta)
    parts = split_fp32(grad_g / size[:, None], v[0].dtype.element_ty)
    grad_unit = tl.zeros([meta.BLOCK_M, meta.BLOCK_D], tl.float32)
    grad_alpha = tl.zeros([meta.BLOCK_N], tl.float32)
    grad_beta = tl.zeros([meta.BLOCK_N], tl.float32)
    for first in range(region.begin, region.end, meta.BLOCK_N):
        tile = tile_at(first, region, meta)
        points = load_points(x, tile, meta)
        values = load_points(v, tile, meta)
        grad_out = load_points(grad, tile, meta).to(tl.float32)
        s = tl.load(s_ptr + tile.saved, tile.inside, 0.0)
        index = tl.load(index_ptr + tile.saved, tile.inside, 0).to(tl.int32)
        own_grad_g = gather_rows(grad_g_ptr, region.group, index, meta)
        grad_value = s[:, None] * own_grad_g + spread(tile, bounds, parts, values)
        store_points(grad_v, tile, grad_value, meta)

        grad_s = grad_out * gather_rows(g_ptr, region.group, index, meta)
        grad_s = tl.sum(grad_s + values.to(tl.float32) * own_grad_g, 1)
        grad_s -= tl.load(shrink_ptr + region.group * meta.M + index)
        grad_z = grad_s * s * (1 - s)  # 0 beyond the range, as s is
        features = points.to(tl.float32)
        length = tl.maximum(tl.sqrt_rn(tl.sum(features * features, 1)), EPS)
        unit = gather_rows(unit_ptr, region.group, index, meta)
        grad_alpha += grad_z * (tl.sum(features * unit, 1) / length)
        grad_beta += grad_z
        pull = grad_z * alpha / length
        tl.store(pull_ptr + tile.saved, pull, tile.inside)
        grad_unit = add_product(
            grad_unit, tl.where(index[None, :] == m[:, None], pull[None, :], 0.0), points
        )
    return grad_unit, tl.sum(grad_alpha, 0), tl.sum(grad_beta, 0)


@triton.jit
def features_gradient(
    x, grad_x, grad_center, unit_ptr, pull_ptr, index_ptr, region, meta: tl.constexpr
):
    """Write ``grad_x``."""
    bounds, size = windows(region, meta)
    parts = split_fp32(grad_center / size[:, None], x[0].dtype.element_ty)
    for first in range(region.begin, region.end, meta.BLOCK_N):
        tile = tile_at(first, region, meta)
        points = load_points(x, tile, meta)
        pull = tl.load(pull_ptr + tile.saved, tile.inside, 0.0)
        index = tl.load(index_ptr + tile.saved, tile.inside, 0).to(tl.int32)
        unit = gather_rows(unit_ptr, region.group, index, meta)
        features = points.to(tl.float32)
        length = tl.sqrt_rn(tl.sum(features * features, 1))
        inverse = 1 / tl.maximum(length, EPS)
        # The length of a point has no say, unless it is too short to be brought to 1.
        radial = pull * tl.sum(features * unit, 1) * inverse * inverse
        radial = tl.where(length > EPS, radial, 0.0)
        out = pull[:, None] * unit - features * radial[:, None]
        store_points(grad_x, tile, out + spread(tile, bounds, parts, points), meta)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    x_ptr, x_row, v_ptr, v_row, grad_ptr, grad_row, grad_x_ptr, grad_x_row, grad_v_ptr, grad_v_row,
    alpha_ptr, s_ptr, index_ptr, g_ptr, total_ptr, unit_ptr, length_ptr,
    pull_ptr, grad_g_ptr, shrink_ptr, scalars_ptr,
    H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Do everything for one group; ``scalars`` receives its part of grad_alpha and grad_beta."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    x = at_corner(x_ptr, x_row, region, meta)
    v = at_corner(v_ptr, v_row, region, meta)
    grad = at_corner(grad_ptr, grad_row, region, meta)
    grad_x = at_corner(grad_x_ptr, grad_x_row, region, meta)
    grad_v = at_corner(grad_v_ptr, grad_v_row, region, meta)
    group = region.group
    m = tl.arange(0, meta.BLOCK_M)

    grad_g = collect(grad, s_ptr, index_ptr, region, meta)
    grad_g = grad_g / tl.load(total_ptr + group * meta.M + m, m < meta.M, 1.0)[:, None]
    store_rows(grad_g_ptr, group, grad_g, meta)
    shrink = tl.zeros([meta.BLOCK_M], tl.float32)
    if not meta.BY_COUNT:
        shrink = tl.sum(grad_g * load_rows(g_ptr, group, meta), 1)
    tl.store(shrink_ptr + group * meta.M + m, shrink, m < meta.M)
    tl.debug_barrier()  # other threads of the program read what was written
    grad_unit, grad_alpha, grad_beta = values_gradient(
        x, v, grad, grad_v, g_ptr, grad_g_ptr, shrink_ptr, unit_ptr, s_ptr, index_ptr, pull_ptr,
        tl.load(alpha_ptr), region, meta,
    )
    tl.store(scalars_ptr + group * 2, grad_alpha)
    tl.store(scalars_ptr + group * 2 + 1, grad_beta)
    unit = load_rows(unit_ptr, group, meta)
    length = tl.load(length_ptr + group * meta.M + m, m < meta.M, 0.0)
    # The gradient of centers by that of the same at length one.
    radial = tl.where(length > EPS, tl.sum(grad_unit * unit, 1), 0.0)
    grad_center = (grad_unit - unit * radial[:, None]) / tl.maximum(length, EPS)[:, None]
    tl.debug_barrier()
    features_gradient(x, grad_x, grad_center, unit_ptr, pull_ptr, index_ptr, region, meta)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def collect_kernel(
    grad_ptr, grad_row, s_ptr, index_ptr, grad_g_ptr,
    H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Write each part's share of the clusters' gradients, (groups, splits, M, D)."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    grad = at_corner(grad_ptr, grad_row, region, meta)
    grad_g = collect(grad, s_ptr, index_ptr, region, meta)
    store_rows(grad_g_ptr, tl.program_id(0).to(tl.int64), grad_g, meta)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def values_gradient_kernel(
    x_ptr, x_row, v_ptr, v_row, grad_ptr, grad_row, grad_v_ptr, grad_v_row,
    alpha_ptr, s_ptr, index_ptr, g_ptr, unit_ptr, pull_ptr, grad_g_ptr, shrink_ptr,
    grad_unit_ptr, scalars_ptr, H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Write ``grad_v`` of each part, and its share of all that is summed over a region."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    x = at_corner(x_ptr, x_row, region, meta)
    v = at_corner(v_ptr, v_row, region, meta)
    grad = at_corner(grad_ptr, grad_row, region, meta)
    grad_v = at_corner(grad_v_ptr, grad_v_row, region, meta)
    grad_unit, grad_alpha, grad_beta = values_gradient(
        x, v, grad, grad_v, g_ptr, grad_g_ptr, shrink_ptr, unit_ptr, s_ptr, index_ptr, pull_ptr,
        tl.load(alpha_ptr), region, meta,
    )
    program = tl.program_id(0).to(tl.int64)
    store_rows(grad_unit_ptr, program, grad_unit, meta)
    tl.store(scalars_ptr + program * 2, grad_alpha)
    tl.store(scalars_ptr + program * 2 + 1, grad_beta)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def features_gradient_kernel(
    x_ptr, x_row, grad_x_ptr, grad_x_row, grad_center_ptr, unit_ptr, pull_ptr, index_ptr,
    H, W, E, FH, FW, POINTS, SPLIT, SPLITS, meta: tl.constexpr,
):
    """Write ``grad_x`` of each part."""
    region = locate(H, W, E, FH, FW, POINTS, SPLIT, SPLITS)
    x = at_corner(x_ptr, x_row, region, meta)
    grad_x = at_corner(grad_x_ptr, grad_x_row, region, meta)
    grad_center = load_rows(grad_center_ptr, region.group, meta)
    features_gradient(x, grad_x, grad_center, unit_ptr, pull_ptr, index_ptr, region, meta)
