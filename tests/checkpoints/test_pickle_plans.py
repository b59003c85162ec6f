"""Pickles that name nothing bad and harm the reader all the same: by depth, tables and sizes."""

import io
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coc_mm.checkpoints.careful import CarefulUnpickler, check_plan, check_storages
from coc_mm.checkpoints.load import load_checkpoint_safely
from coc_mm.checkpoints.safe_pickle import load_plain_pickle
from coc_mm.errors import CheckpointError

# A dict with a key nested this often: looking it up overflows the stack of readers written in C.
TIMES = 200_000
DEEP = {
    'by ones': b'\x80\x02})' + b'\x85' * TIMES + b'K\x01s.',
    'by ones, each noted': b'\x80\x02})' + b'\x85q\x00' * TIMES + b'K\x01s.',
    'by pairs': b'\x80\x02})' + b'N\x86' * TIMES + b'K\x01s.',
    'by threes': b'\x80\x02})' + b'NN\x87' * TIMES + b'K\x01s.',
    'from marks': b'\x80\x02}(' + b'(' * TIMES + b')' + b't' * TIMES + b'K\x01u.',
    'from notes': b'\x80\x02})q\x00' + b'0h\x00\x85q\x00' * TIMES + b'K\x01s.',
}


def zipped(path, members):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members_of(path, content):
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize('how', DEEP)
def test_keys_too_deep_to_look_up_are_refused(how, tmp_path):
    """Without the check, this test ends the process that runs it."""
    deep = DEEP[how]
    members = members_of(tmp_path / 'zip.pth', {})
    zipped(tmp_path / 'zip.pth', members | {'zip/data.pkl': deep})
    torch.save({}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    parts = (tmp_path / 'old.pth').read_bytes().partition(pickle.dumps({}, 2))
    assert parts[1], 'the file is made otherwise than expected'
    (tmp_path / 'old.pth').write_bytes(parts[0] + deep + parts[2])
    for name in ('zip.pth', 'old.pth'):
        with pytest.raises(CheckpointError, match=rf'{name} .*tuples nested more than 100 deep'):
            load_checkpoint_safely(tmp_path / name)
    with pytest.raises(ValueError, match='tuples nested more than 100 deep'):
        load_plain_pickle(io.BytesIO(deep))


@pytest.mark.parametrize('put', [b'r' + struct.pack('<I', 1 << 24), b'p16777216\n'])
def test_a_large_index_takes_no_memory(put):
    """The reader in C takes 256 MB for this one, and 64 GB at the most."""
    tracemalloc.start()
    try:
        assert load_plain_pickle(io.BytesIO(b'\x80\x02]' + put + b'.')) == []
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


NESTED = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=3)
        | st.dictionaries(st.tuples(st.integers(), st.integers()), inner, max_size=2)
    ),
    max_leaves=30,
)


@given(NESTED, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_everything_else_is_read_as_ever(content, protocol):
    pickled = pickle.dumps([content, content, (content, (content,))], protocol)
    assert CarefulUnpickler(io.BytesIO(pickled)).load() == pickle.loads(pickled)


# (t, t), of which each holds the one before twice; 80 times: hashing it takes for ever.
TWICE = b')' + b'q\x000h\x00h\x00\x86' * 80
LONG = b'(' + b'N' * 50_000 + b'tq\x00'  # hashed again and again
SLOW = {
    'a key of tuples that hold each other': b'\x80\x02}' + TWICE + b'K\x01s.',
    'a value of tuples that hold each other': b'\x80\x02]' + TWICE + b'a.',
    'a long key, many times': b'\x80\x02' + LONG + b'0}' + b'h\x00Ns' * 50_000 + b'.',
    'the same, at once': b'\x80\x02' + LONG + b'0}(' + b'h\x00N' * 50_000 + b'u.',
    'the same in a dict of old': b'\x80\x02' + LONG + b'0(' + b'h\x00N' * 50_000 + b'd.',
    'sets of it': b'\x80\x02' + LONG + b'0c__builtin__\nset\nq\x020'
    + b'h\x02]h\x00a\x85R0' * 50_000 + b'N.',
    'an OrderedDict of pairs': b'\x80\x02' + LONG + b'0ccollections\nOrderedDict\nq\x02'
    + b'(](]q\x01h\x00aNah\x01' + b'h\x01' * 50_000 + b'etR.',
    'attributes, set again and again': b'\x80\x02' + LONG + b'0}q\x01h\x00Ns0'
    + b'cargparse\nNamespace\n)\x81' + b'h\x01b' * 50_000 + b'.',
    'numbers of one hash': b'\x80\x02}\x8a\x08' + (2**61 - 1).to_bytes(8, 'little') + b'Ns.',
}  # fmt: skip


@pytest.mark.parametrize('kind', SLOW)
@pytest.mark.timeout(60)
def test_keys_that_take_for_ever_are_refused(kind, tmp_path):
    says = 'too long to look up|hold each other|the key 230'
    members = members_of(tmp_path / 'x.pth', {})
    zipped(tmp_path / 'x.pth', members | {'x/data.pkl': SLOW[kind]})
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint_safely(tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=says):
        load_plain_pickle(io.BytesIO(SLOW[kind]))


@pytest.mark.parametrize('after', [b'R', b'\x81'])
def test_what_is_called_has_a_name(after, tmp_path):
    """The text of a list of lists, in the message of a reader, would take for ever."""
    lists = b'\x80\x02]' + b'q\x000](h\x00h\x00e' * 80 + b')' + after + b'.'
    members = members_of(tmp_path / 'x.pth', {})
    zipped(tmp_path / 'x.pth', members | {'x/data.pkl': lists})
    with pytest.raises(CheckpointError, match=r'objects other than weights|Can only call'):
        load_checkpoint_safely(tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='Can only call what has a name'):
        load_plain_pickle(io.BytesIO(lists))


@pytest.mark.parametrize(
    'start', [b'cnumpy\ndtype\n(', b'cnumpy\ndtype\n(U\x02f4tR(K\x03', b'c__builtin__\ngetattr\n(']
)
@pytest.mark.timeout(60)
def test_messages_are_short(start):
    """Of what stands in the place of a name."""
    lists = b']' + b'q\x000](h\x00h\x00e' * 80
    end = b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.' if b'f4' in start else b'U\x01atR.'
    with pytest.raises(ValueError, match='is refused') as caught:
        load_plain_pickle(io.BytesIO(b'\x80\x02' + start + lists + end))
    assert len(str(caught.value)) < 60_000


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_sets_and_complex_numbers_are_data(protocol):
    content = [{1, 'a', (2, 3)}, 1 + 2j, {}, {(1, (2, 3)): {4}}]
    assert load_plain_pickle(io.BytesIO(pickle.dumps(content, protocol))) == content


def test_long_and_shared_content_is_no_key(tmp_path):
    """What real files hold much of is not counted: rows shared by many, objects in arrays."""
    row = tuple(range(2000))
    objects = np.array([row, 'x', [row] * 5], dtype=object)
    keys = {2**60: [row] * 5, row: 1, 'b': {row: 2}}
    content = [*[row] * 1000, objects, keys]
    read = load_plain_pickle(io.BytesIO(pickle.dumps(content, 2)))
    assert read[:1000] == content[:1000]
    assert read[-1] == content[-1]
    assert read[1000].tolist() == content[1000].tolist()
    torch.save(dict(state_dict=dict(a=torch.ones(3)), more=content), tmp_path / 'x.pth')
    assert load_checkpoint_safely(tmp_path / 'x.pth')['more'][-1] == content[-1]


def test_the_depth_is_that_of_tuples_that_are_there():
    def nested(depth):
        content = ()
        for _ in range(depth - 1):
            content = (content,)
        return content

    many = [nested(100) for _ in range(300)]  # made and gone, their places taken by others
    assert load_plain_pickle(io.BytesIO(pickle.dumps(many, 2))) == many
    with pytest.raises(ValueError, match='nested more than 100 deep'):
        load_plain_pickle(io.BytesIO(pickle.dumps([1, nested(101)], 2)))
    thrown_away = b'\x80\x02]' + (b'(' + b')' + b'\x85' * 99 + b'1') * 3000 + b'(' + b')\x85e.'
    assert load_plain_pickle(io.BytesIO(thrown_away)) == [((),)]
    with pytest.raises(ValueError, match='a tuple of more than there is'):
        CarefulUnpickler(io.BytesIO(b'\x80\x02K\x01\x87.')).load()


def test_bytes_of_a_neighbour_are_not_read(tmp_path):
    """Sizes that fit in all and not one by one; torch 2.4 reads past the end."""
    path = tmp_path / 'x.pth'
    members = members_of(path, dict(a=torch.ones(50), b=torch.ones(5)))
    assert load_checkpoint_safely(path)['a'].sum() == 50
    first, second = 'x/data/0', 'x/data/1'
    zipped(path, members | {first: members[second], second: members[first]})
    with pytest.raises(CheckpointError, match=r'storage 0 has 20 bytes of 200'):
        load_checkpoint_safely(path)
    del members[second]
    with pytest.raises(CheckpointError, match=r'storage 1 is missing'):
        load_checkpoint_safely(zipped(path, members))


class Asking(pickle.Pickler):
    """Pickles storages as torch does, with what a test puts in the place of numbers."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Asked) else None


class Asked:
    def __init__(self, *pid):
        self.pid = pid


def archive_of(*asked, **members):
    file, content = io.BytesIO(), io.BytesIO()
    Asking(content, 2).dump([Asked(*pid) for pid in asked])
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('x/data.pkl', content.getvalue())
        for key, data in members.items():
            archive.writestr(f'x/data/{key}', data)
    return zipfile.ZipFile(file)


def asked(key, count, kind=torch.FloatStorage):
    return ('storage', kind, key, 'cpu', count)


def endless():
    """A list whose text would fill no disk."""
    content = ['x']
    for _ in range(90):
        content = [content, content]
    return content


NO_STORAGES = [
    asked('a', -1),
    asked('a', True),
    asked('a', 1.5),
    asked('a', endless()),
    asked('a', 2, dict),
    asked('a', 2, 'torch.FloatStorage'),
]


@pytest.mark.parametrize(
    ('pids', 'says'),
    [
        ([asked('a', 3)], 'storage a has 8 bytes of 12'),
        ([asked('a', 1), asked('a', 3)], 'storage a has 8 bytes of 12'),
        ([asked('a', 3), asked('a', 1)], 'storage a has 8 bytes of 12'),
        ([asked('a', 2, torch.DoubleStorage)], 'storage a has 8 bytes of 16'),
        ([asked('a', 9, torch.UntypedStorage)], 'storage a has 8 bytes of 9'),
        ([asked('../data.pkl', 1)], r'storage \.\./data\.pkl is missing'),
        *[([pid], 'of another type, or without a number') for pid in NO_STORAGES],
        ([asked((1, 2), 1)], 'a storage without a name'),
        ([('stored', torch.FloatStorage, 'a', 'cpu', 1)], 'that is no storage'),
        ([(endless(),)], 'that is no storage'),
    ],
)
def test_what_is_asked_for_must_be_there(pids, says):
    with pytest.raises(ValueError, match=says):
        check_storages(archive_of(*pids, a=bytes(8)), 'x/data.pkl')


def test_what_is_there_is_let_through():
    fits = [asked('a', 2), asked('a', 1), asked('b', 4, torch.HalfStorage), asked('c', 0)]
    untyped = asked('a', 8, torch.UntypedStorage)
    archive = archive_of(*fits, untyped, ('module', 1), a=bytes(8), b=bytes(9), c=b'')
    check_storages(archive, 'x/data.pkl')


def test_a_file_may_end_before_the_last_pickle():
    check_plan(io.BytesIO(pickle.dumps(1, 2) * 2), 5)
    with pytest.raises(EOFError):
        check_plan(io.BytesIO(b'\x80\x02'), 5)
