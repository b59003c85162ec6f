"""The wheel carries configs, tools and the model index, and works away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAVELS = ('coc_mm', 'configs', 'tools')
FILES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    pytest.importorskip('build')
    source = tmp_path_factory.mktemp('source')
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for name in TRAVELS:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in (*FILES, 'model-index.yml'):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, '-m', 'build', '--wheel', '--no-isolation', '-o', 'dist', '.']
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / 'dist').glob('*.whl')
    return path


def test_nothing_but_the_package_at_the_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split('/')[0] for name in names}
    assert {top for top in tops if not top.endswith('.dist-info')} == {'coc_mm'}
    configs = [p for p in (ROOT / 'configs').rglob('*.py') if '__pycache__' not in p.parts]
    assert len(configs) > 30
    for path in configs:
        assert f'coc_mm/.mim/{path.relative_to(ROOT).as_posix()}' in names
    for name in ('model-index.yml', 'tools/train.py', 'tools/test.py', 'tools/dist_train.sh'):
        assert f'coc_mm/.mim/{name}' in names


def test_installed_away_from_the_checkout(wheel, tmp_path):
    site = tmp_path / 'site'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {**os.environ, 'PYTHONPATH': str(site)}
    code = (
        'import coc_mm, pathlib; from mmengine.config import Config; '
        'from mmengine.registry import MODELS; root = pathlib.Path(coc_mm.__file__).parent; '
        'config = Config.fromfile(root / ".mim/configs/classification/coc-tiny_8xb128_in1k.py"); '
        'MODELS.build(config.model.backbone); print(root)'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(str(site / 'coc_mm'))
    tool = site / 'coc_mm/.mim/tools/train.py'
    done = subprocess.run(
        [sys.executable, str(tool), 'missing.py'],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'missing.py' in done.stderr
    assert 'Traceback' not in done.stderr
