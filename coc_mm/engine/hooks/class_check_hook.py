"""Compare the classes of data, model and checkpoint before a run."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import nn

from coc_mm.errors import UserError, print_rank0
from coc_mm.registry import HOOKS

# Heads whose number is not that of the data's classes: objects or none, things or stuff, edges.
_OTHER_HEADS = {
    'BaseSemanticHead', 'FusedSemanticHead', 'RPNHead', 'RegressionHead', 'STDCHead',
}  # fmt: skip


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Refuse data whose classes the model cannot tell; map those of a checkpoint by name.

    Heads need an output for each class of the data, in mmdet exactly so many. A checkpoint of the
    same classes in another order is tested with its labels mapped. Part of every run by
    ``tools/train.py`` and ``tools/test.py``.
    """

    priority = 'HIGHEST'

    def before_run(self, runner: Runner) -> None:
        """Hold the model's heads against the classes of each data set that is built."""
        heads = list(_outputs(_unwrap(runner.model)))
        for use, loop in _loops(runner) if heads else ():
            dataset = loop.dataloader.dataset
            meta = getattr(dataset, 'metainfo', {})
            if 'stuff_classes' in meta:  # panoptic: heads for things alone and for all
                continue
            classes = meta.get('classes')
            count = _count_labels(dataset) if classes is None else len(classes)
            named = '' if classes is None else f' ({_listed(classes)})'
            for name, outputs in heads:
                exact = runner.cfg.get('default_scope') == 'mmdet'
                if count and (outputs < count or (exact and outputs != count)):
                    raise UserError(
                        f'the {use} data have {count} classes{named}, and the model has '
                        f'{name}.num_classes={outputs}: set it to {count}, or name the classes '
                        'of the data (metainfo).'
                    )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Hold the classes that a checkpoint was trained on against those of the data."""
        meta = checkpoint.get('meta') or {}
        trained = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
        loops = dict(_loops(runner))
        use = 'test' if 'test' in loops else 'training'
        given = getattr(loops[use].dataloader.dataset, 'metainfo', {}).get('classes')
        if not trained or not given or isinstance(trained, str) or list(trained) == list(given):
            return
        trained, given = list(trained), list(given)
        says = f'was trained on other classes ({_listed(trained)}) than the data have'
        if sorted(trained) == sorted(given):
            says = f'was trained on the classes in another order ({_listed(trained)}) than the data'
        says = f'the checkpoint {says} ({_listed(given)})'
        if getattr(runner, '_resume', False):
            raise UserError(
                f'{says}: it cannot be resumed. Give the data those classes, or start from its '
                'weights: load_from=FILE without --resume.'
            )
        if use == 'training':
            if len(trained) == len(given):
                print_rank0(f'load_from: {says}; the outputs of its head are learned anew.')
        elif sorted(trained) == sorted(given):
            print_rank0(f'{says}; its labels are mapped by name.')
            _map_labels(_unwrap(runner.model), [given.index(name) for name in trained])
        elif any(name in given and given.index(name) != i for i, name in enumerate(trained)):
            raise UserError(
                f'{says}, so that one name stands for different outputs. Give the data the '
                "checkpoint's classes, in its order."
            )
        else:
            print_rank0(f'warning: {says}; outputs are compared by their numbers.')


def _loops(runner: Runner) -> Iterator[tuple[str, Any]]:
    for use, loop in (
        ('training', runner._train_loop), ('validation', runner._val_loop),
        ('test', runner._test_loop),
    ):  # fmt: skip
        if isinstance(loop, BaseLoop):
            yield use, loop


def _unwrap(model: Any) -> Any:
    """The model that checkpoints are of, inside of those for processes and augmentation."""
    while isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module
    return model


def _outputs(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Names of heads and how many classes they tell apart."""
    if hasattr(model, 'language_model'):  # classes are words of a prompt
        return
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        count = getattr(module, 'num_classes', None)
        if not isinstance(count, int) or not any(kind.endswith('Head') for kind in kinds):
            continue
        if kinds & _OTHER_HEADS or 'rpn_head' in name.split('.'):
            continue
        if getattr(module, 'out_channels', None) == 1 and hasattr(module, 'threshold'):
            count = 2  # mmseg: one output, above the threshold or not
        yield name, count


def _count_labels(dataset: Any) -> int:
    """The number of labels of a data set without names, 0 where it does not tell them."""
    if not hasattr(dataset, 'get_cat_ids'):
        return 0
    return max((x for i in range(len(dataset)) for x in dataset.get_cat_ids(i)), default=-1) + 1


def _listed(names: Sequence[str]) -> str:
    return ', '.join(map(str, names[:8])) + (', ...' if len(names) > 8 else '')


def _map_labels(model: nn.Module, places: list[int]) -> None:
    """Let a model's predictions name class ``places[i]`` where they name i."""

    def mapped(module, args, kwargs, output):
        for sample in output if kwargs.get('mode') == 'predict' else ():
            if 'pred_score' in sample:
                sample.set_pred_score(_moved(sample.pred_score, places))
                sample.set_pred_label(_replaced(sample.pred_label, places))
            if 'pred_instances' in sample:
                found = sample.pred_instances
                found.labels = _replaced(found.labels, places)
            if 'pred_sem_seg' in sample:
                sample.pred_sem_seg.data = _replaced(sample.pred_sem_seg.data, places)
            if 'seg_logits' in sample and len(sample.seg_logits.data) == len(places):
                sample.seg_logits.data = _moved(sample.seg_logits.data, places)

    model.register_forward_hook(mapped, with_kwargs=True)


def _moved(values: torch.Tensor, places: list[int]) -> torch.Tensor:
    moved = values.clone()
    moved[places] = values
    return moved


def _replaced(labels: torch.Tensor, places: list[int]) -> torch.Tensor:
    return torch.tensor(places, device=labels.device)[labels.long()].to(labels.dtype)
