"""The three tasks of the quickstart: their configs, metrics, and what their results hang on."""

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
from coc_mm.errors import UserError
from coc_mm.utils.cfg_options import parse_options

__all__ = [
    'STAGES',
    'Metric',
    'Stage',
    'find_shipped',
    'fingerprint',
    'in_order',
    'stage_config',
    'stage_options',
]


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
        """Write a value down.

        Args:
            value (float): In percent, or a fraction.

        Returns:
            str: With a unit, if it has one.
        """
        return f'{value:.2f} %' if self.percent else f'{value:.3f}'


@dataclass(frozen=True)
class Stage:
    """One task.

    Args:
        name (str): 'classification', 'detection' or 'segmentation'.
        config (str): The config, below the folder of configs.
        model (str): What is trained, for the table.
        metrics (tuple[Metric, ...]): What is reported.
        needs (str | None): The stage whose checkpoint its backbone starts from.
    """

    name: str
    config: str
    model: str
    metrics: tuple[Metric, ...]
    needs: str | None = None


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            'classification',
            'quickstart/coc-nano_1xb64-15e_digits.py',
            'CoC-nano',
            (Metric('top1', 'accuracy/top1', 'top-1', True),),
        ),
        Stage(
            'detection',
            'quickstart/mask-rcnn_coc-nano_fpn_1xb8-2e_digit-scenes.py',
            'Mask R-CNN, CoC-nano',
            (
                Metric('bbox_mAP_50', 'coco/bbox_mAP_50', 'box AP50', False),
                Metric('segm_mAP_50', 'coco/segm_mAP_50', 'mask AP50', False),
            ),
            needs='classification',
        ),
        Stage(
            'segmentation',
            'quickstart/fpn_coc-nano_1xb8-7e_digit-scenes.py',
            'Semantic FPN, CoC-nano',
            (Metric('mIoU', 'mIoU', 'mIoU', True),),
            needs='classification',
        ),
    )
}


def find_shipped(path: str) -> Path:
    """Find a config or a tool of this project, in a checkout or in an installed wheel.

    Args:
        path (str): Such as ``'tools/train.py'``.

    Returns:
        Path: The file.

    Raises:
        UserError: It is in neither place.
    """
    package = Path(coc_mm.__file__).resolve().parent
    for root in (package.parent, package / '.mim'):
        if (root / path).exists():
            return root / path
    raise UserError(
        f'{path} is neither in {package.parent} nor in {package / ".mim"}; install coc_mm again.'
    )


def stage_options(name: str, options: Sequence[str]) -> list[str]:
    """Choose the overrides that concern a stage.

    Args:
        name (str): The stage.
        options (Sequence[str]): ``KEY=VALUE``; a key that starts with the name of a
            stage is for that stage alone.

    Returns:
        list[str]: ``KEY=VALUE``, the name of the stage taken off.
    """
    chosen = []
    for option in options:
        head, _, rest = option.partition('.')
        if head == name:
            chosen.append(rest)
        elif head not in STAGES:
            chosen.append(option)
    return chosen


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


def stage_config(stage: Stage, options: Sequence[str]) -> Config:
    """Read the config of a stage and merge its overrides, as ``tools/train.py`` will.

    Args:
        stage (Stage): The stage.
        options (Sequence[str]): Overrides of all stages, see :func:`stage_options`.

    Returns:
        Config: The config.

    Raises:
        UserError: An override does not fit, or the library is not installed.
    """
    path = str(find_shipped(f'configs/{stage.config}'))
    chosen = stage_options(stage.name, options)
    merged = parse_options(chosen)
    config = load_config(path, merged)
    merge_options(config, merged)
    return config


def fingerprint(stage: Stage, options: Sequence[str]) -> str:
    """Tell runs apart whose results may differ.

    Args:
        stage (Stage): The stage.
        options (Sequence[str]): Overrides of all stages, see :func:`stage_options`.

    Returns:
        str: 16 hexadecimal digits over the resolved config, the code of operator,
        model and data, and all of that of the stage that this one starts from.

    Raises:
        UserError: An override does not fit, or the library is not installed.
    """
    config = stage_config(stage, options).to_dict()
    parts = [json.dumps(config, sort_keys=True, default=repr), _code_digest()]
    if stage.needs:
        parts.append(fingerprint(STAGES[stage.needs], options))
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]


def in_order(names: Sequence[str]) -> list[Stage]:
    """List the stages to run, those that others need first.

    Args:
        names (Sequence[str]): As asked for; none means all.

    Returns:
        list[Stage]: Without repetition, with what they need.
    """
    wanted = set(names or STAGES)
    wanted |= {needed for name in wanted if (needed := STAGES[name].needs)}
    return [stage for name, stage in STAGES.items() if name in wanted]
