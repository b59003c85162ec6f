"""HDF5 files that grow when they are read."""

import zlib

import numpy as np
import pytest

from projects.point_cloud.point_cloud.data.h5 import read_h5

h5py = pytest.importorskip('h5py')


def write(path, shape=(4, 8, 3), **options):
    with h5py.File(path, 'w') as file:
        data = file.create_dataset('data', shape, 'f4', **options)
        file['label'] = np.zeros(shape[0], int)
        return data.id


def test_compressed_clouds_are_read(tmp_path):
    path, points = tmp_path / 'x.h5', np.random.default_rng(0).random((40, 64, 3)).astype('f4')
    for options in (dict(compression='gzip'), dict(compression='gzip', shuffle=True, chunks=True)):
        with h5py.File(path, 'w') as file:
            file.create_dataset('data', data=points, **options)
            file['label'] = np.arange(40)
        np.testing.assert_array_equal(read_h5(path)[0], points)


def test_more_than_any_data_set_of_clouds_is_refused(tmp_path):
    write(tmp_path / 'x.h5', (100_000, 2048, 3), chunks=(100, 2048, 3), compression='gzip')
    with pytest.raises(ValueError, match=r'x\.h5.*declares'):
        read_h5(tmp_path / 'x.h5')


def test_a_chunk_that_inflates_beyond_itself_is_refused(tmp_path):
    path = tmp_path / 'x.h5'
    bomb = zlib.compress(bytes(300_000_000), 9)  # a thousandth of that
    with h5py.File(path, 'w') as file:
        data = file.create_dataset('data', (4, 8, 3), 'f4', chunks=(4, 8, 3), compression='gzip')
        data.id.write_direct_chunk((0, 0, 0), bomb)
        file['label'] = np.zeros(4, int)
    with pytest.raises(ValueError, match=r"a chunk of 'data' declares 384 bytes and stores 29\d+"):
        read_h5(path)


def test_chunks_of_hundreds_of_megabytes_are_refused(tmp_path):
    path = tmp_path / 'x.h5'
    with h5py.File(path, 'w') as file:
        data = file.create_dataset(
            'data', (3000, 2048, 3), 'f4', chunks=(3000, 2048, 3), compression='gzip'
        )
        data.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(3000 * 2048 * 12), 9))
        file['label'] = np.zeros(3000, int)
    with pytest.raises(ValueError, match='declares 73728000 bytes'):
        read_h5(path)
