"""Positions of points."""

import torch

from coc_mm.models.layers import append_positions
from coc_mm.models.layers import point_reducer as reducer


def test_half_precision_positions_stay_apart():
    image = torch.zeros(1, 3, 4, 1000, dtype=torch.bfloat16)
    cols = append_positions(image)[0, 0, :, 4]
    exact = torch.arange(1000) / 999 - 0.5
    torch.testing.assert_close(cols, exact.to(torch.bfloat16))


def test_positions_are_the_papers_and_cached():
    reducer._cached_positions.cache_clear()
    with torch.inference_mode():
        append_positions(torch.zeros(1, 3, 3, 5))
    points = append_positions(torch.zeros(2, 3, 3, 5))
    assert points.shape == (2, 3, 5, 5)
    torch.testing.assert_close(points[1, :, 2, 3], torch.tensor([-0.5, 0.0, 0.5]))
    torch.testing.assert_close(points[0, 1, :, 4], torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5]))
    info = reducer._cached_positions.cache_info()
    assert (info.misses, info.hits) == (2, 2)
    # Not an inference tensor: it may take part in training.
    assert not reducer._cached_positions(3, torch.device('cpu'), torch.float32).is_inference()
