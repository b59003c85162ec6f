"""Imports point one way, files are where their names say, importing the package is cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'coc_mm'
TASK_LIBRARIES = {'mmpretrain', 'mmdet', 'mmseg'}
# A room may import those of the rows above, and itself. Rooms of one row do not know each other.
ROWS = [
    ('errors', 'version'),
    ('utils', 'registry'),
    ('compat',),
    ('ops',),
    ('models',),
    ('checkpoints', 'datasets'),
    ('visualization', 'engine'),
    ('apis',),
    ('quickstart', 'prepare', 'timm'),
    ('cli',),
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
MADE = {PACKAGE / '.mim', PACKAGE / 'configs'}  # by an installation
FILES = sorted(p for p in PACKAGE.rglob('*.py') if not MADE & {*p.parents})
DOOR = PACKAGE / '__init__.py'  # connects the rooms, when others are imported
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(nodes):
    """Yield the absolute names that syntax nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'relative import of {node.module}'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def registered():
    """Map each registered name to the module that registers it."""
    found = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and 'register_module' in ast.dump(decorator):
                    named = [
                        x.value
                        for k in decorator.keywords
                        for x in ast.walk(k.value)
                        if k.arg == 'name' and isinstance(x, ast.Constant)
                    ]
                    found.update(dict.fromkeys(named or [node.name], module_of(path)))
    return found


NAMES = registered()


def uses(path):
    """Yield the modules of the package that a file uses, by import or by a registered name."""
    for name in imports(ast.walk(TREES[path])):
        while name.startswith('coc_mm') and name not in MODULES:
            name = name.rpartition('.')[0]
        if name.startswith('coc_mm.'):
            yield name
    if path.name == 'registry.py':
        return  # its locations say where to look for a name, see the test of registered names
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r'coc_mm\.(\w+)', node.value)
            if found and found[1] in NAMES:
                yield NAMES[found[1]]


USES = {m: set(uses(path)) - {m} for m, path in MODULES.items() if path != DOOR}


def test_rooms_use_what_stands_above_them():
    wrong = []
    for module, used in USES.items():
        room = module.split('.')[1]
        for other in used:
            target = other.split('.')[1]
            if target != room and ROW_OF[target] >= ROW_OF[room]:
                wrong.append(f'{module} uses {other}')
    assert wrong == []
    assert len(USES) > 60


def test_no_module_uses_itself_through_others():
    done, way = set(), []

    def visit(module):
        if module in done:
            return
        assert module not in way, ' -> '.join([*way[way.index(module) :], module])
        way.append(module)
        for other in USES.get(module, ()):
            visit(other)
        done.add(way.pop())

    for module in USES:
        visit(module)
    assert len(done) > 60


def test_registered_names_are_found_where_their_registry_looks():
    from mmengine.registry import Registry

    from coc_mm import registry

    found = {}
    for child in vars(registry).values():
        if isinstance(child, Registry) and child.scope == 'coc_mm':
            child.import_from_location()
            found.update(child.module_dict)
    assert NAMES.keys() <= found.keys()
    assert len(NAMES) >= 8


def test_nothing_knows_the_projects_or_tools():
    for path, tree in TREES.items():
        for name in imports(ast.walk(tree)):
            assert name.split('.')[0] not in ('tools', 'projects'), f'{path} imports {name}'
        for word in ('projects/', 'projects.', 'point_cloud', 'gradio'):
            assert word not in path.read_text(), f'{path} knows {word}'


def test_ops_import_torch_alone():
    allowed = {*sys.stdlib_module_names, 'torch', 'coc_mm', 'triton'}
    files = [path for path in FILES if path.is_relative_to(PACKAGE / 'ops')]
    assert len(files) >= 10
    for path in files:
        for name in imports(ast.walk(TREES[path])):
            assert name.split('.')[0] in allowed, f'{path}: {name}'


def test_task_libraries_are_imported_lazily():
    for path, tree in TREES.items():
        top = {name.split('.')[0] for name in imports(tree.body)}
        assert not top & TASK_LIBRARIES, f'{path} imports {top & TASK_LIBRARIES} at module level'


def test_files_are_short():
    tests = [path for path in (ROOT / 'tests').rglob('*.py') if 'data' not in path.parts]
    projects = list((ROOT / 'projects').rglob('*.py'))
    long = {
        p: n for p in [*FILES, *tests, *projects] if (n := len(p.read_text().split('\n'))) > 501
    }
    assert long == {}


def test_each_module_has_its_test():
    """At the same place below ``tests``, under the same name."""
    lacking = []
    for path in FILES:
        relative = path.relative_to(PACKAGE)
        if relative.name in ('__init__.py', 'version.py', 'registry.py'):
            continue
        if 'triton_kernels' in relative.parts:  # one operator, one file of tests
            relative = Path('ops', 'backends', 'triton_kernels.py')
        if not (ROOT / 'tests' / relative.with_name(f'test_{relative.name}')).is_file():
            lacking.append(str(relative))
    assert lacking == []


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
