import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tiny_projects import forget_singletons

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / 'projects' / 'point_cloud' / 'configs'


@pytest.fixture(autouse=True)
def _fresh_singletons():
    yield
    forget_singletons()


@pytest.fixture
def configs():
    return CONFIGS


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Give the main function of a script of tools/, run in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.delenv('COC_MM_TRACEBACK', raising=False)

    def load(name):
        path = ROOT / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.main

    return load


@pytest.fixture
def write_h5():
    """Write a file in the layout of ScanObjectNN."""
    h5py = pytest.importorskip('h5py')

    def write(path, data, label):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, 'w') as file:
            file['data'], file['label'] = np.asarray(data), np.asarray(label)
        return path

    return write
