"""The trees of the recipes lie where the configs look for them."""

from pathlib import Path

from mmengine.config import Config

from coc_mm.prepare import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def test_recipes_agree_with_the_configs():
    base = ROOT / 'configs' / '_base_' / 'datasets'
    roots = {
        'imagenet': ('imagenet_bs128_coc_224.py', 'data/imagenet', ('train', 'val')),
        'coco': ('coco_instance.py', 'data/coco/', ('train2017', 'val2017')),
    }
    for name, (config, expected, folders) in roots.items():
        found = Config.fromfile(base / config).data_root
        assert found == expected
        assert Path(found) == Path(RECIPES[name].root)
        assert {part.name for part in RECIPES[name].parts} >= set(folders)
    ade = Config.fromfile(base / 'ade20k_512x512.py')
    (part,) = RECIPES['ade20k'].parts
    prefixes = ade.train_dataloader.dataset.data_prefix.values()
    for prefix in prefixes:
        full = Path(ade.data_root, prefix).relative_to(RECIPES['ade20k'].root)
        assert full.as_posix() in part.counts
    points = Config.fromfile(
        ROOT / 'projects/point_cloud/configs/pointmlp-coc_1xb32-250e_scanobjectnn.py'
    )
    assert points.data_root == f'{RECIPES["scanobjectnn"].root}/h5_files'
