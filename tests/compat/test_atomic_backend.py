"""mmengine's local files, written atomically."""

import torch
from mmengine.fileio.backends import registry_utils
from mmengine.runner import save_checkpoint

from coc_mm.compat import atomic_backend
from coc_mm.utils.atomic_io import atomic_write


def test_mmengine_writes_through_us(tmp_path, monkeypatch):
    for known in (registry_utils.backends, registry_utils.prefix_to_backends):
        for name, backend in known.items():
            monkeypatch.setitem(known, name, backend)
    written = []

    def noted(path, sync):
        written.append((path, sync))
        return atomic_write(path, sync=sync)

    monkeypatch.setattr(atomic_backend, 'atomic_write', noted)
    atomic_backend.use_atomic_saving()
    path = tmp_path / 'a.pth'
    save_checkpoint(dict(state_dict=dict(a=torch.ones(1))), str(path))
    assert written == [(str(path), True)]
    assert torch.load(path)['state_dict'] == dict(a=torch.ones(1))
