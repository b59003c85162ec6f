"""When the checkpoint that a run resumes from is validated first."""

import logging
from types import SimpleNamespace

import pytest

from coc_mm.engine.fault_tolerance.validate_on_resume_hook import ValidateOnResumeHook


@pytest.mark.parametrize(
    ('iteration', 'recorded', 'validated'),
    [
        (0, None, False),  # a new run
        (20, None, True),
        (20, 10, True),
        (20, 20, False),
        (15, None, False),  # between two validations
        (30, None, True),  # the end
    ],
)
def test_what_is_due(iteration, recorded, validated, tmp_path):
    record, calls = tmp_path / 'last_validation', []
    if recorded is not None:
        record.write_text(f'{recorded}\n')
    loop = SimpleNamespace(iter=iteration, max_iters=30, val_begin=1, val_interval=10)
    loop._decide_current_val_interval = lambda: None
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        iter=iteration,
        train_loop=loop,
        _train_loop=loop,
        val_loop=SimpleNamespace(run=lambda: calls.append(iteration)),
        logger=logging.getLogger('test'),
    )
    hook = ValidateOnResumeHook()
    hook.before_train(runner)
    assert bool(calls) == validated
    hook.after_val(runner)
    assert record.read_text() == f'{iteration}\n'
