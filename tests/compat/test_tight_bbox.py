from types import SimpleNamespace

import matplotlib.pyplot as plt
from matplotlib.transforms import Bbox

from coc_mm.compat.tight_bbox import find_renderer


def test_the_renderer_is_that_of_the_figure():
    seen = []

    def new(fig, bbox_inches, renderer, fixed_dpi=None):
        seen.append((renderer, fixed_dpi))

    def old(fig, bbox_inches, fixed_dpi=None):
        seen.append((None, fixed_dpi))

    figure, box = plt.figure(), Bbox([[0, 0], [1, 1]])
    for adjust in (new, old):
        module = SimpleNamespace(adjust_bbox=adjust)
        find_renderer(module)
        module.adjust_bbox(figure, box)
    assert seen == [(figure.canvas.get_renderer(), None), (None, None)]
    find_renderer(module := SimpleNamespace(adjust_bbox=new))
    module.adjust_bbox(figure, box, 'given', 72)
    assert seen[-1] == ('given', 72)
    plt.close(figure)
