"""What the kinds of own data share: the widths that an arch brings."""

import pytest
from own_data import BOXES, FOLDERS, resolved
from shrunk_configs import make_class_folders, make_coco


@pytest.mark.parametrize(('name', 'arch'), [(FOLDERS, 'tiny'), (BOXES, 'base_dim96')])
def test_arch_alone_changes_all_widths(tmp_path, name, arch):
    (make_class_folders if name == FOLDERS else make_coco)(tmp_path)
    model = resolved(name, tmp_path, arch=arch)[0].model
    assert model.backbone.arch == arch
    if name == FOLDERS:
        assert model.head.in_channels == 320
    else:
        assert list(model.neck.in_channels) == [96, 192, 384, 768]
    with pytest.raises(ValueError, match='arch=huge: one of tiny'):
        resolved(name, tmp_path, arch='huge')
