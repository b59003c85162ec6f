import pytest

from coc_mm.datasets import SceneSpec, ensure_digit_scenes

TINY_SPEC = dict(num_train=8, num_test=4, height=96, width=112, min_size=24, max_size=48)


@pytest.fixture
def tiny_spec():
    return SceneSpec(**TINY_SPEC)


@pytest.fixture(scope='session')
def tiny_scenes(tmp_path_factory):
    return ensure_digit_scenes(tmp_path_factory.mktemp('scenes') / 'tiny', TINY_SPEC)
