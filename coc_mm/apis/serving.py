"""Serve an exported ONNX file over HTTP: onnxruntime and FastAPI, no PyTorch, no OpenMMLab.

The file's metadata say how an image becomes the input: :func:`describe_pipeline` writes them at
export, :func:`preprocess` does what they say, in the sizes and roundings of the test pipeline.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from coc_mm.compat.exif import is_left_as_stored, turn
from coc_mm.errors import UserError

MAX_BYTES = 32 * 2**20  # of an uploaded file
# Type of a step -> its attributes that are written down.
_STEPS = {
    'LoadImageFromFile': ('color_type',),
    'Resize': ('scale', 'scale_factor', 'keep_ratio', 'interpolation', 'backend'),
    'ResizeEdge': ('scale', 'edge', 'interpolation', 'backend'),
    'ResizeToMultiple': ('size_divisor', 'interpolation'),
    'CenterCrop': ('crop_size',),
}


def describe_pipeline(model: Any, steps: list) -> list[dict[str, Any]]:
    """Describe the test pipeline of a classifier or segmentor, for the metadata of its file.

    Args:
        model: The model of mmpretrain or mmseg.
        steps: The built transforms of its test pipeline, without loading of annotations.

    Raises:
        UserError: A step, or what the model does beside the network, cannot be described.
    """
    described = []
    for step in steps:
        kind = type(step).__name__
        if kind.startswith('Pack'):
            continue
        if kind not in _STEPS or getattr(step, 'auto_pad', False):
            raise UserError(f'{kind} of the test pipeline')
        described.append(dict(type=kind, **{key: getattr(step, key) for key in _STEPS[kind]}))
    if described[0].get('color_type') not in ('color', 'grayscale'):
        raise UserError('another loader than of color or grayscale images')
    pads = getattr(model.data_preprocessor, 'test_cfg', None)
    if pads or getattr(model.data_preprocessor, 'pad_size_divisor', 1) > 1:
        raise UserError('padding by the data preprocessor')
    if hasattr(model, 'decode_head'):
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise UserError('a test by sliding windows')
        if model.align_corners or model.num_classes < 2:
            raise UserError('a head with align_corners or a single output')
    return described


def preprocess(content: bytes, steps: list[dict[str, Any]]) -> tuple[np.ndarray, tuple[int, int]]:
    """Turn the bytes of an image file into the input of a model.

    Returns:
        tuple: float32 (1, C, H, W), RGB or gray, 0 to 255; height and width of the image itself,
        turned as its EXIF says.

    Raises:
        UserError: OpenCV cannot read it.
    """
    import cv2

    flag = cv2.IMREAD_GRAYSCALE if steps[0]['color_type'] == 'grayscale' else cv2.IMREAD_COLOR
    stored = is_left_as_stored(content)
    flag |= cv2.IMREAD_IGNORE_ORIENTATION if stored else 0
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flag) if content else None
    if image is None:
        raise UserError('this is no image that can be read (JPEG, PNG, WebP, TIFF, BMP, ...)')
    image = np.ascontiguousarray(turn(image, content)) if stored else image
    size = image.shape[:2]
    for step in steps[1:]:
        if step['type'] == 'CenterCrop':
            width, height = step['crop_size']
            top = max(0, round((image.shape[0] - height) / 2))
            left = max(0, round((image.shape[1] - width) / 2))
            image = image[top : top + height, left : left + width]
        else:
            image = _resize(image, _new_size(image, step), step)
    image = image[None] if image.ndim == 2 else image[..., ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(image[None], np.float32), size


def _new_size(image: np.ndarray, step: dict[str, Any]) -> tuple[int, int]:
    """Width and height after a step that resizes."""
    height, width = image.shape[:2]
    if step['type'] == 'ResizeToMultiple':
        divisor = step['size_divisor']
        return math.ceil(width / divisor) * divisor, math.ceil(height / divisor) * divisor
    scale = step['scale']
    if step['type'] == 'ResizeEdge':
        short = width < height
        if step['edge'] == 'width' or step['edge'] == ('short' if short else 'long'):
            return scale, int(scale * height / width)
        return int(scale * width / height), scale
    if scale is None:
        factor = step['scale_factor']
        by = factor if isinstance(factor, (list, tuple)) else (factor, factor)
        return int(width * by[0] + 0.5), int(height * by[1] + 0.5)
    if not step['keep_ratio']:
        return tuple(scale)
    ratio = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(width * ratio + 0.5), int(height * ratio + 0.5)


def _resize(image: np.ndarray, size: tuple[int, int], step: dict[str, Any]) -> np.ndarray:
    how = step['interpolation'] or 'bilinear'
    if step.get('backend') == 'pillow':
        from PIL import Image

        return np.array(Image.fromarray(image).resize(size, Image.Resampling[how.upper()]))
    import cv2

    ways = dict(bilinear='LINEAR', bicubic='CUBIC', lanczos='LANCZOS4')
    return cv2.resize(
        image, size, interpolation=getattr(cv2, f'INTER_{ways.get(how, how.upper())}')
    )


class OnnxModel:
    """A classifier or segmentor that ``export`` wrote as ONNX, with its preprocessing.

    Args:
        path (str): The file.
        threads (int, optional): Threads of onnxruntime; by default it decides.

    Raises:
        UserError: It is no such file, or was exported without its preprocessing.
    """

    def __init__(self, path: str, threads: int | None = None) -> None:
        import onnxruntime

        if not Path(path).is_file():
            raise UserError(f'model {path} does not exist; write one with: coc export CONFIG CKPT')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        providers = onnxruntime.get_available_providers()
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's classes of errors share no base
            raise UserError(f'model {path} cannot be read by onnxruntime: {error}') from error
        facts = self.session.get_modelmeta().custom_metadata_map
        if 'preprocessing' not in facts:
            raise UserError(
                f'model {path} says nothing of its preprocessing: it is no classifier or segmentor '
                'that coc export wrote, or one whose pipeline it could not describe.'
            )
        self.name = facts.get('config', Path(path).name)
        self.steps: list[dict[str, Any]] = json.loads(facts['preprocessing'])
        self.classes: list[str] = json.loads(facts.get('classes', '[]'))
        (output,) = self.session.get_outputs()
        self.segments = output.name == 'logits'

    def _class(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)

    def predict(self, content: bytes, topk: int = 5) -> dict[str, Any]:
        """Predict on the bytes of an image file; a dict that JSON can hold.

        Classifiers give ``predictions``, the ``topk`` likeliest, each ``index``, ``label`` and
        ``score``. Segmentors give ``height``, ``width``, ``classes``, each ``index``, ``label`` and
        ``share`` of the pixels, and ``mask``, a PNG of class indices in base64.
        """
        image, size = preprocess(content, self.steps)
        (found,) = self.session.run(None, {'image': image})
        if self.segments:
            return self._segments(found[0], size)
        best = np.argsort(-found[0])[:topk]
        rows = [dict(index=int(i), label=self._class(i), score=float(found[0][i])) for i in best]
        return dict(predictions=rows)

    def _segments(self, logits: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
        import cv2

        best, mask = np.full(size, -np.inf, np.float32), np.zeros(size, np.uint16)
        for index, plane in enumerate(logits):  # one at a time: a hundred full maps are large
            plane = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
            wins = plane > best
            best[wins], mask[wins] = plane[wins], index
        counts = np.bincount(mask.ravel())
        classes = [
            dict(index=int(i), label=self._class(i), share=float(counts[i] / mask.size))
            for i in np.argsort(-counts)
            if counts[i]
        ]
        png = cv2.imencode('.png', mask.astype(np.uint8) if len(logits) <= 256 else mask)[1]
        text = base64.b64encode(png.tobytes()).decode()
        return dict(height=size[0], width=size[1], classes=classes, mask=text)


def make_app(model: OnnxModel) -> Any:
    """Make a FastAPI application: ``POST /predict`` with a form's ``file``; ``GET /`` describes."""
    from fastapi import FastAPI, HTTPException, UploadFile

    app = FastAPI(title=model.name)

    @app.get('/')
    def describe() -> dict[str, Any]:
        task = 'segmentation' if model.segments else 'classification'
        return dict(model=model.name, task=task, classes=model.classes)

    @app.post('/predict')
    def predict(file: UploadFile) -> dict[str, Any]:
        content = file.file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise HTTPException(413, f'the file has more than {MAX_BYTES >> 20} MiB')
        try:
            return model.predict(content)
        except UserError as error:
            raise HTTPException(400, str(error)) from None

    return app
