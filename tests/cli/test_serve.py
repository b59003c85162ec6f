"""``tools/deployment/serve.py``: a server that answers, and what it refuses."""

import importlib.util

import pytest

TOOL = 'deployment/serve'


def test_serves_what_was_named(tool, tmp_path, monkeypatch):
    uvicorn = pytest.importorskip('uvicorn')
    seen = {}
    monkeypatch.setattr('coc_mm.apis.serving.OnnxModel', lambda *given: seen.update(given=given))
    monkeypatch.setattr('coc_mm.apis.serving.make_app', lambda model: 'app')
    monkeypatch.setattr(uvicorn, 'run', lambda app, **settings: seen.update(settings, app=app))
    assert tool(TOOL)(['m.onnx', '--port', '81', '--threads', '2']) == 0
    assert seen == dict(given=('m.onnx', 2), host='127.0.0.1', port=81, app='app')


def test_refusals(refused, misused, tmp_path, monkeypatch):
    refused(TOOL, tmp_path / 'none.onnx', says=['does not exist'])
    misused(TOOL, 'm.onnx', '--threads', 0, says='--threads')
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda n: n != 'fastapi' and find(n))
    refused(TOOL, 'm.onnx', says=['pip install fastapi'])
