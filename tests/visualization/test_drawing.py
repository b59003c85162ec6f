import numpy as np
import pytest

from coc_mm.visualization import cluster_colors, draw_clusters
from coc_mm.visualization.drawing import spread


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def draw(image, maps, channel_order='rgb', head=0, **options):
    return draw_clusters(image, maps, channel_order=channel_order, head=head, **options)


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize('alpha', [0, 0.25, 0.5, 1])
def test_alpha_is_exact(make_maps, order, alpha):
    image, maps = noise((61, 83)), make_maps()
    before = image.copy()
    out = draw(image, maps, channel_order=order, index=1, head=1, alpha=alpha)
    colors = cluster_colors(maps.folds, maps.centers_per_region).astype(np.float64)
    if order == 'bgr':
        colors = colors[:, ::-1]
    checked = 0
    for y in range(0, 61, 3):
        for x in range(0, 83, 3):
            point = int((y + 0.5) / 61 * 7), int((x + 0.5) / 83 * 10)
            cluster = maps.assignment[1, 1][point]
            exact = (1 - alpha) * image[y, x] + alpha * colors[cluster]
            np.testing.assert_allclose(out[y, x], exact, atol=0.5 + 1e-3)
            checked += 1
    assert checked == 21 * 28
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    if alpha == 0:
        np.testing.assert_array_equal(out, image)


def test_red_stays_red(make_maps):
    """A red picture in either order, and clusters of the same colors in both."""
    maps = make_maps()
    for order, red in (('rgb', 0), ('bgr', 2)):
        image = np.zeros((40, 40, 3), np.uint8)
        image[..., red] = 255
        out = draw(image, maps, channel_order=order, alpha=0.2)
        assert (out[..., red] >= 204).all()
        assert (out[..., [c for c in range(3) if c != red]] <= 51).all()
    image = noise((40, 50))
    rgb = draw(image, maps, outlines=True, centers=True)
    flipped = np.ascontiguousarray(image[..., ::-1])
    bgr = draw(flipped, maps, channel_order='bgr', outlines=True, centers=True)
    np.testing.assert_array_equal(rgb, bgr[..., ::-1])


def test_extent_places_the_map(make_maps):
    """A network that saw the middle of the picture, and one whose input was padded."""
    image, maps = noise((80, 100)), make_maps()
    out = draw(image, maps, alpha=1, extent=(0.25, 0.1, 0.75, 0.9))
    outside = np.ones((80, 100), bool)
    outside[20:60, 10:90] = False
    np.testing.assert_array_equal(out[outside], image[outside])
    middle = draw(image[20:60, 10:90], maps, alpha=1)
    np.testing.assert_array_equal(out[20:60, 10:90], middle)
    padded = draw(image, maps, alpha=1, extent=(0, 0, 1.4, 1.25))
    larger = draw(noise((112, 125)), maps, alpha=1)
    np.testing.assert_array_equal(padded, larger[:80, :100])


def test_borders_follow_uneven_regions(make_maps):
    maps = make_maps(size=(7, 10), folds=(2, 3))  # edges 3 of 7 and 3, 6 of 10
    out = draw(np.zeros((70, 100, 3), np.uint8), maps, alpha=0, borders=True)
    white = (out == 255).all(-1)
    rows = np.flatnonzero(white.all(1))
    cols = np.flatnonzero(white.all(0))
    assert rows.tolist() == [30]
    assert cols.tolist() == [30, 60]


def test_outlines_lie_where_clusters_meet(make_maps):
    maps = make_maps()
    image = np.full((70, 100, 3), 200, np.uint8)
    out = draw(image, maps, head=1, alpha=0, outlines=True)
    clusters = maps.assignment[0, 1].repeat_interleave(10, 0).repeat_interleave(10, 1).numpy()
    edge = np.zeros((70, 100), bool)
    edge[1:] |= clusters[1:] != clusters[:-1]
    edge[:, 1:] |= clusters[:, 1:] != clusters[:, :-1]
    assert edge.any()
    np.testing.assert_array_equal((out == 50).all(-1), edge)


def test_centers_are_marked_where_they_lie(make_maps):
    maps = make_maps(size=(8, 12), folds=(2, 3), proposals=(2, 2))
    image = np.zeros((320, 480, 3), np.uint8)
    out = draw(image, maps, alpha=0, centers=True)
    colors = cluster_colors((2, 3), 4)
    assert len(maps.center_positions) == 24
    for (y, x), color in zip(maps.center_positions.tolist(), colors, strict=True):
        np.testing.assert_array_equal(out[int(y * 320), int(x * 480)], color)


def test_highlight_shows_one_cluster(make_maps):
    maps, image = make_maps(), noise((70, 100))
    chosen = int(maps.assignment[0, 0, 3, 4])
    plain = draw(image, maps)
    out = draw(image, maps, highlight=chosen)
    clusters, _ = spread(maps.assignment[0, 0].numpy(), (70, 100))
    member = clusters == chosen
    np.testing.assert_array_equal(out[member], plain[member])
    rest = out[~member].astype(int)
    assert (rest.max(-1) == rest.min(-1)).all()
    assert rest.max() <= 102
    with pytest.raises(ValueError, match='clusters count from 0 to 11'):
        draw(image, maps, highlight=12)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(channel_order='RGB'), "'rgb' or 'bgr', got 'RGB'"),
        (dict(alpha=1.2), 'alpha must be from 0 to 1'),
        (dict(alpha=float('nan')), 'alpha must be from 0 to 1'),
        (dict(head=None), 'heads 0, 1: name one'),
        (dict(head=2), 'no head 2; they hold 0, 1'),
        (dict(image=np.zeros((5, 5), np.uint8)), r'\(height, width, 3\) of uint8'),
        (dict(image=np.zeros((5, 5, 3))), 'float64'),
    ],
)
def test_bad_arguments_are_named(make_maps, change, message):
    arguments = dict(image=noise((20, 20)), maps=make_maps())
    with pytest.raises(ValueError, match=message):
        draw(**{**arguments, **change})
