"""One visitor's image, and the pictures, numbers and names that the page shows of it."""

import html
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from coc_mm.errors import UserError

from . import view
from .engine import GONE, Choice, Engine, Result
from .uploads import read_upload

__all__ = ['Prediction', 'Session', 'Shown']

_HINT = '<p class="hint">Click a point of the picture to see its cluster in every head.</p>'


class Shown(NamedTuple):
    """Pictures of a block's clusters.

    Attributes:
        overlay: The chosen head over the image.
        sheet: All heads of the block.
        point: HTML about the chosen point, or how to choose one.
    """

    overlay: Path
    sheet: Path
    point: str


class Prediction(NamedTuple):
    """What the model answers.

    Attributes:
        classes: Names with probabilities; None for dense models.
        picture: Objects or areas; None for a classifier.
        found: HTML with names, numbers and colors; empty for a classifier.
        facts: Markdown about the model and its maps.
    """

    classes: dict[str, float] | None
    picture: Path | None
    found: str
    facts: str


class Session:
    """A visitor, from the first image until the page is closed.

    Args:
        engine: Runs the models, for all visitors.
        folder: Pictures go into a new folder inside; :meth:`close` deletes it.
    """

    def __init__(self, engine: Engine, folder: Path):
        self.engine, self.folder = engine, folder / secrets.token_hex(16)
        self.token: str | None = None  # of the image
        self.closed = False

    def receive(self, path: str | Path) -> str:
        """Take an image file instead of the image before; return a remark."""
        self.drop()
        image, remark = read_upload(path, self.engine.limits)
        self.token = self.engine.keep(image)
        return remark or f'{image.shape[1]} x {image.shape[0]} pixels.'

    def drop(self) -> None:
        """Forget the image and what was found in it."""
        self.engine.forget(self.token)
        self.token = None

    def close(self) -> None:
        """Forget everything, the pictures included."""
        self.closed = True
        self.drop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _result(self, choice: Choice) -> Result:
        return self.engine.run(self.token or '', choice.label, choice.size)

    def show(
        self,
        panel: str,
        choice: Choice,
        alpha: float,
        marks: Collection[str] = (),
        point: tuple[float, float] | None = None,
    ) -> Shown:
        """Draw the clusters of a block.

        Args:
            panel: Side of the page; its earlier pictures are deleted.
            choice: Model, input size, stage, block and head.
            alpha: 0 is the image, 1 flat colors.
            marks: Of ``view.MARKS``.
            point: Across and down, 0 to 1; its clusters are
                shown alone.
        """
        result = self._result(choice)
        maps = result.inspection.maps[choice.stage, choice.block]
        overlay = view.draw_overlay(result, maps, choice.head, alpha, marks, point)
        sheet = view.heads_sheet(result, maps, alpha, point)
        at = view.point_in(result, maps, point)
        words = _describe(view.point_rows(maps, choice.head, at), choice, at) if at else _HINT
        shutil.rmtree(self.folder / panel, ignore_errors=True)
        block = f'stage{choice.stage}_block{choice.block}'
        return Shown(
            self._save(panel, f'clusters_{block}_head{choice.head}.png', overlay),
            self._save(panel, f'heads_{block}.png', sheet),
            words,
        )

    def overlay_size(self, label: str, size: int | None) -> tuple[int, int]:
        """Return width and height of overlays in pixels, in which clicks are told."""
        result = self.engine.run(self.token or '', label, size)
        height, width = view.enlarged(result.inspection.picture).shape[:2]
        return width, height

    def predict(self, choice: Choice) -> Prediction:
        """Say what a model makes of the image."""
        result, loaded = self._result(choice), self.engine.model(choice.label)
        picture = view.draw_prediction(result, loaded.classes)
        path = None if picture is None else self._save('answers', 'answer.png', picture)
        first = next(iter(result.inspection.maps.values()))
        height, width = first.input_size
        facts = (
            f'{loaded.summary()} Its input here: {width} x {height} pixels, {first.size[1]} x '
            f'{first.size[0]} points in stage {first.stage}; {result.seconds:.2f} s.'
        )
        if result.task == 'classification':
            return Prediction(view.top_classes(result), None, '', facts)
        return Prediction(None, path, _list_findings(result), facts)

    def _save(self, panel: str, name: str, picture: np.ndarray) -> Path:
        # Pictures of one name may differ, and browsers keep them.
        path = self.folder / panel / secrets.token_hex(4) / name
        path.parent.mkdir(parents=True)
        Image.fromarray(picture).save(path, 'PNG', compress_level=1)
        if self.closed:  # while it was drawn
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(GONE)
        return path


def _list_findings(result: Result) -> str:
    """A list of objects with their scores, or of areas with their shares."""
    found = result.inspection
    if not found.findings:
        return f'<p>{html.escape(result.caption.capitalize())}.</p>'
    items = []
    for label, (name, value) in list(zip(found.labels, found.findings, strict=True))[:12]:
        color = ', '.join(map(str, view.color_of(label)))
        share = f'{100 * value:.0f} %' if value >= 0.005 else 'under 1 %'
        number = f'{value:.2f}' if result.task == 'detection' else share
        square = f'<span style="background: rgb({color})"></span>'
        items.append(f'<li>{square}<b>{html.escape(name)}</b> {number}</li>')
    return f'<ul>{"".join(items)}</ul>'


def _describe(rows: list[view.PointRow], choice: Choice, at: tuple[int, int]) -> str:
    """A table about a point, the chosen head marked in it."""
    chosen = next(row for row in rows if row.head == choice.head)
    points = 'point' if chosen.members == 1 else 'points'
    lines = [
        f'<p>Point at row {at[0]}, column {at[1]} of stage {choice.stage}: cluster '
        f'{chosen.cluster} of head {choice.head}, similarity to its center '
        f'<strong>{chosen.similarity:.3f}</strong>, {chosen.members} {points}.</p>',
        '<table><caption>The same point in every head</caption><thead><tr><th>head</th>'
        '<th>cluster</th><th>similarity</th><th>points</th>'
        '<th>in common</th></tr></thead><tbody>',
    ]
    for row in rows:
        cells = (row.head, row.cluster, f'{row.similarity:.3f}', row.members)
        cells = (*cells, f'{100 * row.shared:.0f} %')
        kind = ' class="chosen"' if row is chosen else ''
        lines.append(f'<tr{kind}>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return ''.join(lines) + '</tbody></table>'
