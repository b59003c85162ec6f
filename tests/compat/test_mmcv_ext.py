"""How the stand-in for mmcv._ext is found, and what it is not."""

import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import mmcv.ops
import pytest
import torch
from mmcv.utils import ext_loader

from coc_mm import compat
from coc_mm.compat.mmcv_ext import _FINDER
from coc_mm.compat.mmcv_operators import OPERATORS

ROOT = Path(__file__).resolve().parents[2]


def run(code, *path):
    """Run a line of Python in a fresh process that sees ``path`` first."""
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([*map(str, path), str(ROOT)])}
    command = [sys.executable, '-c', code]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_import_is_cheap_and_brings_in_neither_mmcv_nor_torchvision():
    code = (
        'import sys, time, torch, mmengine\n'
        'start = time.perf_counter(); import coc_mm; print(time.perf_counter() - start)\n'
        'print([m for m in ("mmcv", "torchvision", "mmdet") if m in sys.modules])'
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    seconds, modules = result.stdout.splitlines()
    assert float(seconds) < 0.3
    assert modules == '[]'


def test_install_is_idempotent_and_comes_last():
    before = list(sys.meta_path)
    assert before.count(_FINDER) == 1
    compat.install()
    assert sys.meta_path == before
    code = 'import sys, coc_mm; print(type(sys.meta_path[-1]).__name__)'
    assert run(code).stdout.strip() == '_StandInFinder'


def test_finder_answers_for_nothing_else():
    names = ('mmcv', 'mmcv.ops', 'mmcv._ext.nms', 'mmcv._ext2', '_ext', 'mmdet._ext', 'coc_mm')
    assert [_FINDER.find_spec(name) for name in names] == [None] * len(names)


@pytest.fixture
def bare_mmcv(tmp_path):
    """An empty package named mmcv in a folder to put on the path."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    return package


def test_compiled_module_wins(bare_mmcv):
    code = 'import coc_mm, importlib.util as u; print(u.find_spec("mmcv._ext").origin)'
    # Without a compiled module in that package the stand-in answers ...
    assert 'torchvision' in run(code, bare_mmcv.parent).stdout
    # ... and with one it steps aside.
    (bare_mmcv / '_ext.py').write_text('made_by = "the compiler"')
    code += '; import mmcv._ext as e; print(e.made_by)'
    result = run(code, bare_mmcv.parent)
    assert result.stdout.splitlines() == [str(bare_mmcv / '_ext.py'), 'the compiler']


def test_broken_compiled_module_is_not_hidden(bare_mmcv):
    (bare_mmcv / '_ext.py').write_text('raise ImportError("undefined symbol")')
    result = run('import coc_mm, mmcv._ext', bare_mmcv.parent)
    assert result.returncode != 0
    assert 'undefined symbol' in result.stderr.splitlines()[-1]


def test_unusable_torchvision_is_named(bare_mmcv):
    (bare_mmcv.parent / 'torchvision.py').write_text('raise RuntimeError("no such")')
    result = run('import coc_mm, mmcv._ext', bare_mmcv.parent)
    assert result.returncode != 0
    message = result.stderr.splitlines()[-1]
    assert re.match('ModuleNotFoundError: mmcv._ext: .*torchvision.*no such', message)


def test_missing_operator_says_so_at_the_call_only(stand_in):
    assert stand_in.carafe_forward is stand_in.carafe_forward
    with pytest.raises(NotImplementedError, match=r"'roi_pool_forward'.*MMCV_WITH_OPS=1"):
        mmcv.ops.roi_pool(torch.ones(1, 1, 4, 4), torch.zeros(1, 5), 2)


def test_mmcv_finds_every_operator(stand_in):
    wanted = ['nms', 'ball_query_forward', 'get_compiler_version', 'sync_bn_forward_mean']
    assert ext_loader.load_ext('_ext', wanted) is sys.modules['mmcv._ext']
    assert ext_loader.check_ops_exist()
    assert len(OPERATORS) == 15
    for name, function in OPERATORS.items():
        assert getattr(stand_in, name) is function


def test_module_behaves_like_a_module(stand_in):
    for name in ('__wrapped__', '__path__', '__all__', '_repr_html_', '__torch_function__'):
        assert not hasattr(stand_in, name)
    assert {'nms', 'roi_align_forward'} <= dict(inspect.getmembers(stand_in)).keys()
    assert copy.deepcopy(stand_in.carafe_forward) is stand_in.carafe_forward
    assert pickle.loads(pickle.dumps(stand_in.nms)) is stand_in.nms


def test_environment_report(stand_in):
    from mmcv.utils import collect_env

    report = collect_env()
    assert 'torchvision' in report['MMCV Compiler']
    assert report['MMCV CUDA Compiler'] == 'not available'
    assert mmcv.ops.get_compiler_version() == report['MMCV Compiler']
