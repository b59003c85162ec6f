import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _scope_ends_with_the_test():
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)
