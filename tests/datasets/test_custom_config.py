"""What the kinds of own data share: the widths that an arch brings."""

import pytest
from own_data import BOXES, FOLDERS, resolved, write_coco
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


def test_classes_and_colors_of_a_config_stay(tmp_path):
    write_coco(tmp_path)
    dataset = dict(metainfo=dict(classes=('b',), palette=[(1, 2, 3)], note='mine'))
    cfg, says = resolved(BOXES, tmp_path, train_dataloader=dict(dataset=dataset))
    metainfo = dict(classes=['b'], palette=[(1, 2, 3)], note='mine')
    assert cfg.train_dataloader.dataset.metainfo == metainfo
    assert cfg.val_dataloader.dataset.metainfo.classes == ['b']
    assert (cfg.model.bbox_head.num_classes, '1 classes (b)' in says) == (1, True)
    dataset['metainfo'].pop('classes')  # colors of other classes
    cfg, _ = resolved(BOXES, tmp_path, train_dataloader=dict(dataset=dataset))
    assert len(cfg.train_dataloader.dataset.metainfo.palette) == 2
