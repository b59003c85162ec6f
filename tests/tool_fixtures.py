"""Fixtures of tests that call tools: in the process, and as subprocesses."""

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import golden
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from sklearn.datasets import load_sample_image
from tiny_projects import SCOPES, forget_singletons, write_project

from coc_mm.apis.start import build_model

ROOT = Path(__file__).resolve().parents[1]


def load_tool(name):
    """Import a script of tools/ by its path."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(autouse=True)
def one_process(monkeypatch, tmp_path):
    """Run in a folder of the test's own, and let no variable of a launcher stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.delenv('COC_MM_TRACEBACK', raising=False)
    # A run formats its config four times, which takes longer than the training here.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))


@pytest.fixture(autouse=True)
def fresh_singletons():
    yield
    forget_singletons()


@pytest.fixture(scope='session')
def projects(tmp_path_factory):
    """Tiny data sets with their configs, and checkpoints with untrained weights."""
    found = {}
    for scope in SCOPES:
        folder = tmp_path_factory.mktemp(f'project_{scope}')
        config = write_project(folder, scope)
        model = build_model(Config.fromfile(config))
        checkpoint = folder / 'weights.pth'
        torch.save(dict(meta={}, state_dict=model.state_dict()), checkpoint)
        found[scope] = SimpleNamespace(
            folder=folder, config=config, data=folder / 'data', checkpoint=checkpoint
        )
    return found


@pytest.fixture
def tool():
    """Give the ``main`` of a tool by its name."""
    return load_tool


@pytest.fixture
def run():
    """Run a tool that must succeed, in the folder ``work``."""

    def call(tool, project, *argv):
        argv = map(str, (project.config, *argv, '--work-dir', 'work'))
        assert load_tool(tool)(list(argv)) == 0

    return call


@pytest.fixture
def logs():
    """Read what a run wrote into its log."""

    return lambda: '\n'.join(path.read_text() for path in sorted(Path('work').rglob('*.log')))


@pytest.fixture
def refused(capsys):
    """Call a tool with arguments it must refuse; return the message."""

    def call(tool, *argv, says=(), leaves=()):
        before = {path: path.exists() for path in map(Path, leaves)}
        status = load_tool(tool)([str(arg) for arg in argv])
        captured = capsys.readouterr()
        message = captured.err[captured.err.rfind('error: ') :]
        assert status == 2, captured.err
        assert message.startswith('error: '), captured.err
        assert 'Traceback' not in captured.err
        assert len(message.strip().split('\n')) <= 3, message
        for part in says:
            assert part in message, message
        for path, existed in before.items():
            assert path.exists() == existed, f'{path} is left behind'
        return message

    return call


@pytest.fixture
def misused(capsys):
    """Call a tool with arguments that argparse must refuse, and name."""

    def call(tool, *argv, says):
        with pytest.raises(SystemExit, match='2'):
            load_tool(tool)([str(arg) for arg in argv])
        assert says in capsys.readouterr().err

    return call


@pytest.fixture(scope='session')
def photo(tmp_path_factory):
    """A temple, 320 x 213 pixels."""
    path = tmp_path_factory.mktemp('photo') / 'china.jpg'
    Image.fromarray(load_sample_image('china.jpg')).resize((320, 213)).save(path)
    return path


@pytest.fixture
def official_tiny(tmp_path):
    """Save the rebuilt official classifier as timm's script does."""
    content = dict(
        state_dict=golden.official_state_dict('coc_tiny'),
        args=argparse.Namespace(model='coc_tiny'),
        optimizer=dict(state={0: dict(exp_avg=torch.zeros(3))}),
    )
    torch.save(content, tmp_path / 'official.pth.tar')
    return tmp_path / 'official.pth.tar'


def run_tool(tool, *argv, cwd):
    """Run a tool as a subprocess, as a user would."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', MPLBACKEND='Agg', PYTHONPATH=str(ROOT))
    command = [sys.executable, ROOT / 'tools' / f'{tool}.py', *map(str, argv)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def _train_resume_test(scope, folder):
    config = write_project(folder, scope).relative_to(folder)
    steps = SimpleNamespace(scope=scope, folder=folder, work_dir=folder / 'work_dirs' / config.stem)
    steps.train = run_tool('train', config, cwd=folder)
    steps.resume = run_tool(
        'train', config, '--resume', '--cfg-options', 'train_cfg.max_epochs=2', cwd=folder
    )
    out = 'maps' if scope == 'mmseg' else 'predictions.pkl'
    steps.out = folder / out
    steps.test = run_tool(
        'test',
        *(config, steps.work_dir / 'epoch_2.pth', '--work-dir', 'tested', '--out', out),
        *('--show-dir', 'shown', '--cfg-options', 'test_dataloader.batch_size=1'),
        cwd=folder,
    )
    return steps


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
    """Train, resume and test once per library, two libraries at a time."""
    folders = [tmp_path_factory.mktemp(f'run_{scope}') for scope in SCOPES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SCOPES, pool.map(_train_resume_test, SCOPES, folders), strict=True))
