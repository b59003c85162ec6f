"""Pictures and maps of a test, where images in different folders have the same name.

The libraries name them after the image alone, so that one file is left of all. Where names repeat
they keep their folders instead.
"""

import importlib
import os
import types
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

# What writes, the attribute that says where, and its module, which calls ``osp.basename``.
_WRITERS = {
    'IoUMetric': ('output_dir', 'mmseg.evaluation.metrics.iou_metric'),
    'DetVisualizationHook': ('test_out_dir', 'mmdet.engine.hooks.visualization_hook'),
    'VisualizationHook': ('out_dir', 'mmpretrain.engine.hooks.visualization_hook'),
}


class _FoldersHook(Hook):
    """Replaces ``osp`` in the modules that write, while a test runs."""

    def before_test(self, runner: Runner) -> None:
        self._changed: list[tuple[Any, Any]] = []
        for writer in (*runner.test_loop.evaluator.metrics, *runner.hooks):
            attribute, module = _WRITERS.get(type(writer).__name__, ('', ''))
            folder = getattr(writer, attribute, None) if attribute else None
            if not folder:
                continue
            if attribute == 'test_out_dir':  # which mmdet joins to a relative one again and again
                log_dir = os.path.join(runner.work_dir, runner.timestamp)
                writer.test_out_dir = folder = os.path.abspath(os.path.join(log_dir, folder))
            names = _names_with_folders(runner.test_loop.dataloader.dataset)
            if not names:
                continue
            if attribute == 'output_dir':
                for parent in {os.path.dirname(name) for name in names.values()}:
                    os.makedirs(os.path.join(folder, parent), exist_ok=True)
            self._replace(importlib.import_module(module), names)

    def _replace(self, module: Any, names: dict[str, str]) -> None:
        def basename(path):
            return names.get(path) or os.path.basename(path)

        self._changed.append((module, module.osp))
        module.osp = types.SimpleNamespace(**{**vars(os.path), 'basename': basename})

    def after_test(self, runner: Runner) -> None:
        for module, osp in self._changed:
            module.osp = osp


def _names_with_folders(dataset: Any) -> dict[str, str]:
    """Path -> name below the folder that all images share; nothing if their names differ."""
    paths = [dataset.get_data_info(i).get('img_path') or '' for i in range(len(dataset))]
    if len({os.path.basename(path) for path in paths}) == len(set(paths)):
        return {}
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {path: os.path.relpath(path, root or '.') for path in paths}


def keep_folders(runner: Runner) -> None:
    """Let the tests of a built runner write one file for each image."""
    runner.register_hook(_FoldersHook(), priority='HIGHEST')
