"""Pictures of what the quickstart has learned."""

import json
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import PixelData

from coc_mm.apis.infer import load_model
from coc_mm.datasets.digits.scenes import BACKGROUND_LABEL
from coc_mm.quickstart.runs import TaskRun
from coc_mm.quickstart.tasks import task_config
from coc_mm.visualization.inspector import ClusterInspector, Inspection
from coc_mm.visualization.sheets import contact_sheet, fit, save_picture, stage_row

SCENES = 6
ENLARGED = 5  # a scene is 96 pixels wide, too few for captions in it
DIGITS = (6, 12)  # rows and columns of the classified digits
_WRONG = (214, 39, 40)


def draw_pictures(folder: Path, runs: dict[str, TaskRun]) -> list[Path]:
    """Draw what finished tasks can show, unless that is done; return all their pictures."""
    done = {name: run for name, run in runs.items() if run.results()}
    draw = dict(classification=draw_digits, detection=draw_objects, segmentation=draw_regions)
    wanted: dict[Path, tuple[Callable, list[TaskRun]]] = {
        folder / f'{name}.png': (draw[name], [run]) for name, run in done.items()
    }
    if done:
        wanted[folder / 'training.png'] = (draw_curves, list(done.values()))
    if 'segmentation' in done:
        wanted[folder / 'clusters.png'] = (draw_clusters, [done['segmentation']])
    for path, (draw_one, shown) in wanted.items():
        newest = max(run.checkpoint.stat().st_mtime for run in shown if run.checkpoint)
        if not path.exists() or path.stat().st_mtime < newest:
            # What the libraries say while they build a model stands in the logs of its training.
            silent = StringIO()
            with warnings.catch_warnings(), redirect_stdout(silent), redirect_stderr(silent):
                warnings.simplefilter('ignore')
                save_picture(path, draw_one(*shown))
    return list(wanted)


def _load(run: TaskRun) -> tuple[Any, Config]:
    config = task_config(run.task, run.options)
    config.model.backbone.init_cfg = None  # the checkpoint holds all weights
    return load_model(deepcopy(config), str(run.checkpoint)), config


def _inspect_scenes(run: TaskRun) -> tuple[ClusterInspector, list[tuple[Inspection, Path]]]:
    """What a dense model makes of the first few test scenes."""
    model, config = _load(run)
    inspector = ClusterInspector(model, config)
    folder = Path(config.test_dataloader.dataset.data_root, 'images', 'validation')
    scenes = sorted(folder.glob('*.jpg'))[:SCENES]
    return inspector, [(inspector(mmcv.imread(p, channel_order='rgb')), p) for p in scenes]


def _grid(tiles: list, columns: int) -> list[list]:
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


def _enlarge(picture: np.ndarray) -> np.ndarray:
    return fit(picture, height=ENLARGED * picture.shape[0])


def draw_digits(run: TaskRun) -> np.ndarray:
    """Show test digits with what they were taken for, the wrong ones first and framed."""
    model, config = _load(run)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    with torch.no_grad():
        samples = model.test_step(pseudo_collate([dataset[i] for i in range(len(dataset))]))
    answers = [(int(s.pred_label), float(s.pred_score.max()), int(s.gt_label)) for s in samples]
    wrong = [i for i, (answer, _, truth) in enumerate(answers) if answer != truth]
    rows, columns = DIGITS
    # Beside the wrong ones, the dataset's own order: a fair sample of the right ones.
    right = [i for i in range(len(answers)) if i not in set(wrong)]
    tiles = []
    for i in [*wrong[: rows * columns // 2], *right][: rows * columns]:
        answer, score, truth = answers[i]
        tile = cv2.resize(dataset.get_data_info(i)['img'], (96, 96), interpolation=cv2.INTER_CUBIC)
        text = f'{answer} · {100 * score:.0f} %'
        if answer != truth:
            cv2.rectangle(tile, (0, 0), (95, 95), _WRONG, 5)
            text = f'{answer}, is {truth}'
        tiles.append((tile, text))
    title = f'{len(right)} of {len(answers)} test digits classified correctly'
    title += ', wrong ones framed' if wrong else ''
    return contact_sheet(_grid(tiles, columns), title)


def draw_objects(run: TaskRun) -> np.ndarray:
    """Show test scenes with the boxes and masks that were found."""
    from mmdet.visualization import DetLocalVisualizer

    inspector, looks = _inspect_scenes(run)
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.55)
    visualizer.dataset_meta = inspector.model.dataset_meta
    tiles = []
    for look, path in looks:
        picture, sample = _enlarge(look.picture), look.sample.cpu()
        found = sample.pred_instances
        masks = F.interpolate(found.masks[:, None].float(), picture.shape[:2], mode='bilinear')
        sample.pred_instances = type(found)(
            bboxes=found.bboxes * ENLARGED,
            labels=found.labels,
            scores=found.scores,
            masks=masks[:, 0] > 0.5,
        )
        visualizer.add_datasample(path.stem, picture, sample, draw_gt=False, pred_score_thr=0.5)
        tiles.append((visualizer.get_image(), path.name))
    return contact_sheet(_grid(tiles, 3), _title(run))


def draw_regions(run: TaskRun) -> np.ndarray:
    """Show test scenes, their true maps and the predicted ones."""
    from mmseg.visualization import SegLocalVisualizer

    inspector, looks = _inspect_scenes(run)
    visualizer = SegLocalVisualizer(alpha=0.6)
    visualizer.dataset_meta = inspector.model.dataset_meta
    rows: list[list[tuple[np.ndarray, str]]] = [[], [], []]
    for look, path in looks[:4]:
        truth = path.parents[2] / 'annotations' / path.parent.name / f'{path.stem}.png'
        predicted = look.sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
        maps = [mmcv.imread(truth, flag='unchanged'), predicted]
        picture = _enlarge(look.picture)
        rows[0].append((picture, path.name))
        for row, labels, caption in zip(rows[1:], maps, ('truth', 'prediction'), strict=True):
            height, width = picture.shape[:2]
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            # Beyond the classes nothing is painted: the background stays as it is, only darker.
            labels = np.where(labels == BACKGROUND_LABEL, 255, labels)
            sample = look.sample.new()
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None])
            visualizer.add_datasample(path.stem, picture, sample, draw_gt=False)
            row.append((visualizer.get_image(), caption))
    return contact_sheet(rows, _title(run))


def draw_clusters(run: TaskRun) -> np.ndarray:
    """Show test scenes with the clusters of one head in every stage."""
    rows = []
    for look, path in _inspect_scenes(run)[1][:4]:
        last = {maps.stage: maps for maps in look.maps.values()}  # the last block of each stage
        maps = [m.with_heads(m.heads[:1]) for m in last.values()]
        picture = _enlarge(look.picture)
        rows.append(stage_row(picture, maps, extent=look.extent, caption=path.name))
    return contact_sheet(rows, f'Clusters of {run.task.model} ({run.task.name})')


def _title(run: TaskRun) -> str:
    results = run.results()  # finished, or it would not be drawn
    metrics = results.metrics if results else {}
    told = [f'{m.title} {m.format(metrics[m.key])}' for m in run.task.metrics if m.key in metrics]
    return f'{run.task.model}: {", ".join(told)}'


def draw_curves(*runs: TaskRun) -> np.ndarray:
    """Show how loss and metrics went during training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(runs), 3.4), dpi=130, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    for axes, run in zip(np.atleast_1d(figure.subplots(1, len(runs))), runs, strict=True):
        _draw_curve(axes, run)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_curve(axes, run: TaskRun) -> None:
    """Loss of every logged step on the left, metrics of every validation on the right."""
    scalars = _scalars(run.folder)
    steps, losses = zip(*[(s['step'], s['loss']) for s in scalars if 'loss' in s], strict=True)
    axes.plot(steps, losses, color='0.45', linewidth=1.2)
    axes.set(xlabel='iteration', ylabel='loss', title=run.task.name, ylim=(0, None))
    axes.set_xlim(0, max(steps))
    right = axes.twinx()
    # Validations are logged with the epoch for a step: place them by what was logged before.
    for metric, color in zip(run.task.metrics, ('tab:blue', 'tab:orange'), strict=False):
        points, last = [(0, 0.0)], 0
        for scalar in scalars:
            last = scalar['step'] if 'loss' in scalar else last
            if metric.logged_as in scalar:
                points.append((last, scalar[metric.logged_as]))
        label = f'{metric.title} {metric.format(points[-1][1])}'
        right.plot(*zip(*points, strict=True), 'o-', color=color, label=label, markersize=4)
    right.set_ylim(0, 100 if run.task.metrics[0].percent else 1)
    right.legend(loc='center right', frameon=False)
    for side in (axes, right):
        side.spines['top'].set_visible(False)


def _scalars(folder: Path) -> list[dict]:
    """All that mmengine logged while training, resumed runs one after the other."""
    logs = sorted(folder.glob('*/vis_data/2*.json'))
    lines = [line for log in logs for line in log.read_text(encoding='utf-8').splitlines()]
    return [json.loads(line) for line in lines if line.strip()]
