"""The config files, and what makes one run on a few tiny images: sizes, not steps."""

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
FAMILIES = ('classification', 'detection', 'segmentation')
FILES = {family: sorted((CONFIGS / family).glob('*.py')) for family in FAMILIES}
NUM_FILES = dict(classification=17, detection=13, segmentation=11)
PATHS = [path for family in FAMILIES for path in FILES[family]]

# Numbers of boxes, of which there are fewer on small images; a threshold that lets an
# untrained model predict something.
COUNTS = dict(nms_pre=50, max_per_img=20, num=16, score_thr=0.0)
# The sizes that occur in the pipelines and what they become; a test sees that all do.
SIZES = {224: 64, 248: 72, (1333, 800): (96, 64), (2048, 512): (128, 64), (512, 512): (64, 64)}


def name_of(path):
    return path.stem


def shrink(node, seen=None):
    """Replace image sizes and workers in a nested config, in place."""
    seen = set() if seen is None else seen
    if isinstance(node, (list, tuple)):
        for child in node:
            shrink(child, seen)
    elif isinstance(node, dict):
        for key in ('scale', 'crop_size', 'size'):
            value = node.get(key)
            value = tuple(value) if isinstance(value, list) else value
            if isinstance(value, (int, tuple)) and value in SIZES:
                node[key] = SIZES[value]
                seen.add(value)
        for key in COUNTS.keys() & node.keys():
            node[key] = COUNTS[key]
        if 'num_workers' in node:
            node.update(num_workers=0, persistent_workers=False)
        for child in node.values():
            shrink(child, seen)
    return seen


def load(path):
    """Read a config file with its sizes shrunk and nothing to be written."""
    cfg = Config.fromfile(path)
    # Lists of pipelines occur under several names: those of the loaders count.
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'model'):
        shrink(cfg[key])
    if 'data_preprocessor' in cfg:
        shrink(cfg.data_preprocessor)
    cfg.default_hooks.checkpoint = None
    cfg.randomness = dict(seed=0)
    cfg.env_cfg.cudnn_benchmark = False
    return cfg


def _photo(rng, height, width):
    """A smooth random image with a brighter disc, and the disc as a mask."""
    coarse = rng.integers(0, 120, (4, 4, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
    y, x = np.mgrid[:height, :width]
    cy, cx, r = height * rng.uniform(0.4, 0.6), width * rng.uniform(0.4, 0.6), height / 4
    disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
    image[disc] = 230
    return image, disc


def make_class_folders(root, classes=('cat', 'dog', 'owl'), per_class=5):
    """``root/CLASS/*.jpg``."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(per_class):
            Image.fromarray(_photo(rng, 72, 80)[0]).save(root / name / f'{name}{k}.jpg')


def make_imagenet(root):
    """Two images per split, with the lists that ``ImageNet`` reads where they exist."""
    rng = np.random.default_rng(1)
    for split in ('train', 'val'):
        lines = []
        for label, name in ((7, 'n01514668'), (999, 'n15075141')):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.fromarray(_photo(rng, 80, 96)[0]).save(folder / 'a.JPEG')
            lines.append(f'{name}/a.JPEG {label}')
        (root / 'meta').mkdir(exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines))


def make_coco(root, masks=True, categories=('person', 'cup')):
    """``annotations/instances_train2017.json`` and ``train2017``, the same of val2017."""
    rng = np.random.default_rng(2)
    (root / 'annotations').mkdir(parents=True)
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        content = dict(images=[], annotations=[], categories=[])
        for index, name in enumerate(categories):
            content['categories'].append(dict(id=2 * index + 1, name=name))
        for k in range(1, 3):
            image, disc = _photo(rng, 80, 120)
            Image.fromarray(image).save(root / split / f'{k}.jpg')
            content['images'].append(dict(id=k, file_name=f'{k}.jpg', height=80, width=120))
            ys, xs = np.nonzero(disc)
            x, y = int(xs.min()), int(ys.min())
            w, h = int(xs.max()) - x + 1, int(ys.max()) - y + 1
            ann = dict(id=k, image_id=k, category_id=2 * (k % 2) + 1, iscrowd=0)
            ann.update(bbox=[x, y, w, h], area=int(disc.sum()))
            if masks:
                ann['segmentation'] = [[x, y + h / 2, x + w / 2, y, x + w, y + h / 2]]
            content['annotations'].append(ann)
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def make_ade(root, splits=('training', 'validation'), images='images', masks='annotations'):
    """Images and masks whose values are 0 and 3; a split '' puts them side by side."""
    rng = np.random.default_rng(3)
    for split in splits:
        for folder in (images, masks):
            (root / folder / split).mkdir(parents=True)
        for k in range(4):
            image, disc = _photo(rng, 64, 96)
            Image.fromarray(image).save(root / images / split / f'{k}.jpg')
            mask = np.where(disc, 3, 0).astype(np.uint8)
            Image.fromarray(mask).save(root / masks / split / f'{k}.png')
