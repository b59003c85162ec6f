# ruff: noqa: N803, N806 -- sizes are capitals, as in the shapes
"""The backward passes over the points of a region, and the kernels made of them.

Arguments are named as in ``forward``. With ``W[n, m]`` the similarity of point ``n`` to the center
it joined and 0 elsewhere, ``out = W g`` and ``g = (W' v + pool v) / total``:

- ``collect``: the gradient of the sum that ``total`` divides, ``grad_g = W' grad / total``;
- ``values_gradient``: ``grad_v = W grad_g + pool' grad_g``; the gradient of every similarity, and
  by it those of alpha, beta and the unit centers;
- ``features_gradient``: ``grad_x``, by the cosine of each point and by the centers it was averaged
  into.
"""

import triton
import triton.language as tl

from coc_mm.ops.backends.triton_kernels.forward import SIZES
from coc_mm.ops.backends.triton_kernels.tiles import (
    EPS,
    add_product,
    channels,
    corner,
    dot_halves,
    halves,
    load_rows,
    locate,
    places,
    points_of,
    store_rows,
    take_rows,
    window_sizes,
    windows,
    within,
)

# The signatures below are packed: an argument a line would be most of the file.
# fmt: off


@triton.jit
def collect(
    x, weight_ptr, index_ptr, region, D: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Return the weighted sum of a range of points over each cluster, (BLOCK_M, BLOCK_D)."""
    _, width, begin, end = region
    m = tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        n, row, col = points_of(first, width, BLOCK_N)
        place = places(row, col, x[1], x[2], x[3], BLOCK_D, ALIGN)
        points = tl.load(x[0] + place, channels(n < end, D, BLOCK_D), 0.0)
        weight = tl.load(weight_ptr + n, n < end, 0.0)
        index = tl.load(index_ptr + n, n < end, 0).to(tl.int32)
        total = add_product(
            total, tl.where(index[None, :] == m[:, None], weight[None, :], 0.0), points
        )
    return total


@triton.jit
def spread(row, col, bounds, high, low, scale, like):
    """Give every point the sum of what the centers it was averaged into hold for it."""
    inside = within(
        row[:, None], col[:, None],
        bounds[0][None, :], bounds[1][None, :], bounds[2][None, :], bounds[3][None, :],
    )
    return dot_halves(inside.to(tl.float32).to(like.dtype), high, low, scale)


@triton.jit
def values_gradient(
    x, v, grad, grad_v, g_ptr, grad_g_ptr, shrink_ptr, unit_ptr, s_ptr, index_ptr, pull_ptr,
    alpha, region, PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write ``grad_v`` and each point's pull towards its unit center.

    Returns:
        tuple: gradients of the unit centers (BLOCK_M, BLOCK_D), of alpha and of beta.
    """
    height, width, begin, end = region
    m = tl.arange(0, BLOCK_M)
    bounds = windows(height, width, PH, PW, BLOCK_M)
    size = window_sizes(bounds[0], bounds[1], bounds[2], bounds[3])
    grad_g = load_rows(grad_g_ptr, PH * PW, D, BLOCK_M, BLOCK_D)
    high, low, scale = halves(grad_g / size[:, None], v[0].dtype.element_ty)
    grad_unit = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    grad_alpha = tl.zeros([BLOCK_N], tl.float32)
    grad_beta = tl.zeros([BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_N):
        n, row, col = points_of(first, width, BLOCK_N)
        mask = channels(n < end, D, BLOCK_D)
        points = tl.load(x[0] + places(row, col, x[1], x[2], x[3], BLOCK_D, ALIGN), mask, 0.0)
        values = tl.load(v[0] + places(row, col, v[1], v[2], v[3], BLOCK_D, ALIGN), mask, 0.0)
        place = places(row, col, grad[1], grad[2], grad[3], BLOCK_D, ALIGN)
        grad_out = tl.load(grad[0] + place, mask, 0.0).to(tl.float32)
        s = tl.load(s_ptr + n, n < end, 0.0)
        index = tl.load(index_ptr + n, n < end, 0).to(tl.int32)
        own_grad_g = take_rows(grad_g_ptr, index, D, BLOCK_D)

        place = places(row, col, grad_v[1], grad_v[2], grad_v[3], BLOCK_D, ALIGN)
        grad_value = s[:, None] * own_grad_g + spread(row, col, bounds, high, low, scale, values)
        tl.store(grad_v[0] + place, grad_value.to(grad_v[0].dtype.element_ty), mask)

        grad_s = grad_out * take_rows(g_ptr, index, D, BLOCK_D)
        grad_s = tl.sum(grad_s + values.to(tl.float32) * own_grad_g, 1)
        grad_s -= tl.load(shrink_ptr + index)
        grad_z = grad_s * s * (1 - s)  # 0 beyond the range, as s is
        features = points.to(tl.float32)
        length = tl.maximum(tl.sqrt_rn(tl.sum(features * features, 1)), EPS)
        cosine = tl.sum(features * take_rows(unit_ptr, index, D, BLOCK_D), 1) / length
        grad_alpha += grad_z * cosine
        grad_beta += grad_z
        pull = grad_z * alpha / length
        tl.store(pull_ptr + n, pull, n < end)
        grad_unit = add_product(
            grad_unit, tl.where(index[None, :] == m[:, None], pull[None, :], 0.0), points
        )
    return grad_unit, tl.sum(grad_alpha, 0), tl.sum(grad_beta, 0)


@triton.jit
def center_gradient(grad_unit, unit, length):
    """Return the gradient of centers by that of the same at length one."""
    radial = tl.where(length > EPS, tl.sum(grad_unit * unit, 1), 0.0)
    return (grad_unit - unit * radial[:, None]) / tl.maximum(length, EPS)[:, None]


@triton.jit
def features_gradient(
    x, grad_x, grad_center, unit_ptr, pull_ptr, index_ptr, region,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write ``grad_x``."""
    height, width, begin, end = region
    bounds = windows(height, width, PH, PW, BLOCK_M)
    size = window_sizes(bounds[0], bounds[1], bounds[2], bounds[3])
    high, low, scale = halves(grad_center / size[:, None], x[0].dtype.element_ty)
    for first in range(begin, end, BLOCK_N):
        n, row, col = points_of(first, width, BLOCK_N)
        mask = channels(n < end, D, BLOCK_D)
        points = tl.load(x[0] + places(row, col, x[1], x[2], x[3], BLOCK_D, ALIGN), mask, 0.0)
        pull = tl.load(pull_ptr + n, n < end, 0.0)
        index = tl.load(index_ptr + n, n < end, 0).to(tl.int32)
        unit = take_rows(unit_ptr, index, D, BLOCK_D)
        features = points.to(tl.float32)
        length = tl.sqrt_rn(tl.sum(features * features, 1))
        inverse = 1 / tl.maximum(length, EPS)
        # The length of a point has no say, unless it is too short to be brought to 1.
        radial = pull * tl.sum(features * unit, 1) * inverse * inverse
        radial = tl.where(length > EPS, radial, 0.0)
        out = pull[:, None] * unit - features * radial[:, None]
        out += spread(row, col, bounds, high, low, scale, points)
        place = places(row, col, grad_x[1], grad_x[2], grad_x[3], BLOCK_D, ALIGN)
        tl.store(grad_x[0] + place, out.to(grad_x[0].dtype.element_ty), mask)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    x_ptr, v_ptr, grad_ptr, grad_x_ptr, grad_v_ptr, alpha_ptr, s_ptr, index_ptr, g_ptr, total_ptr,
    unit_ptr, length_ptr, pull_ptr, grad_g_ptr, shrink_ptr, scalars_ptr,
    x_b, x_h, x_w, x_e, x_d, v_b, v_h, v_w, v_e, v_d, grad_b, grad_h, grad_w, grad_e, grad_d,
    gx_b, gx_h, gx_w, gx_e, gx_d, gv_b, gv_h, gv_w, gv_e, gv_d, H, W, E, FH, FW, POINTS,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, BY_COUNT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Do everything for one group; ``scalars`` receives its part of grad_alpha and grad_beta."""
    M: tl.constexpr = PH * PW
    group = tl.program_id(0)
    image, head, top, left, height, width = locate(group, H, W, E, FH, FW)
    region = (height, width, 0, height * width)
    x = (corner(x_ptr, image, head, top, left, x_b, x_h, x_w, x_e, ALIGN), x_h, x_w, x_d)
    v = (corner(v_ptr, image, head, top, left, v_b, v_h, v_w, v_e, ALIGN), v_h, v_w, v_d)
    grad = corner(grad_ptr, image, head, top, left, grad_b, grad_h, grad_w, grad_e, ALIGN)
    grad = (grad, grad_h, grad_w, grad_d)
    grad_x = corner(grad_x_ptr, image, head, top, left, gx_b, gx_h, gx_w, gx_e, ALIGN)
    grad_v = corner(grad_v_ptr, image, head, top, left, gv_b, gv_h, gv_w, gv_e, ALIGN)
    group = group.to(tl.int64)
    s_ptr += group * POINTS
    index_ptr += group * POINTS
    pull_ptr += group * POINTS
    unit_ptr += group * (M * D)
    g_ptr += group * (M * D)
    grad_g_ptr += group * (M * D)
    shrink_ptr += group * M
    m = tl.arange(0, BLOCK_M)

    grad_g = collect(grad, s_ptr, index_ptr, region, D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D)
    grad_g = grad_g / tl.load(total_ptr + group * M + m, m < M, 1.0)[:, None]
    store_rows(grad_g_ptr, grad_g, M, D, BLOCK_M, BLOCK_D)
    shrink = tl.zeros([BLOCK_M], tl.float32)
    if not BY_COUNT:
        shrink = tl.sum(grad_g * load_rows(g_ptr, M, D, BLOCK_M, BLOCK_D), 1)
    tl.store(shrink_ptr + m, shrink, m < M)
    tl.debug_barrier()  # other threads of the program read what was written
    grad_unit, grad_alpha, grad_beta = values_gradient(
        x, v, grad, (grad_v, gv_h, gv_w, gv_d), g_ptr, grad_g_ptr, shrink_ptr, unit_ptr, s_ptr,
        index_ptr, pull_ptr, tl.load(alpha_ptr), region,
        PH, PW, D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D,
    )
    tl.store(scalars_ptr + group * 2, grad_alpha)
    tl.store(scalars_ptr + group * 2 + 1, grad_beta)
    unit = load_rows(unit_ptr, M, D, BLOCK_M, BLOCK_D)
    length = tl.load(length_ptr + group * M + m, m < M, 0.0)
    grad_center = center_gradient(grad_unit, unit, length)
    tl.debug_barrier()
    features_gradient(
        x, (grad_x, gx_h, gx_w, gx_d), grad_center, unit_ptr, pull_ptr, index_ptr, region,
        PH, PW, D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D,
    )


@triton.jit(do_not_specialize=SIZES)
def collect_kernel(
    grad_ptr, s_ptr, index_ptr, grad_g_ptr, grad_b, grad_h, grad_w, grad_e, grad_d,
    H, W, E, FH, FW, POINTS, SHARE, SHARES, PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write each share's part of the clusters' gradients, (groups, shares, M, D)."""
    program = tl.program_id(0)
    group = program // SHARES
    image, head, top, left, height, width = locate(group, H, W, E, FH, FW)
    begin = program % SHARES * SHARE
    region = (height, width, begin, tl.minimum(begin + SHARE, height * width))
    grad = corner(grad_ptr, image, head, top, left, grad_b, grad_h, grad_w, grad_e, ALIGN)
    group = group.to(tl.int64)
    grad_g = collect(
        (grad, grad_h, grad_w, grad_d), s_ptr + group * POINTS, index_ptr + group * POINTS, region,
        D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D,
    )
    place = program.to(tl.int64) * (PH * PW * D)
    store_rows(grad_g_ptr + place, grad_g, PH * PW, D, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def values_gradient_kernel(
    x_ptr, v_ptr, grad_ptr, grad_v_ptr, alpha_ptr, s_ptr, index_ptr, g_ptr, unit_ptr, pull_ptr,
    grad_g_ptr, shrink_ptr, grad_unit_ptr, scalars_ptr,
    x_b, x_h, x_w, x_e, x_d, v_b, v_h, v_w, v_e, v_d, grad_b, grad_h, grad_w, grad_e, grad_d,
    gv_b, gv_h, gv_w, gv_e, gv_d, H, W, E, FH, FW, POINTS, SHARE, SHARES,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write ``grad_v`` of each share, and its part of all that is summed over a region."""
    M: tl.constexpr = PH * PW
    program = tl.program_id(0)
    group = program // SHARES
    image, head, top, left, height, width = locate(group, H, W, E, FH, FW)
    begin = program % SHARES * SHARE
    region = (height, width, begin, tl.minimum(begin + SHARE, height * width))
    x = (corner(x_ptr, image, head, top, left, x_b, x_h, x_w, x_e, ALIGN), x_h, x_w, x_d)
    v = (corner(v_ptr, image, head, top, left, v_b, v_h, v_w, v_e, ALIGN), v_h, v_w, v_d)
    grad = corner(grad_ptr, image, head, top, left, grad_b, grad_h, grad_w, grad_e, ALIGN)
    grad_v = corner(grad_v_ptr, image, head, top, left, gv_b, gv_h, gv_w, gv_e, ALIGN)
    group = group.to(tl.int64)
    rows = group * (M * D)
    grad_unit, grad_alpha, grad_beta = values_gradient(
        x, v, (grad, grad_h, grad_w, grad_d), (grad_v, gv_h, gv_w, gv_d), g_ptr + rows,
        grad_g_ptr + rows, shrink_ptr + group * M, unit_ptr + rows, s_ptr + group * POINTS,
        index_ptr + group * POINTS, pull_ptr + group * POINTS, tl.load(alpha_ptr), region,
        PH, PW, D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D,
    )
    program = program.to(tl.int64)
    store_rows(grad_unit_ptr + program * (M * D), grad_unit, M, D, BLOCK_M, BLOCK_D)
    tl.store(scalars_ptr + program * 2, grad_alpha)
    tl.store(scalars_ptr + program * 2 + 1, grad_beta)


@triton.jit(do_not_specialize=SIZES)
def features_gradient_kernel(
    x_ptr, grad_x_ptr, grad_center_ptr, unit_ptr, pull_ptr, index_ptr,
    x_b, x_h, x_w, x_e, x_d, gx_b, gx_h, gx_w, gx_e, gx_d,
    H, W, E, FH, FW, POINTS, SHARE, SHARES, PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write ``grad_x`` of each share."""
    M: tl.constexpr = PH * PW
    program = tl.program_id(0)
    group = program // SHARES
    image, head, top, left, height, width = locate(group, H, W, E, FH, FW)
    begin = program % SHARES * SHARE
    region = (height, width, begin, tl.minimum(begin + SHARE, height * width))
    x = (corner(x_ptr, image, head, top, left, x_b, x_h, x_w, x_e, ALIGN), x_h, x_w, x_d)
    grad_x = corner(grad_x_ptr, image, head, top, left, gx_b, gx_h, gx_w, gx_e, ALIGN)
    group = group.to(tl.int64)
    grad_center = load_rows(grad_center_ptr + group * (M * D), M, D, BLOCK_M, BLOCK_D)
    features_gradient(
        x, (grad_x, gx_h, gx_w, gx_d), grad_center, unit_ptr + group * (M * D),
        pull_ptr + group * POINTS, index_ptr + group * POINTS, region,
        PH, PW, D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D,
    )
