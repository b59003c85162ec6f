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
    counts = {
        'coco': {'train2017': 3, 'val2017': 2, 'annotations': 2},
        'ade20k': dict.fromkeys(RECIPES['ade20k'].parts[0].counts, 2),
        'imagenet': {'train': 6, 'val': 4},
        'scanobjectnn': {'h5_files/main_split': 2},
    }
    editions = {name: small(RECIPES[name], count) for name, count in counts.items()}
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
