"""A served model answers as the library does, without importing it."""

import base64
import io
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image
from skimage import data

from coc_mm.apis.export import DeployModel, export_program, save_program
from coc_mm.apis.infer import TASKS, load_model
from coc_mm.apis.serving import OnnxModel, describe_pipeline, make_app, preprocess
from coc_mm.errors import UserError

LOAD = dict(type='LoadImageFromFile')
PIPELINES = [
    ('mmpretrain', dict(type='Resize', scale=(50, 70), interpolation='bicubic')),
    ('mmpretrain', dict(type='ResizeEdge', scale=61, edge='short', backend='pillow',
                        interpolation='bicubic'), dict(type='CenterCrop', crop_size=48)),
    ('mmpretrain', dict(type='ResizeEdge', scale=90, edge='long'), dict(type='CenterCrop',
                                                                       crop_size=(60, 32))),
    ('mmpretrain', dict(type='ResizeEdge', scale=33, edge='height', interpolation='area')),
    ('mmseg', dict(type='Resize', scale=(2048, 77), keep_ratio=True),
     dict(type='ResizeToMultiple', size_divisor=32)),
    ('mmseg', dict(type='Resize', scale_factor=0.3, keep_ratio=True)),
]  # fmt: skip


class Plain:
    data_preprocessor = None


@pytest.mark.parametrize('flag', ['color', 'grayscale'])
@pytest.mark.parametrize(('scope', 'steps'), [(scope, steps) for scope, *steps in PIPELINES])
def test_preprocessing_is_that_of_the_pipeline(scope, steps, flag, tmp_path):
    pytest.importorskip(scope)
    for name, shape in dict(wide=(151, 230), tall=(233, 140)).items():
        path = tmp_path / f'{name}.png'
        cv2.imwrite(str(path), cv2.resize(data.astronaut(), shape[::-1]))
        with DefaultScope.overwrite_default_scope(scope):
            built = [TRANSFORMS.build(x) for x in (dict(LOAD, color_type=flag), *steps)]
        wanted = dict(img_path=str(path))
        for step in built:
            wanted = step(wanted)
        written = json.loads(json.dumps(describe_pipeline(Plain(), built)))
        found, size = preprocess(path.read_bytes(), written)
        assert size == shape
        bands = wanted['img'][None] if flag == 'grayscale' else wanted['img'].transpose(2, 0, 1)
        np.testing.assert_array_equal(found[0], bands[::-1])


def test_what_cannot_be_described(projects):
    with DefaultScope.overwrite_default_scope('mmseg'):
        flip, load = map(TRANSFORMS.build, (dict(type='RandomFlip', prob=0.5), LOAD))
    with pytest.raises(UserError, match='RandomFlip'):
        describe_pipeline(Plain(), [load, flip])
    load.color_type = 'unchanged'
    with pytest.raises(UserError, match='loader'):
        describe_pipeline(Plain(), [load])
    net = load_model(Config.fromfile(projects['mmseg'].config), None)
    net.test_cfg['mode'] = 'slide'
    load.color_type = 'color'
    with pytest.raises(UserError, match='sliding'):
        describe_pipeline(net, [load])


class Answer(torch.nn.Module):
    """What a classifier or segmentor says of an image, without one."""

    def __init__(self, segments):
        super().__init__()
        self.segments = segments

    def forward(self, image):
        maps = torch.stack([image[:, 0], 255 - image[:, 0], image[:, 1] * 0 + 100], 1)
        return (maps if self.segments else maps.mean((2, 3)).softmax(1),)


@pytest.fixture
def served(tmp_path):
    def make(segments, **facts):
        path, image = tmp_path / 'm.onnx', torch.rand(1, 3, 64, 64)
        free = {2: torch.export.Dim('h', min=8), 3: torch.export.Dim('w', min=8)}
        program = torch.export.export(Answer(segments), (image,), dynamic_shapes=(free,))
        save_program(program, path, ['logits' if segments else 'scores'], facts)
        return path

    return make


STEPS = json.dumps([dict(type='LoadImageFromFile', color_type='color')])


def test_answers_over_http(served):
    testclient = pytest.importorskip('fastapi.testclient')
    names = json.dumps(['red', 'not red'])
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 20:, 2] = 255  # BGR
    png = cv2.imencode('.png', image)[1].tobytes()

    model = OnnxModel(str(served(False, preprocessing=STEPS, classes=names)), threads=1)
    client = testclient.TestClient(make_app(model))
    assert client.get('/').json()['classes'] == ['red', 'not red']
    rows = client.post('/predict', files=dict(file=png)).json()['predictions']
    assert [row['label'] for row in rows] == ['red', '2', 'not red']
    assert sum(row['score'] for row in rows) == pytest.approx(1)
    answer = client.post('/predict', files=dict(file=b'no image'))
    assert answer.status_code == 400
    assert 'no image that can be read' in answer.json()['detail']
    assert client.post('/predict', files=dict(file=bytes(2**25 + 1))).status_code == 413

    model = OnnxModel(str(served(True, preprocessing=STEPS, classes=names)))
    found = testclient.TestClient(make_app(model)).post('/predict', files=dict(file=png)).json()
    assert (found['height'], found['width']) == (40, 60)
    assert [(x['label'], x['share']) for x in found['classes']] == [
        ('red', pytest.approx(2 / 3)),
        ('not red', pytest.approx(1 / 3)),
    ]
    mask = cv2.imdecode(np.frombuffer(base64.b64decode(found['mask']), np.uint8), -1)
    np.testing.assert_array_equal(mask, image[..., 2] == 0)


def test_refused_files(served, tmp_path):
    with pytest.raises(UserError, match='does not exist'):
        OnnxModel(str(tmp_path / 'none.onnx'))
    with pytest.raises(UserError, match='preprocessing'):
        OnnxModel(str(served(False)))
    (tmp_path / 'bad.onnx').write_text('no model')
    with pytest.raises(UserError, match='cannot be read'):
        OnnxModel(str(tmp_path / 'bad.onnx'))


def test_maps_are_brought_to_the_size_of_the_image(served):
    """As mmseg does it: bilinear, then the likeliest class."""
    step = dict(type='Resize', scale=[64, 48], scale_factor=None, keep_ratio=False)
    step |= dict(interpolation='bilinear', backend='cv2')
    steps = [*json.loads(STEPS), step]
    png = cv2.imencode('.png', cv2.resize(data.chelsea(), (101, 83)))[1].tobytes()
    found = OnnxModel(str(served(True, preprocessing=json.dumps(steps)))).predict(png)
    maps = Answer(True)(torch.tensor(preprocess(png, steps)[0]))[0]
    wanted = torch.nn.functional.interpolate(maps, (83, 101), mode='bilinear')[0].argmax(0)
    mask = cv2.imdecode(np.frombuffer(base64.b64decode(found['mask']), np.uint8), -1)
    assert (mask == wanted.numpy()).mean() > 0.999


def test_as_the_library_predicts(projects, tmp_path):
    """In a process that holds neither torch nor OpenMMLab."""
    net = load_model(Config.fromfile(projects['mmpretrain'].config), None)
    task = TASKS['mmpretrain'](net)
    picture = tmp_path / 'cat.png'
    cv2.imwrite(str(picture), cv2.resize(data.chelsea(), (64, 64)))
    scores = task.predict(str(picture)).pred_score.tolist()
    steps = describe_pipeline(net, [task.load, *task.steps])
    program = export_program(DeployModel(net, 'mmpretrain'), (64, 64))
    save_program(program, tmp_path / 'm.onnx', ['scores'], dict(preprocessing=json.dumps(steps)))
    code = (
        'import json, sys; from coc_mm.apis.serving import OnnxModel; '
        'path, picture = sys.argv[1:]; content = open(picture, "rb").read(); '
        'print(json.dumps(OnnxModel(path, 1).predict(content))); '
        'assert not {"torch", "mmcv", "mmengine"} & set(sys.modules)'
    )
    run = [sys.executable, '-c', code, str(tmp_path / 'm.onnx'), str(picture)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)['predictions']:
        assert row['score'] == pytest.approx(scores[row['index']], abs=1e-5)


@pytest.mark.parametrize('form', ['jpeg', 'webp', 'avif'])
def test_images_are_turned_as_their_exif_says(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new('RGB', (60, 40), 'red').save(file, form, exif=exif)
    steps = [dict(type='LoadImageFromFile', color_type='color')]
    image, size = preprocess(file.getvalue(), steps)
    assert (image.shape, size) == ((1, 3, 60, 40), (60, 40))
