"""Files of single clouds that are not trusted: .xyz, .npy, .ply, .off.

Nothing is unpickled, and what a header declares is held against the size of the file before
memory is taken for it.
"""

import array
import zlib
from pathlib import Path

import numpy as np

from projects.point_cloud.point_cloud.errors import PointCloudError

__all__ = ['EXTENSIONS', 'check_points', 'read_points']

# Millions of points; a file beyond this is no single object. Text takes some thirty times its
# size while it is read.
MAX_BYTES = 1 << 26
MAX_HEADER = 1 << 16
# Points that a mesh is sampled at before anything else looks at it.
SURFACE_POINTS = 8192

_PLY_TYPES = {
    'char': 'i1', 'int8': 'i1', 'uchar': 'u1', 'uint8': 'u1',
    'short': 'i2', 'int16': 'i2', 'ushort': 'u2', 'uint16': 'u2',
    'int': 'i4', 'int32': 'i4', 'uint': 'u4', 'uint32': 'u4',
    'float': 'f4', 'float32': 'f4', 'double': 'f8', 'float64': 'f8',
}  # fmt: skip


def read_points(path):
    """Read a cloud: (N, 3), float32, N at least 1, finite.

    ``.xyz``: three numbers per line, more columns are ignored, ``#`` begins a comment. ``.npy``:
    an array (N, 3 or more). ``.ply``: the vertices, ascii or binary of either byte order.
    ``.off``: 8192 points spread over the faces, or the vertices where there are no faces; the
    same every time, for the file's content chooses them.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PointCloudError(f'{path}: only {", ".join(EXTENSIONS)} files are read as clouds')
    if not path.is_file():
        raise PointCloudError(f'{path} is a folder' if path.is_dir() else f'{path} does not exist')
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise PointCloudError(
            f'{path} has {size} bytes; a single cloud of up to {MAX_BYTES} is read'
        )
    try:
        points = reader(path)
    except PointCloudError:
        raise
    except Exception as error:  # parsers fail in many ways on bytes that nobody vouches for
        reason = str(error).split('\n')[0][:160] or type(error).__name__
        raise PointCloudError(f'{path} is damaged or no {path.suffix} file: {reason}') from None
    reason = check_points(points)
    if reason:
        raise PointCloudError(f'{path} {reason}')
    return np.ascontiguousarray(points, dtype=np.float32)


def check_points(points):
    """Say what is wrong with points (N, 3), as a verb phrase; None for a sound cloud."""
    if len(points) == 0:
        return 'has 0 points'
    with np.errstate(over='ignore', invalid='ignore'):
        finite = np.isfinite(points.astype(np.float32)).all(1)
    if not finite.all():
        bad = len(points) - int(finite.sum())
        return f'has {bad} of {len(points)} points that are no finite numbers'
    return None


def _read_xyz(path):
    rows = array.array('d')
    with open(path, encoding='utf-8', errors='strict') as file:
        for number, line in enumerate(file, 1):
            fields = line.split('#', 1)[0].replace(',', ' ').split()
            if not fields:
                continue
            try:
                row = [float(field) for field in fields[:3]]
            except ValueError:
                row = []
            if len(row) < 3:
                raise PointCloudError(
                    f'{path}, line {number}: expected three numbers, got {line[:40]!r}'
                )
            rows.extend(row)
    return np.frombuffer(rows, np.float64).reshape(-1, 3)


def _read_npy(path):
    # Mapped, so that an array larger than the file is an error and not an allocation.
    if path.stat().st_size < 16:
        raise ValueError('too short for a header')
    with open(path, 'rb') as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, dtype = header.get(version, np.lib.format.read_array_header_2_0)(file)
    if dtype.kind not in 'fiu' or len(shape) != 2 or shape[1] < 3:
        raise PointCloudError(
            f'{path} holds an array {shape} of {dtype}; (points, 3 or more) numbers are expected'
        )
    if shape[0] == 0:
        return np.empty((0, 3), np.float32)
    return np.array(np.load(path, mmap_mode='r', allow_pickle=False)[:, :3], np.float64)


def _ply_header(file, path):
    """Parse a header; return the format and ``[(element, count, [(property, type)])]``."""
    if file.readline(16).rstrip() != b'ply':
        raise ValueError('it does not begin with "ply"')
    form, elements, read = None, [], 0
    while True:
        line = file.readline(4096)
        read += len(line)
        if not line.endswith(b'\n') or read > MAX_HEADER:
            raise ValueError('its header does not end')
        words = line.decode('ascii', errors='replace').split()
        if words[:1] == ['end_header']:
            break
        if words[:1] == ['format'] and len(words) == 3:
            form = words[1]
        elif words[:1] == ['element'] and len(words) == 3 and words[2].isdigit():
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ['property'] and len(words) == 3 and elements:
            if words[1] not in _PLY_TYPES:
                raise ValueError(f'unknown type {words[1]!r}')
            elements[-1][2].append((words[2], _PLY_TYPES[words[1]]))
        elif words[:2] == ['property', 'list'] and elements:
            elements[-1][2].append((words[-1], 'list'))
        elif words[:1] not in (['comment'], ['obj_info'], []):
            raise ValueError(f'header line not understood: {line[:60]!r}')
    if form not in ('ascii', 'binary_little_endian', 'binary_big_endian'):
        raise ValueError(f'unknown format {form!r}')
    return form, elements


def _read_ply(path):
    left = path.stat().st_size
    with open(path, 'rb') as file:
        form, elements = _ply_header(file, path)
        left -= file.tell()
        for name, count, properties in elements:
            names = [key for key, _ in properties]
            kinds = [kind for _, kind in properties]
            wanted = name == 'vertex'
            if wanted and ('list' in kinds or not {'x', 'y', 'z'} <= set(names)):
                raise ValueError('its vertices have no plain x, y and z')
            if len(set(names)) != len(names):
                raise ValueError(f'a property of {name} is named twice')
            # At least a character and a space per number, and a line's end.
            least = max(1, 2 * len(kinds))
            if form != 'ascii':
                least = max(1, sum(int(kind[1]) for kind in kinds if kind != 'list'))
            # A final line may lack its newline.
            if count * least > left + 1:
                raise ValueError(f'{count} of {name} are declared, {left} bytes are there')
            if form == 'ascii':
                if wanted:
                    return _ply_rows(file, count, [names.index(axis) for axis in 'xyz'])
                left -= sum(len(file.readline()) for _ in range(count))
                continue
            if 'list' in kinds:
                raise ValueError(f'lists of {name} in front of the vertices are not read')
            order = '<' if 'little' in form else '>'
            dtype = np.dtype([(key, order + kind) for key, kind in properties])
            rows = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
            if wanted:
                return np.stack([rows[axis].astype(np.float64) for axis in 'xyz'], 1)
            left -= count * dtype.itemsize
    raise ValueError('it has no vertices')


def _ply_rows(file, count, columns):
    out = np.empty((count, 3))
    for i in range(count):
        row = file.readline()
        fields = row.split()
        if len(fields) <= max(columns):
            raise ValueError(f'vertex {i} is incomplete: {row[:40]!r}')
        out[i] = [float(fields[column]) for column in columns]
    return out


def _read_off(path):
    text = path.read_text(encoding='utf-8')
    lines = [words for line in text.splitlines() if (words := line.split('#', 1)[0].split())]
    if not lines or not lines[0][0].startswith('OFF'):
        raise ValueError('it does not begin with "OFF"')
    # Some files of ModelNet40 lack the newline: "OFF490 518 0".
    counts = [lines[0][0][3:], *lines[0][1:]] if lines[0][0] != 'OFF' else lines[0][1:]
    body = lines[1:] if counts else lines[2:]
    counts = counts or (lines[1] if len(lines) > 1 else [])
    vertices, faces = (int(word) for word in counts[:2]) if len(counts) > 1 else (-1, -1)
    if vertices < 0 or faces < 0 or vertices + faces > len(body):
        raise ValueError(f'the counts {counts[:3]} do not fit the {len(body)} lines after them')
    points = np.empty((vertices, 3))
    for i, words in enumerate(body[:vertices]):
        points[i] = [float(word) for word in words[:3]]
    if faces == 0 or vertices == 0 or check_points(points):
        return points
    triangles = []
    for face, words in enumerate(body[vertices : vertices + faces]):
        corners = int(words[0])
        index = [int(word) for word in words[1 : 1 + max(corners, 0)]]  # a color may follow
        if corners < 1 or len(index) < corners or not all(0 <= i < vertices for i in index):
            raise ValueError(f'face {face} does not fit {vertices} vertices')
        triangles += [(index[0], index[i], index[i + 1]) for i in range(1, corners - 1)]
    seed = zlib.crc32(text.encode())
    return _on_surface(points, np.asarray(triangles, np.int64).reshape(-1, 3), seed)


def _on_surface(vertices, triangles, seed):
    """Spread points over triangles, as many per area."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    if len(area) == 0 or not area.sum() > 0 or not np.isfinite(area.sum()):
        return vertices
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(area), SURFACE_POINTS, p=area / area.sum())
    u, v = rng.random((2, SURFACE_POINTS, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]


_READERS = {'.xyz': _read_xyz, '.npy': _read_npy, '.ply': _read_ply, '.off': _read_off}
EXTENSIONS = tuple(_READERS)
