"""Arguments of the command that prepares data sets."""

from functools import partial

import pytest

from coc_mm.utils.download import download

TOOL = 'dataset_converters/prepare'


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--check', '--only', 'train2017'], 'lacks\n  train2017: train2017 holds 0 of 118287'),
        (['--only', 'test'], '--only test: coco has the parts train2017'),
        (['--archives', 'no'], '--archives no: no such folder'),
    ],
)
def test_refuses(refused, arguments, says):
    refused(TOOL, 'coco', *arguments, says=[says], leaves=['data'])


def test_wrong_usage(misused):
    misused(TOOL, 'coco', '--jobs', '0', says='--jobs')


def test_a_small_disk_and_folders_that_cannot_be_made(refused, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr('shutil.disk_usage', lambda path: type('', (), dict(free=1)))
        refused(TOOL, 'coco', '--root', 'x', says=['are needed'], leaves=['x'])
    monkeypatch.setattr('coc_mm.prepare.tree._check_room', lambda *_: None)
    (tmp_path / 'file').write_text('in the way')
    for way in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        refused(TOOL, 'coco', '--root', way, says=[f'error: {way} cannot be made'])
    monkeypatch.setattr('coc_mm.prepare.tree.download', partial(download, tries=1))
    nowhere = 'http://127.0.0.1:9'
    refused(TOOL, 'coco', '--only', 'val2017', '--url', nowhere, says=['gave up', '--archives'])
