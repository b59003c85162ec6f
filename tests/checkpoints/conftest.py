import golden
import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as checkpoint_module

from coc_mm.checkpoints.load import use_safe_loading


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob('RUN*')), 'code of a file was run'


@pytest.fixture
def saved(tmp_path):
    """Save what is given with torch; return the path."""

    def save(content, name='weights.pth', **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.fixture
def safe_mmengine(monkeypatch):
    """Register the safe readers, and take them back."""
    for name in ('load_from_http', '_safe_torch_load'):
        monkeypatch.setattr(checkpoint_module, name, getattr(checkpoint_module, name, None))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_loading()


@pytest.fixture(scope='session')
def tiny():
    return {k: v.float() for k, v in golden.official_state_dict('coc_tiny').items()}
