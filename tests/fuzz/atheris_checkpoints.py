"""Fuzz the reading of checkpoints, guided by coverage; needs atheris (``pip install atheris``).

``python tests/fuzz/atheris_checkpoints.py -runs=200000 -max_len=4096 CORPUS`` stops at the first
input that ends in anything but a ``CheckpointError``, and writes it to a file. The first byte of an
input chooses the reader; CORPUS, a folder, is filled with small checkpoints where it is empty.
Without atheris it says so and ends with status 0.
"""

import io
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests' / 'trust')]

try:
    import atheris
except ModuleNotFoundError:
    print('atheris is not installed; nothing was fuzzed')
    sys.exit(0)

import torch._weights_only_unpickler  # noqa: E402

with atheris.instrument_imports(include=['coc_mm.checkpoints', 'pickletools']):
    from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of
    from coc_mm.checkpoints.safe_pickle import load_plain_pickle
    from coc_mm.errors import CheckpointError

import fuzz_inputs as inputs  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(prefix='atheris_'))
atheris.instrument_func(torch._weights_only_unpickler.Unpickler.load)


def in_zip(content):
    """A valid archive around a pickle, for mutations of the pickle alone."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('x/data.pkl', content)
        archive.writestr('x/version', '3\n')
        archive.writestr('x/data/0', bytes(64))
    return file.getvalue()


def one_input(data):
    """Read an input; anything but the documented error passes through."""
    kind, content = data[:1], data[1:]
    try:
        if kind == b'p':
            load_plain_pickle(io.BytesIO(content))
            return
    except ValueError:
        return
    path = FOLDER / ('x.safetensors' if kind == b's' else 'x.pth')
    path.write_bytes(in_zip(content) if kind == b'z' else content)
    try:
        state_dict_of(load_checkpoint_safely(path), str(path))
    except CheckpointError:
        return


def fill(corpus):
    """Write the small checkpoints of the other fuzzing into a folder."""
    for (name, zipped), content in inputs.checkpoints().items():
        (corpus / f'{name}-{zipped}').write_bytes(b'f' + content)
        if zipped:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (member,) = [x for x in archive.namelist() if x.endswith('data.pkl')]
                (corpus / f'{name}-pickle').write_bytes(b'z' + archive.read(member))
    (corpus / 'safetensors').write_bytes(b's' + inputs.safetensors())
    for i, content in enumerate(inputs._annotations()):
        (corpus / f'plain-{i}').write_bytes(b'p' + content)


def main():
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    for corpus in [Path(x) for x in sys.argv[1:] if not x.startswith('-')][:1]:
        corpus.mkdir(parents=True, exist_ok=True)
        if not any(corpus.iterdir()):
            fill(corpus)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == '__main__':
    main()
