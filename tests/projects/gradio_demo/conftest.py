import sys
from pathlib import Path

import pytest
import torch
from tiny_projects import write_project

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / 'projects' / 'gradio_demo'
sys.path[:0] = [str(DEMO), str(Path(__file__).parent)]  # for cluster_demo and demo_client

DEEP = dict(depths=(1, 2, 3, 1), heads=(2, 3, 4, 5), folds=(2, 1, 1, 1))


def save_checkpoint(path, config, classes=('disc', 'box'), seed=0, **meta):
    """Write an untrained model as a training run would, its config dumped beside it."""
    from coc_mm.apis.start import build_model

    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build_model(config)
    meta.setdefault('dataset_meta', dict(classes=classes))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
    """A folder with two runs of classifiers, one of a detector and one of a segmentor."""
    for library in ('mmpretrain', 'mmdet', 'mmseg'):
        pytest.importorskip(library)
    from mmengine.config import Config

    made = tmp_path_factory.mktemp('demo')
    folder = made / 'checkpoints'
    for name, scope in (('small', 'mmpretrain'), ('boxes', 'mmdet'), ('areas', 'mmseg')):
        (made / name).mkdir()
        config = Config.fromfile(write_project(made / name, scope))
        for epoch in (2, 10):
            save_checkpoint(folder / name / f'epoch_{epoch}.pth', config, seed=epoch)
        config.dump(folder / name / f'{name}.py')
    config = Config.fromfile(folder / 'small' / 'small.py')
    config.model.backbone.arch.update(DEEP)
    save_checkpoint(folder / 'deep' / 'iter_5.pth', config, seed=5)
    config.dump(folder / 'deep' / 'deep.py')
    return folder


@pytest.fixture
def sources(checkpoints):
    """The newest model of each run, by folder."""
    from cluster_demo.catalog import find_models

    found = {}
    for source in find_models(checkpoints):
        found.setdefault(source.label.split('/')[0], source)
    return found


@pytest.fixture(scope='module')
def server(checkpoints, tmp_path_factory):
    """The demo in a process of its own, which takes files of 1 MB.

    Each module has its own: one of them ends it.
    """
    pytest.importorskip('gradio', reason='the demo needs gradio: pip install gradio')
    from demo_client import Server

    arguments = ['--checkpoints', checkpoints, '--max-mb', '1', '--max-megapixels', '2']
    arguments += ['--models', 'coc-tiny-plain_8xb128_in1k', '--time-limit', '600', '--api']
    running = Server(tmp_path_factory.mktemp('server'), arguments)
    yield running
    running.stop()
