import os

import pytest
import torch

from coc_mm.checkpoints.safe_pickle import read_file
from coc_mm.checkpoints.save import check_target, save_checkpoint
from coc_mm.errors import CheckpointError


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_files_are_written_whole(name, monkeypatch):
    path = check_target(f'new/{name}')
    content = dict(meta=dict(dataset_meta=dict(classes=['a'])), state_dict={'w': torch.ones(3)})
    save_checkpoint(content, path)
    loaded = read_file(path)
    assert torch.equal(loaded['state_dict']['w'], torch.ones(3))
    assert loaded['meta'] == content['meta']
    with pytest.raises(CheckpointError, match='--force'):
        check_target(path)
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(CheckpointError, match='No space left'):
        save_checkpoint(content, check_target(path, force=True))
    assert path.read_bytes() == before
    assert os.listdir('new') == [name]


def test_targets_refused():
    with pytest.raises(CheckpointError, match='is a folder'):
        check_target('.')
    with pytest.raises(CheckpointError, match=r'\.pth or \.safetensors'):
        check_target('weights.tar')
