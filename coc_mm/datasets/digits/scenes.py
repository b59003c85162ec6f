"""Writing the digit scenes to disk once, safely, and finding them again.

One tree serves detection, instance and semantic segmentation::

    data/digit_scenes/
      manifest.json                     written last: spec, generator, checksum of every file
      images/{training,validation}/     scene_00000.jpg, ... (ADE20K-like)
      annotations/{training,validation}/scene_00000.png, ... the semantic maps
      annotations/instances_{training,validation}.json       COCO, masks as RLE

The semantic maps count the background as class 0 and digit d as class d + 1, so that a model that
paints digits all over the background loses by it.
"""

import hashlib
import json
import tempfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from filelock import FileLock
from mmengine.logging import print_log

from coc_mm.datasets.digits import digits
from coc_mm.datasets.digits import render as scene_render
from coc_mm.datasets.digits.digits import CLASSES, load_digits_split
from coc_mm.datasets.digits.render import SceneSpec, compose_scene

MANIFEST = 'manifest.json'
FOLDERS = dict(train='training', test='validation')
BACKGROUND_LABEL = 0


def generator_fingerprint() -> str:
    """A digest of the code that composes the scenes: a tree of other code is rebuilt."""
    digest = hashlib.sha256()
    for module in (digits.__file__, scene_render.__file__, __file__):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:16]


def ensure_digit_scenes(root: str | Path, spec: SceneSpec | dict | None = None) -> Path:
    """Make sure that the scenes lie under ``root``, composing them if they do not.

    A complete tree of the same spec and generator is left as it is. Otherwise the scenes are
    written into a folder beside ``root``, which takes its place in one rename; a lock lets one
    process of a distributed run work while the others wait. Raises FileExistsError if ``root``
    holds something else.
    """
    root = Path(root)
    spec = spec if isinstance(spec, SceneSpec) else SceneSpec(**(spec or {}))
    if _fault(root, spec) is None:
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{root}.lock'):
        fault = _fault(root, spec)  # another process may have been faster
        if fault is not None:
            _rebuild(root, spec, fault)
    return root


def _fault(root, spec):
    """Why the tree under ``root`` cannot be used as it is, or None."""
    if not root.exists():
        return 'not there yet'
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        files = manifest['files']
        if manifest['spec'] != asdict(spec) or manifest['generator'] != generator_fingerprint():
            return 'of another spec or generator'
        damaged = [name for name, checksum in files.items() if _checksum(root / name) != checksum]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 'damaged: its manifest or a file is unreadable'
    return f'damaged: {damaged[0]} has changed' if damaged else None


def _rebuild(root, spec, fault):
    """Compose the scenes beside ``root`` and put them in its place."""
    if root.exists() and not (root / MANIFEST).exists() and (root.is_file() or any(root.iterdir())):
        raise FileExistsError(
            f'{root} exists and is no folder of digit scenes (it has no {MANIFEST}): move it away '
            'or name another data_root.'
        )
    total = spec.num_train + spec.num_test
    print_log(
        f'Composing {total} digit scenes into {root} ({fault}); this happens once.', 'current'
    )
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}.', dir=root.parent) as stage:
        fresh = Path(stage, 'new')
        _write_tree(fresh, spec)
        if root.exists():
            root.rename(Path(stage, 'old'))
        fresh.rename(root)


def _write_tree(root, spec):
    """Write both splits and, last, the manifest."""
    for split in FOLDERS:
        _write_split(root, split, spec)
    paths = sorted(path for path in root.rglob('*') if path.is_file())
    manifest = dict(
        spec=asdict(spec),
        generator=generator_fingerprint(),
        files={path.relative_to(root).as_posix(): _checksum(path) for path in paths},
    )
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _write_split(root: Path, split: str, spec: SceneSpec) -> None:
    """Write the images, the semantic maps and the COCO annotations of one split."""
    folder = FOLDERS[split]
    for kind in ('images', 'annotations'):
        (root / kind / folder).mkdir(parents=True)
    pool = load_digits_split(split)
    coco: dict[str, Any] = dict(
        info=dict(description='Scenes of handwritten digits', version=generator_fingerprint()),
        images=[],
        annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
    )
    for number in range(spec.num_train if split == 'train' else spec.num_test):
        # Seeded one by one, a scene does not depend on how many others are asked for.
        rng = np.random.RandomState([spec.seed, list(FOLDERS).index(split), number])
        image, found = compose_scene(spec, pool, rng)
        semantic = np.full(image.shape[:2], BACKGROUND_LABEL, dtype=np.uint8)
        for digit in found:
            semantic[digit.mask] = digit.label + 1
        name = f'scene_{number:05d}'
        _write_image(root / 'images' / folder / f'{name}.jpg', image)
        _write_image(root / 'annotations' / folder / f'{name}.png', semantic)
        size = dict(height=spec.height, width=spec.width)
        coco['images'].append(dict(id=number, file_name=f'{name}.jpg', **size))
        coco['annotations'] += _annotations(found, number, len(coco['annotations']))
    (root / 'annotations' / f'instances_{folder}.json').write_text(json.dumps(coco))


def _annotations(found, image_id, first_id):
    """The COCO annotations of one scene; ``digit_index`` says which digit was used."""
    return [
        dict(
            id=first_id + i,
            image_id=image_id,
            category_id=digit.label + 1,
            bbox=digit.bbox,
            area=int(digit.mask.sum()),
            iscrowd=0,
            segmentation=encode_rle(digit.mask),
            digit_index=digit.digit_index,
        )
        for i, digit in enumerate(found)
    ]


def encode_rle(mask: np.ndarray) -> dict:
    """Encode a mask ``(height, width)`` as COCO's uncompressed run lengths.

    pycocotools would do this too, but a machine with mmseg alone has none.
    """
    flat = np.concatenate([[False], mask.ravel(order='F')])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    bounds = np.concatenate([[0], edges, [mask.size]])
    return dict(size=list(mask.shape), counts=np.diff(bounds).tolist())


def _write_image(path, array):
    """Write an image; encoded in memory, since cv2.imwrite is silent about a full disk."""
    done, data = cv2.imencode(path.suffix, array)
    if not done:
        raise OSError(f'cannot encode {path}.')
    path.write_bytes(data.tobytes())


def _checksum(path):
    """CRC-32 of a file, eight hexadecimal digits."""
    return f'{zlib.crc32(path.read_bytes()):08x}'
