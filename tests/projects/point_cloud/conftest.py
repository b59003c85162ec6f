from pathlib import Path

import numpy as np
import pytest
from tool_fixtures import *  # noqa: F403

CONFIGS = Path(__file__).resolve().parents[3] / 'projects' / 'point_cloud' / 'configs'


@pytest.fixture
def configs():
    return CONFIGS


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
