"""Context Cluster beside backbones of similar size: cost, accuracy, speed.

    OMP_NUM_THREADS=2 python benchmarks/compare_backbones.py

Parameters and multiply-adds are counted on the built classifiers at 224 x 224; published top-1
is read from the metafiles of mmpretrain and ours; throughput is of eager inference in float32,
all models in turn in one process, random weights. Writes
``benchmarks/results/compare_backbones.csv`` and ``docs/images/accuracy-throughput.png``. Use an
otherwise idle machine.
"""

import argparse
import logging
import warnings

import torch
from common import ROOT, conditions, interleave, summary, write_csv
from rich.console import Console
from rich.table import Table

from coc_mm.apis.complexity import count_complexity
from coc_mm.apis.model_zoo import config_of, find_entry
from coc_mm.apis.start import build_model

PLOT = ROOT / 'docs' / 'images' / 'accuracy-throughput.png'
SIZE = 224
OURS = {
    'CoC-Tiny': 'coc-tiny_8xb128_in1k',
    'CoC-Small': 'coc-small_8xb128_in1k',
    'CoC-Medium': 'coc-medium_8xb128_in1k',
}
# Names of mmpretrain's model index.
OTHERS = {
    'ResNet-18': 'resnet18_8xb32_in1k',
    'ResNet-50': 'resnet50_8xb32_in1k',
    'PoolFormer-S12': 'poolformer-s12_3rdparty_32xb128_in1k',
    'PoolFormer-S24': 'poolformer-s24_3rdparty_32xb128_in1k',
    'Swin-T': 'swin-tiny_16xb64_in1k',
    'ConvNeXt-T': 'convnext-tiny_32xb128_in1k',
    'ConvNeXtV2-Atto': 'convnext-v2-atto_fcmae-pre_3rdparty_in1k',
    'ConvNeXtV2-Femto': 'convnext-v2-femto_fcmae-pre_3rdparty_in1k',
    'ConvNeXtV2-Pico': 'convnext-v2-pico_fcmae-pre_3rdparty_in1k',
    'VAN-B0': 'van-tiny_3rdparty_in1k',
    'VAN-B1': 'van-small_3rdparty_in1k',
    'VAN-B2': 'van-base_3rdparty_in1k',
}
FAMILIES = {'ConvNeXtV2': 'masked pre-training'}
_INK, _QUIET, _ACCENT = '#222222', '#8a8f98', '#c2410c'


def published(label):
    """Return the config of a model and its published top-1.

    Args:
        label (str): A key of ``OURS`` or ``OTHERS``.

    Returns:
        tuple[Config, float]: The config; per cent.
    """
    if label in OURS:
        figures = find_entry(OURS[label])['Figures']
        # Of the weights that can be had, not of the paper's own.
        return config_of(OURS[label]), float(figures['released']['top-1'])
    from mmpretrain.apis.model import ModelHub

    model = ModelHub.get(OTHERS[label])
    return model.config, float(model.results[0].metrics['Top 1 Accuracy'])


def measure(labels, batch, rounds):
    """Count and time models.

    Args:
        labels (list[str]): Keys of ``OURS`` and ``OTHERS``.
        batch (int): Images at a time.
        rounds (int): Times each runs.

    Returns:
        list[dict]: A row per model.
    """
    rows, calls = [], {}
    image = torch.randn(batch, 3, SIZE, SIZE)
    for label in labels:
        config, top1 = published(label)
        counts = count_complexity(config, (SIZE, SIZE))
        model = build_model(config).eval()

        def call(model=model):
            with torch.inference_mode():
                model(image, mode='tensor')

        calls[label] = call
        rows.append(
            dict(
                model=label,
                name=OURS.get(label) or OTHERS[label],
                parameters=counts.parameters,
                multiply_adds=counts.macs,
                published_top1=top1,
                note=FAMILIES.get(label.split('-')[0], ''),
                **conditions(),
                dtype='float32',
                shape=f'{batch}x3x{SIZE}x{SIZE}',
                rounds=rounds,
            )
        )
    for row, seconds in zip(rows, interleave(calls, rounds).values(), strict=True):
        middle, spread = summary(seconds)
        row.update(
            median_s=f'{middle:.4f}',
            spread_s=f'{spread:.4f}',
            images_per_s=f'{batch / middle:.2f}',
        )
    return rows


def plot(rows, path):
    """Draw accuracy against throughput with a label at every point.

    Args:
        rows (list[dict]): From :func:`measure`.
        path (Path): The PNG file.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), dpi=150)
    points = {}
    for row in rows:
        x, y = float(row['images_per_s']), row['published_top1']
        ours = row['model'] in OURS
        color = _ACCENT if ours else _QUIET
        axes.scatter(x, y, s=55 if ours else 30, color=color, zorder=3, linewidths=0)
        points[row['model']] = (x, y, color, ours)
    axes.set_xscale('log')
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

    low, high = (f(p[0] for p in points.values()) for f in (min, max))
    steps = [m * 10**e for e in range(-2, 5) for m in (1, 2, 5)]
    axes.set_xlim(low / 1.25, high * 1.25)
    axes.xaxis.set_major_locator(FixedLocator([s for s in steps if low / 1.25 <= s <= high * 1.25]))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.1)
    axes.grid(color='#e5e7eb', linewidth=0.7)
    axes.spines[['top', 'right']].set_visible(False)
    row = rows[0]
    axes.set_xlabel(
        f'images/s, {SIZE} x {SIZE}, batch {row["shape"].split("x")[0]}, float32, '
        f'{row["threads"]} CPU threads (log scale)'
    )
    axes.set_ylabel('published ImageNet-1k top-1, %')
    axes.set_title('Accuracy against throughput', loc='left', color=_INK)
    place_labels(figure, axes, points)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches='tight')
    plt.close(figure)


def place_labels(figure, axes, points):
    """Write names beside their points where they cover neither names nor points.

    Args:
        figure (Figure): Of matplotlib.
        axes (Axes): Its limits are final.
        points (dict[str, tuple]): By name: x, y, color, whether ours.

    Returns:
        list[Text]: The labels.
    """
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    around = 4 * figure.dpi / 72
    taken = []
    for x, y, *_ in points.values():
        px, py = axes.transData.transform((x, y))
        taken.append(Bbox.from_extents(px - around, py - around, px + around, py + around))
    spots = [
        (dx * r, dy * r, 'left' if dx > 0 else 'right' if dx < 0 else 'center')
        for r in (1, 1.7, 2.6, 3.6, 5)
        for dx, dy in ((7, 0), (-7, 0), (0, 9), (0, -9), (6, 7), (-6, 7), (6, -7), (-6, -7))
    ]
    frame = axes.get_window_extent(renderer)
    labels = []
    for name, (x, y, color, ours) in sorted(points.items(), key=lambda item: not item[1][3]):
        best = None
        for dx, dy, align in spots:
            text = axes.annotate(
                name,
                (x, y),
                xytext=(dx, dy),
                textcoords='offset points',
                ha=align,
                va='center',
                fontsize=9,
                color=color if ours else _INK,
                fontweight='bold' if ours else 'normal',
            )
            box = text.get_window_extent(renderer)
            covered = sum(box.overlaps(other) for other in taken)
            covered += not (frame.x0 <= box.x0 and box.x1 <= frame.x1)
            covered += not (frame.y0 <= box.y0 and box.y1 <= frame.y1)
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = covered, text, box
            else:
                text.remove()
            if covered == 0:
                break
        taken.append(best[2])
        labels.append(best[1])
    return labels


def main():
    """Measure, write the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=11, help='times that each model runs')
    parser.add_argument(
        '--trial', action='store_true', help='print only: no CSV, the plot beside the CSVs'
    )
    args = parser.parse_args()
    if args.rounds < 2 or args.batch_size < 1:
        parser.error('at least 2 rounds and 1 image')
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    rows = measure([*OURS, *OTHERS], args.batch_size, args.rounds)
    console = Console(width=100)
    table = Table('model', 'parameters M', 'multiply-adds G', 'published top-1', 'images/s')
    for row in rows:
        table.add_row(
            row['model'],
            f'{row["parameters"] / 1e6:.1f}',
            f'{row["multiply_adds"] / 1e9:.1f}',
            f'{row["published_top1"]:.1f}',
            f'{float(row["images_per_s"]):.1f}',
        )
    console.print(table)
    if args.trial:
        path = PLOT.with_name(f'{PLOT.stem}-trial.png')
    else:
        console.print(f'written: {write_csv("compare_backbones", rows)}')
        path = PLOT
    plot(rows, path)
    console.print(f'drawn: {path}')


if __name__ == '__main__':
    main()
