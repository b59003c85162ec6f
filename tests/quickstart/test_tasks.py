from coc_mm.quickstart import TASK_NAMES
from coc_mm.quickstart.tasks import TASKS, fingerprint, task_config, task_options

OPTIONS = ['detection.train_cfg.max_epochs=3', 'optim_wrapper.optimizer.lr=5e-4']


def test_tasks_come_after_what_they_need():
    assert tuple(TASKS) == TASK_NAMES
    assert all(TASK_NAMES.index(t.needs) < TASK_NAMES.index(n) for n, t in TASKS.items() if t.needs)


def test_options_of_a_task():
    assert task_options('detection', OPTIONS) == ['train_cfg.max_epochs=3', OPTIONS[1]]
    assert task_options('segmentation', OPTIONS) == [OPTIONS[1]]
    config = task_config(TASKS['detection'], OPTIONS)
    assert config.train_cfg.max_epochs == 3
    assert config.optim_wrapper.optimizer.lr == 5e-4


def test_fingerprints_tell_configs_apart():
    task = TASKS['detection']
    plain = fingerprint(task, [])
    assert plain == fingerprint(task, ['segmentation.train_cfg.max_epochs=3'])
    assert len({plain, *(fingerprint(task, [option]) for option in OPTIONS)}) == 3
    assert plain != fingerprint(task, ['classification.train_cfg.max_epochs=3']), 'it starts there'
