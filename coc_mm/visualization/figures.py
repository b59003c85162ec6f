"""Picture files of inspected images: rows over stages, grids of heads, single heads, GIFs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of
from coc_mm.visualization import sheets
from coc_mm.visualization.drawing import draw_clusters
from coc_mm.visualization.inspector import ClusterInspector, Inspection
from coc_mm.visualization.maps import ClusterMaps

_MIN_SIDE = 448  # of a single picture in pixels; smaller images are enlarged to it


@dataclass
class FigureWriter:
    """Draw what an inspector finds, and write it to a folder.

    Args:
        alpha: 0 is the image, 1 flat colors.
        height: Of pictures on a sheet, in pixels.
        prefix: Begins every caption about the prediction.
    """

    inspector: ClusterInspector
    out_dir: Path
    alpha: float = 0.55
    height: int = 256
    centers: bool = False
    prefix: str = ''

    def caption(self, inspection: Inspection) -> str:
        """The prediction in a few words."""
        return self.prefix + self.inspector.caption(inspection)

    def row(self, inspection: Inspection, caption: str | None = None) -> list:
        """The first head of the last block of every stage, for ``contact_sheet``."""
        last = {maps.stage: maps for maps in inspection.maps.values()}
        maps = [m.with_heads(m.heads[:1]) for m in last.values()]
        style = self._style(inspection)
        style['caption'] = self.caption(inspection) if caption is None else caption
        return sheets.stage_row(inspection.picture, maps, **style)

    def _grid(self, inspection: Inspection, maps: ClusterMaps, title: str) -> np.ndarray:
        return sheets.head_grid(inspection.picture, maps, title=title, **self._style(inspection))

    def _style(self, inspection: Inspection) -> dict:
        return dict(
            alpha=self.alpha, height=self.height, centers=self.centers, extent=inspection.extent
        )

    def write_grids(self, name: str, inspection: Inspection) -> list[Path]:
        """Write a grid of all heads for every block."""
        caption, written = self.caption(inspection), []
        for (stage, block), maps in inspection.maps.items():
            grid = self._grid(inspection, maps, f'stage {stage}, block {block} · {caption}')
            path = self.out_dir / f'{name}_stage{stage}_block{block}.png'
            written.append(sheets.save_picture(path, grid))
        return written

    def write_heads(self, name: str, inspection: Inspection) -> list[Path]:
        """Write every head of every block as a picture of its own."""
        picture = inspection.picture
        shorter = min(picture.shape[:2])
        if shorter < _MIN_SIDE:
            picture = sheets.fit(picture, round(picture.shape[0] * _MIN_SIDE / shorter))
        style = dict(self._style(inspection), borders=True, outlines=True, channel_order='rgb')
        del style['height']
        written = []
        for (stage, block), maps in inspection.maps.items():
            for head in maps.heads:
                drawn = draw_clusters(picture, maps, head=head, **style)
                path = self.out_dir / f'{name}_stage{stage}_block{block}_head{head}.png'
                written.append(sheets.save_picture(path, drawn))
        return written

    def write_gif(
        self,
        name: str,
        image: np.ndarray,
        checkpoints: Sequence[Path],
        stage: int | None = None,
        block: int | None = -1,
        head: int | None = None,
        loaded: np.ndarray | None = None,
    ) -> Path:
        """Draw an RGB image with the weights of each checkpoint; the model keeps the last.

        A frame is the row over the stages or, with a ``stage``, the grid of its heads.
        """
        frames = []
        for path in checkpoints:
            content = load_checkpoint_safely(path)
            weights = state_dict_of(content, str(path))
            self.inspector.model.load_state_dict(weights, strict=False)
            inspection = self.inspector(image, stage, block, head, loaded)
            title = f'{_progress(content, path)} · {self.caption(inspection)}'
            if stage is None:
                frames.append(sheets.contact_sheet([self.row(inspection, 'input')], title))
            else:
                last = list(inspection.maps.values())[-1]
                frames.append(self._grid(inspection, last, title))
        return sheets.save_gif(self.out_dir / f'{name}.gif', frames)


def _progress(content: dict, path: Path) -> str:
    """How far a training run was, as its checkpoint tells."""
    if number := re.search(r'(epoch|iter)_(\d+)', path.stem):
        return f'{number[1]} {number[2]}'
    meta = content.get('meta') or {}
    return f'iteration {meta["iter"]}' if 'iter' in meta else path.stem
