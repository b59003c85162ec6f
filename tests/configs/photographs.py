"""Own data as users have it: crops, objects and masks of real photographs.

They come from a small part of COCO where it lies beside the checkout, and are drawn otherwise:
images of the same layout, names and classes.
"""

import json

import numpy as np
from PIL import Image
from shrunk_configs import ROOT, make_ade, make_class_folders, make_coco

COCO = ROOT.parent / 'shared' / 'data' / 'coco_mini'
REAL = (COCO / 'annotations' / 'instances_train2017.json').is_file()
CLASSES = ('car', 'cup', 'person')
IMAGES = dict(train2017=6, val2017=3)


def _objects(split):
    """Give the annotation file of a split, cut to a few images that show the classes."""
    content = json.loads((COCO / 'annotations' / f'instances_{split}.json').read_text())
    wanted = {c['id'] for c in content['categories'] if c['name'] in CLASSES}
    shown = [a for a in content['annotations'] if a['category_id'] in wanted and not a['iscrowd']]
    images = set()
    for category in sorted(wanted):
        found = sorted({a['image_id'] for a in shown if a['category_id'] == category})
        images.update(found[: IMAGES[split] // len(wanted)])
    return dict(
        images=[image for image in content['images'] if image['id'] in images],
        annotations=[a for a in shown if a['image_id'] in images],
        categories=[c for c in content['categories'] if c['id'] in wanted],
    )


def class_folders(root):
    """``root/CLASS/*.jpg``: objects cut out of photographs."""
    if not REAL:
        return make_class_folders(root, CLASSES)
    content = json.loads((COCO / 'annotations' / 'instances_train2017.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    files = {image['id']: image['file_name'] for image in content['images']}
    written = dict.fromkeys(CLASSES, 0)
    for entry in content['annotations']:
        name, (x, y, w, h) = names[entry['category_id']], map(int, entry['bbox'])
        if written.get(name, 5) == 5 or min(w, h) < 12:
            continue
        (root / name).mkdir(parents=True, exist_ok=True)
        with Image.open(COCO / 'train2017' / files[entry['image_id']]) as photo:
            crop = photo.convert('RGB').crop((x, y, x + w, y + h))
        crop.save(root / name / f'{entry["id"]}.jpg')
        written[name] += 1
    assert set(written.values()) == {5}, written
    return None


def coco(root):
    """``annotations/instances_train2017.json`` and ``train2017``, the same of val2017."""
    if not REAL:
        return make_coco(root, categories=CLASSES)
    (root / 'annotations').mkdir(parents=True)
    for split in IMAGES:
        content = _objects(split)
        file = root / 'annotations' / f'instances_{split}.json'
        file.write_text(json.dumps(content))
        (root / split).mkdir()
        for image in content['images']:
            photo = COCO / split / image['file_name']
            (root / split / image['file_name']).write_bytes(photo.read_bytes())
    return None


def image_masks(root):
    """``images/SPLIT/*.jpg`` and masks of 0 (none of the classes) to 3, made of the objects."""
    if not REAL:
        return make_ade(root)
    from pycocotools import mask as coder

    for split, name in (('train2017', 'training'), ('val2017', 'validation')):
        content = _objects(split)
        values = {c['id']: CLASSES.index(c['name']) + 1 for c in content['categories']}
        for folder in ('images', 'annotations'):
            (root / folder / name).mkdir(parents=True)
        for image in content['images']:
            size = image['height'], image['width']
            mask = np.zeros(size, np.uint8)
            for entry in content['annotations']:
                if entry['image_id'] == image['id']:
                    outline = entry['segmentation']
                    if isinstance(outline, list):
                        outline = coder.merge(coder.frPyObjects(outline, *size))
                    elif isinstance(outline['counts'], list):
                        outline = coder.frPyObjects(outline, *size)
                    mask[coder.decode(outline) > 0] = values[entry['category_id']]
            photo = COCO / split / image['file_name']
            (root / 'images' / name / photo.name).write_bytes(photo.read_bytes())
            Image.fromarray(mask).save(root / 'annotations' / name / f'{photo.stem}.png')
    return None
