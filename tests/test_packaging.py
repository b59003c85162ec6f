"""The wheel carries configs, tools, projects and the model index, and works in an empty folder."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAVELS = ('coc_mm', 'configs', 'tools', 'projects')
FILES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE')
TINY = 'coc-tiny_8xb128_in1k'
# Somebody's own config, which inherits ours and one of mmseg's.
OWN = """
_base_ = ['coc_mm::classification/coc-tiny_8xb128_in1k.py']
model = dict(head=dict(num_classes=7))
"""
SEG = "_base_ = ['mmseg::_base_/models/fpn_r50.py']\n"
PURE = """
from mmengine.config import read_base
with read_base():
    from coc_mm.configs.classification.coc_tiny_8xb128_in1k import *
model.update(head=dict(num_classes=7))
"""


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


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    """A folder that the wheel alone is installed in, dependencies as they are."""
    target = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target']
    subprocess.run([*command, target, wheel], check=True)
    return target


@pytest.fixture
def run(site, tmp_path, monkeypatch):
    """Run a command in an empty folder, with the installed package; return the result."""
    monkeypatch.setenv('PYTHONPATH', str(site))

    def call(*argv):
        return subprocess.run(
            [sys.executable, '-W', 'ignore', *map(str, argv)],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip

    return call


def test_nothing_but_the_package_at_the_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split('/')[0] for name in names}
    assert {top for top in tops if not top.endswith('.dist-info')} == {'coc_mm'}
    tracked = [
        path
        for folder, suffixes in (('configs', '.py .yml'), ('tools', '.py .sh'), ('projects', '.py'))
        for path in (ROOT / folder).rglob('*')
        if path.suffix in suffixes.split() and '__pycache__' not in path.parts
    ]
    assert len(tracked) > 90
    for path in (*tracked, ROOT / 'model-index.yml'):
        assert f'coc_mm/.mim/{path.relative_to(ROOT).as_posix()}' in names


def test_the_command_works_from_the_wheel(run, site, tmp_path):
    coc = site / 'bin' / 'coc'
    assert TINY in run(coc, 'models').stdout
    for command in ('train', 'demo', 'points', 'point-clusters'):
        done = run(coc, command, '--help')
        assert done.stdout.startswith(f'usage: coc {command} '), done.stderr
    done = run(coc, 'train', TINY)
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    assert 'data/imagenet' in done.stderr
    few = [f'{split}_dataloader.dataset.per_class=4' for split in ('train', 'val')]
    done = run(
        coc, 'points', '--work-dir', 'points', '--cfg-options', *few, 'train_cfg.max_epochs=1'
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'points' / 'epoch_1.pth').is_file()


def test_configs_of_the_wheel_in_somebodys_own(run, tmp_path):
    (tmp_path / 'own.py').write_text(OWN)
    (tmp_path / 'seg.py').write_text(SEG)
    (tmp_path / 'pure.py').write_text(PURE)
    code = (
        'import coc_mm; from mmengine.config import Config; from mmengine.hub import get_config; '
        'from coc_mm.apis.infer import load_model; '
        'own, pure, seg = (Config.fromfile(f"{name}.py") for name in ("own", "pure", "seg")); '
        f'there = get_config("coc_mm::classification/{TINY}.py"); '
        'assert there.train_pipeline == own.train_pipeline == pure.train_pipeline; '
        'assert pure.model == own.model; assert load_model(own, None).head.fc.out_features == 7; '
        'print(seg.model.type, coc_mm.__file__)'
    )
    done = run('-c', code)
    assert done.returncode == 0, done.stderr
    assert re.search(r'^EncoderDecoder \S*/site0?/coc_mm/', done.stdout, re.M), done.stdout


@pytest.mark.parametrize(
    ('heading', 'needs'), [('backbone', 'huggingface_hub'), ('In timm', 'timm')]
)
def test_the_code_of_the_docs_runs(run, heading, needs):
    pytest.importorskip(needs)
    section = re.split('^## ', (ROOT / 'docs/install.md').read_text(), flags=re.M)
    (text,) = [x for x in section if x.splitlines()[0].endswith(heading)]
    (code,) = re.findall('```python\n(.*?)```', text, re.DOTALL)
    done = run('-c', code)
    assert done.returncode == 0, done.stderr
