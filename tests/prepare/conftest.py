import pytest
from download_server import serve
from small_sets import COCO, small, write_zip

from coc_mm.cli import prepare as command
from coc_mm.cli.prepare import main
from coc_mm.prepare import RECIPES


@pytest.fixture
def server(monkeypatch):
    with serve(monkeypatch) as behaviour:
        yield behaviour


@pytest.fixture
def recipes(monkeypatch):
    """Let the command know small editions."""
    ade = {
        f'ADEChallengeData2016/{kind}/{split}': 2
        for kind in ('images', 'annotations')
        for split in ('training', 'validation')
    }
    editions = {
        'coco': small(RECIPES['coco'], {'train2017': 3, 'val2017': 2, 'annotations': 2}),
        'ade20k': small(RECIPES['ade20k'], ade),
        'imagenet': small(RECIPES['imagenet'], {'train': 6, 'val': 4}),
        'scanobjectnn': small(RECIPES['scanobjectnn'], {'h5_files/main_split': 2}),
    }
    monkeypatch.setattr(command, 'RECIPES', editions)
    return editions


@pytest.fixture
def run(capsys, tmp_path):
    """Run the command; return its status and what it said."""

    def call(*argv):
        status = main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        assert 'Traceback' not in err
        return status, out + err

    return call


@pytest.fixture
def coco_archives(tmp_path):
    folder = tmp_path / 'archives'
    folder.mkdir()
    for name, files in COCO.items():
        write_zip(folder / name, files)
    return folder
