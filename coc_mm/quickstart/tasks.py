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
from coc_mm.datasets.digits.scenes import generator_fingerprint
from coc_mm.utils.cfg_options import parse_options
from coc_mm.utils.package_files import zoo_root


@dataclass(frozen=True)
class Metric:
    """One figure: its names in ``summary.json``, in the library's log and in the table."""

    key: str
    logged_as: str
    title: str
    percent: bool

    def format(self, value: float) -> str:
        """Write a value with its unit, if it has one."""
        return f'{value:.2f} %' if self.percent else f'{value:.3f}'


@dataclass(frozen=True)
class Task:
    """One config trained and tested; ``needs`` is the task whose checkpoint it starts from."""

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
    """Choose overrides: a key that starts with the name of a task is for that task alone."""
    pairs = [(option.partition('.')[0], option) for option in options]
    chosen = [(head, option) for head, option in pairs if head == name or head not in TASKS]
    return [option.removeprefix(f'{name}.') for _, option in chosen]


def task_config(task: Task, options: Sequence[str]) -> Config:
    """Read the config of a task and merge its overrides, as ``tools/train.py`` will."""
    merged = parse_options(task_options(task.name, options))
    config = load_config(str(shipped(f'configs/{task.config}')), merged)
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
    """Tell runs apart whose results may differ: by config, code and the task started from."""
    config = task_config(task, options).to_dict()
    parts = [json.dumps(config, sort_keys=True, default=repr), _code_digest()]
    if task.needs:
        parts.append(fingerprint(TASKS[task.needs], options))
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
