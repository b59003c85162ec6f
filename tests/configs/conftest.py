import pytest
from mmengine.registry import DefaultScope
from shrunk_configs import make_ade, make_class_folders, make_coco, make_imagenet


@pytest.fixture(autouse=True)
def _scope_ends_with_the_test():
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    """A folder with data as the configs expect it below ``data/``."""
    root = tmp_path_factory.mktemp('data')
    make_imagenet(root / 'imagenet')
    from mmdet.datasets import CocoDataset

    make_coco(root / 'coco', categories=CocoDataset.METAINFO['classes'])
    make_coco(root / 'objects', categories=('disc', 'ring'))
    make_ade(root / 'ade')
    make_class_folders(root / 'folders')
    return root
