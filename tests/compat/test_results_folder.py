"""Who writes the scores of a test: process 0 alone."""

from types import SimpleNamespace

import mmengine.dist.utils
import pytest
from mmengine.hooks import LoggerHook

from coc_mm.compat import results_folder


@pytest.mark.parametrize('rank', [0, 1])
def test_scores_are_written_by_process_0(rank, monkeypatch, tmp_path):
    monkeypatch.setattr(results_folder, 'get_world_size', lambda: 2)
    monkeypatch.setattr(mmengine.dist.utils, 'get_rank', lambda group=None: rank)
    hook, registered = LoggerHook(), []
    hook.json_log_path = 'scores.json'
    runner = SimpleNamespace(
        hooks=[hook],
        register_hook=registered.append,
        log_processor=SimpleNamespace(get_log_after_epoch=lambda *a, **k: ({'x': 1.0}, '')),
        logger=SimpleNamespace(info=print),
        test_dataloader=[],
        log_dir=str(tmp_path),
    )
    results_folder.gather_in_log_dir(runner)
    hook.after_test_epoch(runner)
    assert len(registered) == 1
    assert (tmp_path / 'scores.json').exists() == (rank == 0)


def test_one_process_is_left_as_it_is():
    runner = SimpleNamespace(hooks=None, register_hook=None)
    results_folder.gather_in_log_dir(runner)
