"""Models by name: the metafiles, our own functions, the libraries' inferencers."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from coc_mm.apis import get_model, list_models
from coc_mm.apis.model_zoo import entries, find_entry
from coc_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ('classification', 'detection', 'segmentation')


def test_every_model_of_the_configs_has_an_entry():
    files = [path for family in FAMILIES for path in (ROOT / 'configs' / family).glob('*.py')]
    names = {path.stem for path in files if re.search('in1k|coco|ade20k', path.stem)}
    assert len(names) >= 30
    assert set(entries()) == names
    for name, entry in entries().items():
        assert Path(entry.config).stem == name
        assert Path(entry.config).is_file()


def test_figures_stand_apart():
    for entry in entries().values():
        assert list(entry['Figures']) == ['paper', 'released', 'converted', 'reproduced']
        assert all(not result['Metrics'] for result in entry['Results'])
    assert find_entry('coc-small_8xb128_in1k')['Figures'] == dict(
        paper={'top-1': 77.5}, released={'top-1': 78.1}, converted=None, reproduced=None
    )
    figures = find_entry('mask-rcnn_coc-m-c49_fpn_1x_coco')['Figures']['paper']
    assert (figures['box AP'], figures['mask AP75']) == (40.6, 39.9)
    assert find_entry('fpn_coc-m-c4_4xb4-80k_ade20k-512x512')['Figures']['paper'] == {'mIoU': 40.2}


def test_listing():
    tiny = ['coc-tiny-plain_8xb128_in1k', 'coc-tiny2_8xb128_in1k', 'coc-tiny_8xb128_in1k']
    assert list_models('coc-tiny*128_in') == list_models('COC-tiny*128_in1k') == tiny
    assert len(list_models('coc-tiny')) == 6
    assert list_models('nothing') == []
    assert len(list_models()) == sum(len(list_models(task=family)) for family in FAMILIES)
    with pytest.raises(ValueError, match='unknown task'):
        list_models(task='cooking')
    with pytest.raises(UserError, match='did you mean coc-tiny_8xb128_in1k'):
        get_model('coc-tiny_8xb128')


def test_model_with_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'coc-tiny_8xb128_in1k'
    with pytest.raises(UserError, match=r'official_to_coc_mm\.py FILE checkpoints/coc-tiny_'):
        get_model(name, pretrained=True)
    model = get_model(name.upper(), backbone=dict(backend='reference'))
    assert not model.training
    assert model.backbone.stages[0].blocks[0].mixer.backend == 'reference'
    Path('checkpoints').mkdir()
    record = dict(backbone=dict(denominator='count'))
    content = dict(meta=dict(coc_mm=record), state_dict=model.state_dict())
    torch.save(content, f'checkpoints/{name}.pth')
    loaded = get_model(name, pretrained=True)
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)
    assert loaded.backbone.stages[0].blocks[0].mixer.denominator == 'count'
    with pytest.raises(UserError, match='of another model'):
        get_model('coc-small_8xb128_in1k', pretrained=f'checkpoints/{name}.pth')


def test_metafiles_follow_the_format_of_modelindex():
    load = pytest.importorskip('modelindex.load_model_index').load
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert len(index.models) == len(entries())
    assert yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import'] == [
        f'configs/{family}/metafile.yml' for family in FAMILIES
    ]


INFERENCERS = """
import sys, warnings
{first}
import coc_mm
assert {early} or not {{'mmpretrain', 'mmdet', 'mmseg', 'mmengine.infer.infer'}} & set(sys.modules)
import mmpretrain
assert 'coc-tiny_8xb128_in1k' in mmpretrain.list_models()
model = mmpretrain.ImageClassificationInferencer('coc-tiny_8xb128_in1k', pretrained=False).model
assert type(model.backbone).__name__ == 'ContextCluster'
from mmdet.apis import DetInferencer
name = 'retinanet_coc-s-c4_fpn_1x_coco'
assert name in DetInferencer.list_models('mmdet', 'retinanet')
assert type(DetInferencer(name, device='cpu').model).__name__ == 'RetinaNet'
try:
    DetInferencer('fpn_coc-s-c4_4xb4-80k_ade20k-512x512', device='cpu')
except ValueError as error:
    assert 'Cannot find model' in str(error)
else:
    raise AssertionError('a segmentor was taken for a detector')
from mmseg.apis import MMSegInferencer
model = MMSegInferencer('upernet_coc-s-c4_4xb4-80k_ade20k-512x512', device='cpu').model
assert type(model.backbone).__name__ == 'ContextCluster'
print('all found')
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize('first', ['', 'import mmpretrain.apis, mmengine.infer'])
def test_names_in_the_libraries(first):
    code = INFERENCERS.format(first=first, early=bool(first))
    command = [sys.executable, '-W', 'ignore', '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert 'all found' in done.stdout, done.stderr[-2000:]


def test_page_has_the_tables_of_today():
    text = (ROOT / 'docs' / 'model_zoo.md').read_text()
    script = runpy.run_path(str(ROOT / 'docs' / 'zoo_tables.py'))
    assert script['update_page'](text) == text
    assert '40.6 / 63.3 / 43.9 / 37.6 / 60.1 / 39.9' in text
