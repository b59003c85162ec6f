"""The three tasks of the quickstart: their configs, metrics and fingerprints."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmengine.config import Config

import coc_mm
from coc_mm.apis.config import load_config, merge_options
from coc_mm.apis.model_zoo import zoo_root
from coc_mm.datasets.digits.scenes import generator_fingerprint
from coc_mm.utils.cfg_options import parse_options

__all__ = ['TASKS', 'Metric', 'Task', 'fingerprint', 'shipped', 'task_config', 'task_options']


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    Args:
        key (str): Its name in ``summary.json``.
        logged_as (str): Its name in the library's log.
        title (str): Its name in the table.
        percent (bool): Whether it is stated in percent rather than as a fraction.
    """

    key: str
    logged_as: str
    title: str
    percent: bool

    def format(self, value: float) -> str:
        """Write a value with its unit, if it has one."""
        return f'{value:.2f} %' if self.percent else f'{value:.3f}'


@dataclass(frozen=True)
class Task:
    """A task: one config trained and tested.

    Args:
        name (str): 'classification', 'detection' or 'segmentation'.
        config (str): The config, below the folder of configs.
        model (str): What is trained, for the table.
        metrics (tuple[Metric, ...]): What is reported.
        needs (str | None): The task whose checkpoint the backbone starts from.
    """

    name: str
    config: str
    model: str
    metrics: tuple[Metric, ...]
    needs: str | None = None


_TASKS = (
    Task(
        'classification',
        'quickstart/coc-nano_1xb64-15e_digits.py',
        'CoC-nano',
        (Metric('top1', 'accuracy/top1', 'top-1', True),),
    ),
    Task(
        'detection',
        'quickstart/mask-rcnn_coc-nano_fpn_1xb8-2e_digit-scenes.py',
        'Mask R-CNN, CoC-nano',
        (
            Metric('bbox_mAP_50', 'coco/bbox_mAP_50', 'box AP50', False),
            Metric('segm_mAP_50', 'coco/segm_mAP_50', 'mask AP50', False),
        ),
        needs='classification',
    ),
    Task(
        'segmentation',
        'quickstart/fpn_coc-nano_1xb8-7e_digit-scenes.py',
        'Semantic FPN, CoC-nano',
        (Metric('mIoU', 'mIoU', 'mIoU', True),),
        needs='classification',
    ),
)
#: By name; a task that others need comes before them.
TASKS = {task.name: task for task in _TASKS}


def shipped(path: str) -> Path:
    """Return a config or tool of this project, such as ``'tools/train.py'``."""
    return (zoo_root() / path).resolve()


def task_options(name: str, options: Sequence[str]) -> list[str]:
    """Choose the overrides that concern a task.

    Args:
        name (str): The task.
        options (Sequence[str]): ``KEY=VALUE``; a key that starts with the name of a task is for
            that task alone.

    Returns:
        list[str]: ``KEY=VALUE`` without the name of the task.
    """
    chosen = []
    for option in options:
        head, _, rest = option.partition('.')
        if head == name:
            chosen.append(rest)
        elif head not in TASKS:
            chosen.append(option)
    return chosen


def task_config(task: Task, options: Sequence[str]) -> Config:
    """Read the config of a task and merge its overrides, as ``tools/train.py`` will.

    Args:
        task (Task): The task.
        options (Sequence[str]): Overrides of all tasks, see :func:`task_options`.

    Raises:
        UserError: An override does not fit, or the library is not installed.
    """
    merged = parse_options(task_options(task.name, options))
    path = str(shipped(f'configs/{task.config}'))
    config = load_config(path, merged)
    merge_options(config, merged)
    return config


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """A digest of the code that results depend on: operator, model and data."""
    package = Path(coc_mm.__file__).resolve().parent
    digest = hashlib.sha256(generator_fingerprint().encode())
    for folder in ('ops', 'models'):
        for path in sorted((package / folder).rglob('*.py')):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def fingerprint(task: Task, options: Sequence[str]) -> str:
    """Tell runs apart whose results may differ.

    Args:
        task (Task): The task.
        options (Sequence[str]): Overrides of all tasks, see :func:`task_options`.

    Returns:
        str: 16 hexadecimal digits over the resolved config, the code of operator, model and
        data, and the fingerprint of the task that this one starts from.

    Raises:
        UserError: An override does not fit, or the library is not installed.
    """
    config = task_config(task, options).to_dict()
    parts = [json.dumps(config, sort_keys=True, default=repr), _code_digest()]
    if task.needs:
        parts.append(fingerprint(TASKS[task.needs], options))
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
