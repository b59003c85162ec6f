"""HDF5 files of clouds."""

from pathlib import Path

import numpy as np

from projects.point_cloud.point_cloud.errors import PointCloudError

__all__ = ['read_h5']


def _dataset(file, key, path):
    found = file.get(key)
    if not hasattr(found, 'dtype') or found.dtype.kind not in 'fiu':
        raise PointCloudError(f'{path} has no numbers under {key!r} (it has {list(file)[:6]})')
    return found


def read_h5(path):
    """Read points (M, N, 3), float32, and labels (M,), int64, of ScanObjectNN or ModelNet40.

    The file has the data sets ``data`` (M, N, 3 or more) and ``label``, (M,) or (M, 1).
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise PointCloudError(f'reading {path} needs the package h5py: pip install h5py') from None
    if not Path(path).is_file():
        raise PointCloudError(
            f'{path} does not exist; projects/point_cloud/README.md says where the data come from. '
            'A folder elsewhere: --cfg-options data_root=... as the head of the config says'
        )
    try:
        with h5py.File(path, 'r', locking=False) as file:
            data, label = _dataset(file, 'data', path), _dataset(file, 'label', path)
            labels = (data.shape[:1], (*data.shape[:1], 1))
            if data.ndim != 3 or data.shape[2] < 3 or label.shape not in labels:
                raise PointCloudError(
                    f'{path}: data {data.shape} and label {label.shape} are not (M, N, 3) and (M,)'
                )
            return (
                np.ascontiguousarray(data[..., :3], dtype=np.float32),
                np.asarray(label[()]).reshape(-1).astype(np.int64),
            )
    except PointCloudError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise PointCloudError(f'{path} is damaged or no HDF5 file: {error}') from None
