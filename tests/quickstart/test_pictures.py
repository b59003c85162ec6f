import json

from rich.console import Console

from coc_mm.quickstart.pictures import draw_curves, draw_pictures
from coc_mm.quickstart.runs import TaskRun
from coc_mm.quickstart.tasks import TASKS


def test_curves_of_a_log(tmp_path):
    """The pictures of trained models are drawn in tests/integration."""
    logged = [dict(loss=2.0, step=10), {'accuracy/top1': 50.0, 'step': 1}, dict(loss=1.0, step=20)]
    folder = tmp_path / 'classification' / '2026' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / '2026.json').write_text('\n'.join(map(json.dumps, logged)))
    run = TaskRun(TASKS['classification'], tmp_path, [], Console())
    picture = draw_curves(run)
    assert picture.ndim == 3
    assert picture.std() > 10


def test_nothing_is_drawn_of_unfinished_tasks(tmp_path):
    runs = {name: TaskRun(task, tmp_path, [], Console()) for name, task in TASKS.items()}
    assert draw_pictures(tmp_path / 'pictures', runs) == []
