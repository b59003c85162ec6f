"""A colored cloud as a PNG and as an HTML page that needs no network."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

from coc_mm.utils.atomic_io import atomic_write
from coc_mm.visualization.palette import palette
from projects.point_cloud.point_cloud.errors import PointCloudError

__all__ = ['save_html', 'save_png']

_NO_GROUP = (190, 190, 190)


def _colors(cloud):
    """One RGB color per point and one per group, 0 to 255."""
    colors = np.vstack([palette(max(1, len(cloud.centers))), _NO_GROUP])
    return colors[cloud.groups], colors[:-1]  # -1 is the last


@contextmanager
def _written(path):
    """Write atomically, with the error of this project."""
    try:
        with atomic_write(path, suffix=Path(path).suffix) as temporary:
            yield temporary
    except OSError as error:
        raise PointCloudError(f'{path} cannot be written ({error.strerror})') from None


def save_png(cloud, path, title='', up='z'):
    """Draw a cloud from two sides; its centers are ringed, in the color of their group.

    Args:
        cloud (ColoredCloud): The cloud.
        path (str | os.PathLike): The picture.
        title (str): Above it.
        up (str): Axis that points up, 'x', 'y' or 'z'.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), dpi=120)
    FigureCanvasAgg(figure)
    colors, of_groups = (rgb / 255 for rgb in _colors(cloud))
    size = float(np.clip(24000 / max(1, len(cloud.points)), 4, 60))
    for i, azimuth in enumerate((-60, 30)):
        axes = figure.add_subplot(1, 2, i + 1, projection='3d')
        axes.scatter(*cloud.points.T, c=colors, s=size, edgecolors='none', alpha=0.9)
        centers = cloud.points[cloud.centers]
        ring = dict(edgecolors='black', linewidths=0.9, alpha=1)
        axes.scatter(*centers.T, c=of_groups, s=2.2 * size, **ring)
        axes.view_init(elev=20, azim=azimuth, vertical_axis=up)
        extent = np.maximum(np.ptp(cloud.points, axis=0), 1e-6)
        axes.set_box_aspect(extent / extent.max(), zoom=1.0)
        axes.set(xlabel='x', ylabel='y', zlabel='z')
        axes.tick_params(labelsize=7)
        axes.set_title(f'seen at {azimuth} degrees around {up}', fontsize=9)
    figure.suptitle(title, fontsize=12)
    figure.subplots_adjust(left=0.0, right=0.96, bottom=0.06, top=0.9, wspace=0.02)
    with _written(path) as temporary:
        figure.savefig(temporary)


def save_html(cloud, path, title='', up='z'):
    """Write a page in which the cloud can be turned; hovering names point, group and center.

    Plotly's code is in it, about 5 MB. Arguments as of :func:`save_png`.
    """
    try:
        import plotly.graph_objects as go
    except ModuleNotFoundError:
        raise PointCloudError(
            f'writing {path} needs the package plotly: pip install plotly'
        ) from None
    colors, of_groups = (
        [f'rgb({r},{g},{b})' for r, g, b in rgb.astype(int)] for rgb in _colors(cloud)
    )
    texts = [f'point {i}<br>group {g}' for i, g in enumerate(cloud.groups)]
    if cloud.similarity is not None:
        texts = [f'{t}<br>similarity {s:.3f}' for t, s in zip(texts, cloud.similarity, strict=True)]
    center_texts = [f'center of group {g}<br>{texts[i]}' for g, i in enumerate(cloud.centers)]
    size = float(np.clip(3000 / max(1, len(cloud.points)), 2.5, 6))
    traces = []
    ring = dict(size=1.8 * size, line=dict(color='black', width=2))
    for name, chosen, marker, text in (
        ('points', slice(None), dict(size=size, color=colors), texts),
        ('centers', cloud.centers, dict(color=of_groups, **ring), center_texts),
    ):
        x, y, z = cloud.points[chosen].T.astype(float).round(5).tolist()
        traces.append(
            go.Scatter3d(
                x=x,
                y=y,
                z=z,
                mode='markers',
                name=name,
                marker=marker,
                text=text,
                hovertemplate='%{text}<br>%{x:.3f}, %{y:.3f}, %{z:.3f}<extra></extra>',
            )
        )
    figure = go.Figure(traces)
    upright = {axis: float(axis == up) for axis in 'xyz'}
    eye = {axis: 0.8 if axis == up else 1.6 for axis in 'xyz'}
    figure.update_layout(
        title=title,
        scene=dict(aspectmode='data', camera=dict(up=upright, eye=eye)),
        margin=dict(l=0, r=0, t=48, b=0),
        legend=dict(itemsizing='constant'),
    )
    with _written(path) as temporary:
        figure.write_html(temporary, include_plotlyjs=True)
