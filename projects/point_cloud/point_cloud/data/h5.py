"""HDF5 files of clouds that are not trusted."""

from pathlib import Path

import numpy as np

from projects.point_cloud.point_cloud.errors import PointCloudError

__all__ = ['read_h5']

# ModelNet40 and ScanObjectNN have 0.4 GB at most; a file that declares more is no data of theirs.
MAX_BYTES = 2 << 30
# Of a chunk, which is inflated whole, however little of it is declared.
MAX_CHUNK_BYTES = 16 << 20
# Deflate shrinks 1032 times at most, so a larger ratio is a header that lies.
MAX_RATIO = 1100


def _dataset(file, key, path):
    import h5py

    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise PointCloudError(
            f'{path} has no data set {key!r} of its own (it has {list(file)[:6]})'
        )
    found = file[key]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise PointCloudError(f'{path}: {key!r} is not an array stored in the file')
    if found.dtype.kind not in 'fiu':
        raise PointCloudError(f'{path}: {key!r} holds {found.dtype}, not numbers')
    declared, stored = found.size * found.dtype.itemsize, found.id.get_storage_size()
    if declared > MAX_BYTES or declared > MAX_RATIO * stored:
        raise PointCloudError(
            f'{path}: {key!r} declares {found.shape}, {declared} bytes, but stores {stored}'
        )
    if found.chunks is not None:
        _check_chunks(found, key, path)
    return found


def _check_chunks(found, key, path):
    """Refuse chunks that hold more than they declare: HDF5 inflates them to their end."""
    declared = int(np.prod(found.chunks)) * found.dtype.itemsize
    stored = [found.id.get_chunk_info(i).size for i in range(found.id.get_num_chunks())]
    # What deflate cannot shrink, it lengthens by less than a thousandth; other filters add a sum.
    most = declared + declared // 256 + 1024
    if declared > MAX_CHUNK_BYTES or max(stored, default=0) > most:
        raise PointCloudError(
            f'{path}: a chunk of {key!r} declares {declared} bytes and stores '
            f'{max(stored, default=0)}; it is no plain array'
        )


def read_h5(path):
    """Read the clouds and labels of a file of ScanObjectNN or ModelNet40.

    The file has the data sets ``data`` (M, N, 3 or more) and ``label``, (M,) or (M, 1).

    Returns:
        tuple[np.ndarray, np.ndarray]: Points (M, N, 3), float32, and labels (M,), int64.

    Raises:
        PointCloudError: The file is missing, damaged or holds something else.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise PointCloudError(
            f'reading {path} needs the package h5py: pip install "coc-mm[points]"'
        ) from None
    if not Path(path).is_file():
        raise PointCloudError(
            f'{path} does not exist; projects/point_cloud/README.md says where the data come from. '
            'A folder elsewhere: --cfg-options data_root=... as the head of the config says'
        )
    try:
        with h5py.File(path, 'r', locking=False) as file:
            data, label = _dataset(file, 'data', path), _dataset(file, 'label', path)
            if (
                data.ndim != 3
                or data.shape[2] < 3
                or label.shape
                not in (
                    data.shape[:1],
                    (data.shape[0], 1),
                )
            ):
                raise PointCloudError(
                    f'{path}: data {data.shape} and label {label.shape} are not (M, N, 3) and (M,)'
                )
            return (
                np.ascontiguousarray(data[..., :3], dtype=np.float32),
                np.asarray(label[()]).reshape(-1).astype(np.int64),
            )
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, PointCloudError):
            raise
        raise PointCloudError(f'{path} is damaged or no HDF5 file: {error}') from None
