"""Configs of the package by name."""

from pathlib import Path

import pytest

from coc_mm.apis.config import load_config
from coc_mm.errors import UserError
from coc_mm.utils.package_files import find_config, zoo_root


def test_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [p for p in (zoo_root() / 'configs').rglob('*.py') if '_base_' not in p.parts]
    assert len(files) > 35
    for path in files:
        assert find_config(path.stem) == path
    assert find_config('COC-Tiny_8xb128_in1k').stem == 'coc-tiny_8xb128_in1k'
    assert load_config('coc-tiny_8xb128_in1k').model.backbone.arch == 'tiny'
    (tmp_path / 'coc-tiny_8xb128_in1k').mkdir()  # what is there is meant
    with pytest.raises(UserError, match='is a folder'):
        load_config('coc-tiny_8xb128_in1k')
    with pytest.raises(UserError, match='did you mean coc-tiny_8xb128_in1k'):
        find_config('coc-tiny_8xb128_in2k')
    assert Path(find_config('coc-small_1xb64-50e_custom')).is_file()
