import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _no_scope_of_other_tests():
    """A runner of another test file may have left its library's scope in this process."""
    DefaultScope._instance_dict.clear()
