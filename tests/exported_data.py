"""Small folders of labels, as annotation tools export them."""

import base64
import io
import json

import numpy as np
from PIL import Image

SIZE = (80, 60)
BOX, POLYGON = (8, 12, 40, 36), [8, 12, 40, 12, 40, 36]


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(str(path).encode()))
    Image.fromarray(noise.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)).save(path)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def yolo(root, images='{}/images', labels='{}/labels', splits=('train', 'valid'), polygon=False):
    """data.yaml with stale paths; the second image has no object."""
    text(root / 'data.yaml', 'path: D:/x\ntrain: ../train/images\nnc: 2\nnames: [cat, dog]\n')
    points = ' '.join(str(v / SIZE[i % 2]) for i, v in enumerate(POLYGON))
    for split in splits:
        for k in range(2):
            image(root / images.format(split) / f'{k}.jpg')
            row = f'1 {points}\n' if polygon else '1 0.3 0.4 0.4 0.4\n'
            text(root / labels.format(split) / f'{k}.txt', row * (1 - k))
        (root / labels.format(split) / 'labels.cache').write_bytes(b'\0')


def yolo_beside(root):
    points = ' '.join(str(v / SIZE[i % 2]) for i, v in enumerate(POLYGON))
    text(root / 'data.yaml', 'names:\n  0: cat\n  1: dog\n')
    for split in ('train', 'val'):
        image(root / split / '0.jpg')
        text(root / split / '0.txt', f'1 0.3 0.4 0.4 0.4\n0 {points}\n')


def yolo_of_cvat(root):
    yolo(root, 'obj_{}_data', 'obj_{}_data', splits=('train', 'Validation'))
    (root / 'data.yaml').unlink()
    text(root / 'obj.names', 'cat\ndog\n')
    text(root / 'obj.data', 'classes = 2\nnames = data/obj.names\n')


def yolo_of_label_studio(root):
    yolo(root, 'images', 'labels', splits=('',))
    (root / 'data.yaml').unlink()
    text(root / 'classes.txt', 'cat\ndog\n')
    text(root / 'notes.json', dict(categories=[dict(id=0, name='cat'), dict(id=1, name='dog')]))


def voc(root, images='JPEGImages', labels='Annotations'):
    corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), BOX, strict=True)
    box = ''.join(f'<{k}>{v}.0</{k}>' for k, v in corners)
    for k in range(3):
        image(root / images / f'{k}.jpg')
        entry = f'<object><name>{"dog" if k else "cat"}</name><bndbox>{box}</bndbox></object>'
        stale = f'<folder>old</folder><filename>old.png</filename><path>C:\\{k}.png</path>'
        text(root / labels / f'{k}.xml', f'<annotation>{stale}{entry}</annotation>')
    if images:
        text(root / 'ImageSets/Main/train.txt', '0\n1\n')
        text(root / 'ImageSets/Main/val.txt', '2\n')


def cvat(root):
    items = ''
    points = ';'.join(f'{x},{y}' for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True))
    for k in range(2):
        image(root / 'images' / f'{k}.jpg')
        items += f'<image id="{k}" name="{k}.jpg" width="80" height="60"><polygon label="cat" '
        items += f'points="{points}"/><mask label="dog" rle="2, 4, 2" left="8" top="12" '
        items += 'width="4" height="2"/><points label="cat" points="1,1"/></image>'
    names = '<label><name>dog</name></label><label><name>cat</name></label>'
    meta = f'<version>1.1</version><meta><task><labels>{names}</labels></task></meta>'
    text(root / 'annotations.xml', f'<annotations>{meta}{items}</annotations>')


def labelme(root):
    crop = io.BytesIO()
    Image.fromarray(np.full((5, 3), 255, np.uint8)).save(crop, 'PNG')
    shapes = [
        dict(label='cat', shape_type='polygon', points=np.reshape(POLYGON, (3, 2)).tolist()),
        dict(label='dog', shape_type='circle', points=[[40, 30], [50, 30]]),
        dict(label='dog', shape_type='rectangle', points=[[40, 36], [8, 12]]),
        dict(label='dog', shape_type='line', points=[[0, 0], [1, 1]]),
        dict(label='bit', shape_type='mask', points=[[10, 20], [12, 24]])
        | dict(mask=base64.b64encode(crop.getvalue()).decode()),
    ]
    for k in range(2):
        image(root / f'{k}.jpg')
        content = dict(version='5.0', shapes=shapes, imagePath=f'..\\x\\{k}.jpg', imageData=None)
        text(root / f'{k}.json', content)


def via(root, version=1):
    points = dict(name='polygon', all_points_x=POLYGON[::2], all_points_y=POLYGON[1::2])
    for split in ('train', 'val'):
        content = {}
        for k in range(2):
            image(root / split / f'{k}.png')
            kind = dict(type={'cat': False, 'dog': True}) if version == 2 else {}
            region = dict(shape_attributes=points, region_attributes=kind)
            regions = {'0': region} if version == 1 else [region]
            content[f'{k}.png99'] = dict(filename=f'{k}.png', size=99, regions=regions)
        content = dict(_via_img_metadata=content, _via_settings={}) if version == 2 else content
        text(root / split / 'via_region_data.json', content)


def detection_csv(root, header=True):
    box = ','.join(map(str, BOX))
    for split in ('train', 'test'):
        rows = ['filename,width,height,class,xmin,ymin,xmax,ymax'] * header
        for k in range(2):
            image(root / split / f'{k}.jpg')
            rows.append(f'{k}.jpg,80,60,dog,{box}' if header else f'{k}.jpg,{box},dog')
        text(root / split / '_annotations.csv', '\n'.join(rows))
