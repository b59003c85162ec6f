import numpy as np
import pytest

from coc_mm.visualization import cluster_colors, palette
from coc_mm.visualization.palette import perceived


def least_distance(colors):
    pairs = [(i, j) for i in range(len(colors)) for j in range(i)]
    first, second = np.transpose(pairs)
    difference = perceived(colors[first]) - perceived(colors[second])
    return np.sqrt((difference**2).sum(-1)).min()


def test_oklab_matches_the_published_values():
    # https://bottosson.github.io/posts/oklab/ : white, and sRGB red, green, blue.
    known = {
        (255, 255, 255): (1.0, 0.0, 0.0),
        (255, 0, 0): (0.628, 0.225, 0.126),
        (0, 255, 0): (0.866, -0.234, 0.179),
        (0, 0, 255): (0.452, -0.032, -0.312),
    }
    for color, lab in known.items():
        np.testing.assert_allclose(perceived(color)[0, 0], lab, atol=1e-3)


def test_dichromats_confuse_what_they_should():
    red, green = np.array([[200, 60, 60]]), np.array([[110, 110, 60]])
    seen = perceived(red) - perceived(green)
    normal, protan, deutan, tritan = np.sqrt((seen**2).sum(-1))[:, 0]
    assert min(normal, tritan) > 2 * min(protan, deutan)
    grey = perceived([[128, 128, 128]])
    np.testing.assert_allclose(grey, np.broadcast_to(grey[:1], grey.shape), atol=1e-5)


@pytest.mark.parametrize(
    ('count', 'apart'), [(4, 0.15), (7, 0.07), (16, 0.07), (32, 0.05), (64, 0.035)]
)
def test_colors_stay_apart_for_every_kind_of_vision(count, apart):
    colors = palette(count)
    assert colors.shape == (count, 3)
    assert colors.dtype == np.uint8
    assert least_distance(colors) > apart


def test_the_palette_is_stable_and_grows_at_its_end():
    np.testing.assert_array_equal(palette(40)[:16], palette(16))
    assert len(np.unique(palette(300), axis=0)) == 300
    assert len(palette(2000)) == 2000
    # The same in every run and on every machine.
    assert palette(12)[5:].tolist() == [
        [0, 158, 115],
        [204, 121, 167],
        [133, 22, 22],
        [133, 255, 244],
        [44, 67, 133],
        [155, 111, 255],
        [177, 55, 22],
    ]


@pytest.mark.parametrize('folds', [(1, 1), (1, 5), (3, 1), (3, 4), (8, 8)])
@pytest.mark.parametrize('centers', [1, 4, 6, 15, 49])
def test_touching_regions_share_no_color(folds, centers):
    rows, cols = folds
    colors = cluster_colors(folds, centers)
    assert colors.shape == (rows * cols * centers, 3)
    sets = [{tuple(c) for c in colors[r * centers : (r + 1) * centers]} for r in range(rows * cols)]
    assert all(len(own) == centers for own in sets)
    touching = 0
    for y in range(rows):
        for x in range(cols):
            for other in ((y + 1, x - 1), (y + 1, x), (y + 1, x + 1), (y, x + 1)):
                if 0 <= other[0] < rows and 0 <= other[1] < cols:
                    assert not sets[y * cols + x] & sets[other[0] * cols + other[1]]
                    touching += 1
    assert touching == rows * (cols - 1) + (rows - 1) * cols + 2 * (rows - 1) * (cols - 1)
