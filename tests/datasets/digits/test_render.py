import pytest

from coc_mm.datasets import SceneSpec


@pytest.mark.parametrize(
    'wrong',
    [dict(num_train=0), dict(min_digits=4, max_digits=3), dict(max_size=200), dict(max_hidden=1.0)],
)
def test_inconsistent_spec_is_refused(wrong):
    with pytest.raises(ValueError, match=r'must|fit'):
        SceneSpec(**wrong)
