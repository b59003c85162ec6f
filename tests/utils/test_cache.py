import os
from pathlib import Path

import pytest

from coc_mm.utils.cache import cache_folder


def test_below_home_or_as_said(tmp_path, monkeypatch):
    monkeypatch.setenv('COC_MM_CACHE', str(tmp_path / 'said'))
    assert cache_folder('x') == tmp_path / 'said' / 'x'
    monkeypatch.delenv('COC_MM_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_folder('x') == tmp_path / '.cache' / 'coc_mm' / 'x'
    assert cache_folder('x').is_dir()


@pytest.mark.parametrize('variable', ['COC_MM_CACHE', 'HOME'])
def test_elsewhere_if_that_cannot_be_written(tmp_path, monkeypatch, variable):
    (tmp_path / 'file').touch()
    monkeypatch.delenv('COC_MM_CACHE', raising=False)
    monkeypatch.setenv(variable, str(tmp_path / 'file'))
    monkeypatch.setattr('tempfile.gettempdir', lambda: str(tmp_path))
    assert cache_folder('x') == Path(tmp_path, f'coc_mm-{os.getuid()}', 'x')
