# ruff: noqa: N803, N806 -- sizes are capitals, as in the shapes
"""The forward passes over the points of a region, and the kernels made of them.

Arguments of all: ``*_ptr`` and ``*_b, *_h, *_w, *_e, *_d``, a map of points and its strides;
``H, W, E``, its size and heads; ``FH, FW``, the folds; ``PH, PW``, the proposals, ``M`` their
product; ``D``, the channels; ``POINTS``, the points of the largest region, which is the row length
of what is kept per point; ``SHARE``, the points of a region that one program takes, ``SHARES``, how
many there are; ``ALIGN``, a divisor of every stride between points; ``BLOCK_*``, the powers of two
that shapes are filled up to. Device functions take a region as ``(height, width, begin, end)``,
the range being the points it is about, and a map as ``(pointer to the region's corner, strides of
h, w and d)``.
"""

import triton
import triton.language as tl

from coc_mm.ops.backends.triton_kernels.tiles import (
    EPS,
    HALF_STEP,
    add_product,
    barred,
    channels,
    corner,
    dot,
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

# Sizes of the map: to compile again for those that 16 divides would serve nothing.
SIZES = ['H', 'W', 'E', 'FH', 'FW', 'POINTS', 'SHARE', 'SHARES']

# The signatures below are packed: an argument a line would be most of the file.
# fmt: off


@triton.jit
def pool(
    x, v, region, PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Return what a range of points contributes to the centers, (BLOCK_M, BLOCK_D) each."""
    height, width, begin, end = region
    row_0, row_1, col_0, col_1 = windows(height, width, PH, PW, BLOCK_M)
    center = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    value_center = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        n, row, col = points_of(first, width, BLOCK_N)
        mask = channels(n < end, D, BLOCK_D)
        points = tl.load(x[0] + places(row, col, x[1], x[2], x[3], BLOCK_D, ALIGN), mask, 0.0)
        values = tl.load(v[0] + places(row, col, v[1], v[2], v[3], BLOCK_D, ALIGN), mask, 0.0)
        inside = within(
            row[None, :], col[None, :],
            row_0[:, None], row_1[:, None], col_0[:, None], col_1[:, None],
        )
        # Zeros and ones times points: exact in every type.
        center = dot(inside.to(tl.float32).to(points.dtype), points, center)
        value_center = dot(inside.to(tl.float32).to(values.dtype), values, value_center)
    size = window_sizes(row_0, row_1, col_0, col_1)[:, None]
    return center / size, value_center / size


@triton.jit
def unit_length(center):
    """Return centers of length one, and the lengths they had."""
    length = tl.sqrt_rn(tl.sum(center * center, 1))
    return center / tl.maximum(length, EPS)[:, None], length


@triton.jit
def assign(
    x, v, unit, alpha, beta, s_ptr, index_ptr, region,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, BY_COUNT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Find the center of every point of a range; return the clusters' sums and weights.

    The argmax is that of the similarity, in which cosines that the sigmoid rounds to one number
    are equal: the first of all that lie within its rounding of the best wins.
    """
    height, width, begin, end = region
    m = tl.arange(0, BLOCK_M)
    bias = beta + barred(height, width, PH, PW, BLOCK_M)
    high, low, scale = halves(tl.trans(unit), x[0].dtype.element_ty)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    for first in range(begin, end, BLOCK_N):
        n, row, col = points_of(first, width, BLOCK_N)
        mask = channels(n < end, D, BLOCK_D)
        points = tl.load(x[0] + places(row, col, x[1], x[2], x[3], BLOCK_D, ALIGN), mask, 0.0)
        values = tl.load(v[0] + places(row, col, v[1], v[2], v[3], BLOCK_D, ALIGN), mask, 0.0)
        length = points.to(tl.float32)
        length = tl.maximum(tl.sqrt_rn(tl.sum(length * length, 1)), EPS)
        z = dot_halves(points, high, low, scale) * (alpha / length)[:, None] + bias[None, :]

        best = tl.max(z, 1)
        beyond = tl.exp(-best)
        s = tl.div_rn(1.0, 1.0 + beyond)
        equal = tl.minimum(best, -tl.log(beyond + HALF_STEP))
        index = tl.min(tl.where(z >= equal[:, None], m[None, :], BLOCK_M), 1)
        index = tl.minimum(index, PH * PW - 1)  # of a point that is NaN, near to no center
        s = tl.where(n < end, s, 0.0)
        tl.store(s_ptr + n, s, n < end)
        tl.store(index_ptr + n, index.to(tl.uint8), n < end)

        own = index[None, :] == m[:, None]
        share = tl.where(own, s[None, :], 0.0)
        total = add_product(total, share, values)
        if BY_COUNT:
            weight += tl.sum(tl.where(own & (n < end)[None, :], 1.0, 0.0), 1)
        else:
            weight += tl.sum(share, 1)
    return total, weight


@triton.jit
def dispatch(
    out, g_ptr, s_ptr, index_ptr, region,
    D: tl.constexpr, ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write to every point of a range the aggregate of its cluster times its similarity."""
    _, width, begin, end = region
    for first in range(begin, end, BLOCK_N):
        n, row, col = points_of(first, width, BLOCK_N)
        s = tl.load(s_ptr + n, n < end, 0.0)
        index = tl.load(index_ptr + n, n < end, 0).to(tl.int32)
        values = s[:, None] * take_rows(g_ptr, index, D, BLOCK_D)
        place = places(row, col, out[1], out[2], out[3], BLOCK_D, ALIGN)
        tl.store(out[0] + place, values.to(out[0].dtype.element_ty), channels(n < end, D, BLOCK_D))


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr, v_ptr, out_ptr, alpha_ptr, beta_ptr,
    s_ptr, index_ptr, g_ptr, total_ptr, unit_ptr, length_ptr,
    x_b, x_h, x_w, x_e, x_d, v_b, v_h, v_w, v_e, v_d, H, W, E, FH, FW, POINTS,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, BY_COUNT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Do everything for one group. All that is not projected is contiguous."""
    M: tl.constexpr = PH * PW
    group = tl.program_id(0)
    image, head, top, left, height, width = locate(group, H, W, E, FH, FW)
    region = (height, width, 0, height * width)
    x = (corner(x_ptr, image, head, top, left, x_b, x_h, x_w, x_e, ALIGN), x_h, x_w, x_d)
    v = (corner(v_ptr, image, head, top, left, v_b, v_h, v_w, v_e, ALIGN), v_h, v_w, v_d)
    o_w = E * D
    o_h = W * o_w
    out = corner(out_ptr, image, head, top, left, H.to(tl.int64) * o_h, o_h, o_w, D, ALIGN)
    group = group.to(tl.int64)
    s_ptr += group * POINTS
    index_ptr += group * POINTS
    g_ptr += group * (M * D)

    center, value_center = pool(x, v, region, PH, PW, D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D)
    unit, length = unit_length(center)
    store_rows(unit_ptr + group * (M * D), unit, M, D, BLOCK_M, BLOCK_D)
    total, weight = assign(
        x, v, unit, tl.load(alpha_ptr), tl.load(beta_ptr), s_ptr, index_ptr, region,
        PH, PW, D, BY_COUNT, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D,
    )
    weight += 1
    store_rows(g_ptr, (total + value_center) / weight[:, None], M, D, BLOCK_M, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    tl.store(length_ptr + group * M + m, length, m < M)
    tl.store(total_ptr + group * M + m, weight, m < M)
    tl.debug_barrier()  # other threads of the program read what was written
    dispatch((out, o_h, o_w, 1), g_ptr, s_ptr, index_ptr, region, D, ALIGN, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def pool_kernel(
    x_ptr, v_ptr, center_ptr, value_center_ptr,
    x_b, x_h, x_w, x_e, x_d, v_b, v_h, v_w, v_e, v_d, H, W, E, FH, FW, SHARE, SHARES,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write what each share of a region contributes to its centers, (groups, shares, M, D)."""
    M: tl.constexpr = PH * PW
    program = tl.program_id(0)
    image, head, top, left, height, width = locate(program // SHARES, H, W, E, FH, FW)
    begin = program % SHARES * SHARE
    region = (height, width, begin, tl.minimum(begin + SHARE, height * width))
    x = (corner(x_ptr, image, head, top, left, x_b, x_h, x_w, x_e, ALIGN), x_h, x_w, x_d)
    v = (corner(v_ptr, image, head, top, left, v_b, v_h, v_w, v_e, ALIGN), v_h, v_w, v_d)
    center, value_center = pool(x, v, region, PH, PW, D, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D)
    place = program.to(tl.int64) * (M * D)
    store_rows(center_ptr + place, center, M, D, BLOCK_M, BLOCK_D)
    store_rows(value_center_ptr + place, value_center, M, D, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def assign_kernel(
    x_ptr, v_ptr, unit_ptr, alpha_ptr, beta_ptr, s_ptr, index_ptr, total_ptr, weight_ptr,
    x_b, x_h, x_w, x_e, x_d, v_b, v_h, v_w, v_e, v_d, H, W, E, FH, FW, POINTS, SHARE, SHARES,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr, BY_COUNT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Assign each share's points; write its sums (groups, shares, M, D) and weights."""
    M: tl.constexpr = PH * PW
    program = tl.program_id(0)
    group = program // SHARES
    image, head, top, left, height, width = locate(group, H, W, E, FH, FW)
    begin = program % SHARES * SHARE
    region = (height, width, begin, tl.minimum(begin + SHARE, height * width))
    x = (corner(x_ptr, image, head, top, left, x_b, x_h, x_w, x_e, ALIGN), x_h, x_w, x_d)
    v = (corner(v_ptr, image, head, top, left, v_b, v_h, v_w, v_e, ALIGN), v_h, v_w, v_d)
    group = group.to(tl.int64)
    unit = load_rows(unit_ptr + group * (M * D), M, D, BLOCK_M, BLOCK_D)
    total, weight = assign(
        x, v, unit, tl.load(alpha_ptr), tl.load(beta_ptr),
        s_ptr + group * POINTS, index_ptr + group * POINTS, region,
        PH, PW, D, BY_COUNT, ALIGN, BLOCK_N, BLOCK_M, BLOCK_D,
    )
    place = program.to(tl.int64) * M
    store_rows(total_ptr + place * D, total, M, D, BLOCK_M, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    tl.store(weight_ptr + place + m, weight, m < M)


@triton.jit(do_not_specialize=SIZES)
def dispatch_kernel(
    out_ptr, g_ptr, s_ptr, index_ptr, H, W, E, FH, FW, POINTS, SHARE, SHARES,
    PH: tl.constexpr, PW: tl.constexpr, D: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Write the output of each share's points."""
    program = tl.program_id(0)
    group = program // SHARES
    image, head, top, left, height, width = locate(group, H, W, E, FH, FW)
    begin = program % SHARES * SHARE
    region = (height, width, begin, tl.minimum(begin + SHARE, height * width))
    o_w = E * D
    o_h = W * o_w
    out = corner(out_ptr, image, head, top, left, H.to(tl.int64) * o_h, o_h, o_w, D, ALIGN)
    group = group.to(tl.int64)
    dispatch(
        (out, o_h, o_w, 1), g_ptr + group * (PH * PW * D), s_ptr + group * POINTS,
        index_ptr + group * POINTS, region, D, ALIGN, BLOCK_N, BLOCK_D,
    )
