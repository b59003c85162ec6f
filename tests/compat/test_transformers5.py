"""Multimodal models of mmpretrain beside transformers 5."""

from types import SimpleNamespace

import pytest

from coc_mm.compat import transformers5


@pytest.mark.parametrize(
    ('found', 'release', 'kept'),
    [(True, '4.53.0', True), (True, '5.0.1', False), (False, '5.0.1', False)],
)
def test_multimodal_models_need_transformers_4(found, release, kept, monkeypatch):
    monkeypatch.setattr(transformers5, 'version', lambda name: release)
    module = SimpleNamespace(WITH_MULTIMODAL=found)
    transformers5.leave_out_multimodal(module)
    assert module.WITH_MULTIMODAL is kept
