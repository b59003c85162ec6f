"""Imports point one way, and importing the package costs nearly nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'coc_mm'
TASK_LIBRARIES = {'mmpretrain', 'mmdet', 'mmseg'}
# Room -> the rooms of the package that it may import.
ALLOWED = {
    'ops': set(),
    'compat': set(),
    'registry': set(),
    'version': set(),
    'models': {'ops', 'registry'},
    'checkpoints': {'models', 'registry'},
    'visualization': {'ops', 'models', 'checkpoints', 'apis'},
    'datasets': {'registry'},
    'engine': {'registry', 'visualization', 'checkpoints', 'models'},
    'apis': {
        'checkpoints',
        'compat',
        'models',
        'datasets',
        'visualization',
        'engine',
        'registry',
        'version',
        'ops',
    },
}


def imports(path, top_level_only=False):
    """Yield the absolute names that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_rooms_import_one_way():
    visited = 0
    for path in PACKAGE.rglob('*.py'):
        relative = path.relative_to(PACKAGE)
        if '.mim' in relative.parts or (
            relative.name == '__init__.py' and len(relative.parts) == 1
        ):
            continue
        room = relative.parts[0].removesuffix('.py')
        for name in imports(path):
            parts = name.split('.')
            if parts[0] == 'coc_mm' and len(parts) > 1:
                target = parts[1]
                known = target == room or target in ALLOWED[room] or target == '__version__'
                assert known, f'{relative} imports {name}'
            assert parts[0] not in ('tools', 'projects'), f'{relative} imports {name}'
        visited += 1
    assert visited > 30


def test_ops_import_torch_alone():
    allowed = set(sys.stdlib_module_names) | {'torch', 'coc_mm', 'triton'}
    files = list((PACKAGE / 'ops').rglob('*.py'))
    assert len(files) >= 5
    for path in files:
        for name in imports(path):
            assert name.split('.')[0] in allowed, f'{path}: {name}'


def test_task_libraries_are_imported_lazily():
    files = [p for p in PACKAGE.rglob('*.py') if '.mim' not in p.parts]
    users = set()
    for path in files:
        top = {name.split('.')[0] for name in imports(path, top_level_only=True)}
        assert not top & TASK_LIBRARIES, f'{path} imports {top & TASK_LIBRARIES} at module level'
        if {name.split('.')[0] for name in imports(path)} & TASK_LIBRARIES:
            users.add(path.relative_to(PACKAGE).parts[0])
    assert users <= {'apis', 'engine', 'datasets', 'visualization'}, users


@pytest.mark.timeout(120)
def test_importing_the_package_is_cheap():
    code = (
        'import time, torch, mmengine, sys; before = set(sys.modules); t = time.process_time();'
        'import coc_mm; t = time.process_time() - t;'
        'new = {m.split(".")[0] for m in set(sys.modules) - before};'
        'print(t, *sorted(new & {"mmcv", "mmdet", "mmseg", "mmpretrain", "torchvision"}))'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, *libraries = out.stdout.split()
    assert not libraries
    assert float(seconds) < 0.3
