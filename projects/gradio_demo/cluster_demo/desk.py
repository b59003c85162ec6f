"""What the page asks for, one function per question; no gradio here."""

import html
import secrets
import shutil
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from coc_mm.errors import UserError

from . import view
from .engine import Engine, Look
from .uploads import read_upload

__all__ = ['Choice', 'Desk', 'Ranges', 'Shown']

#: Longer sides of the network's input that can be chosen; None is the model's own.
SIZES = (None, 96, 160, 224, 320, 448, 640, 896)


@dataclass(frozen=True)
class Choice:
    """What a user looks at.

    Attributes:
        label (str): Of the model.
        size (int | None): Longer side of the network's input; None: the model's own.
        stage (int): From 0.
        block (int): From 0.
        head (int): From 0.
    """

    label: str
    size: int | None
    stage: int
    block: int
    head: int


@dataclass(frozen=True)
class Ranges:
    """What a model has, and the nearest to what was asked for.

    Attributes:
        stages (int): Number of stages.
        blocks (int): Number of blocks of the stage.
        heads (int): Number of heads of the stage.
        choice (Choice): Within these.
    """

    stages: int
    blocks: int
    heads: int
    choice: Choice


@dataclass(frozen=True)
class Shown:
    """Pictures of a block's clusters.

    Attributes:
        overlay (Path): The head that was asked for, over the image.
        sheet (Path): All heads of the block.
        size (tuple[int, int]): Width and height of the overlay.
        point (str): HTML about the point, or how to choose one.
    """

    overlay: Path
    sheet: Path
    size: tuple[int, int]
    point: str


@dataclass(frozen=True)
class Predicted:
    """What the model answers.

    Attributes:
        classes (list[tuple[str, float]] | None): Names with probabilities; None for
            dense models.
        picture (Path | None): Objects or areas; None for a classifier.
        found (str): HTML with names, numbers and colors; empty for a classifier.
        facts (str): Markdown about the model and its map.
    """

    classes: list[tuple[str, float]] | None
    picture: Path | None
    found: str
    facts: str


class Desk:
    """Answers the page's questions, for any number of users.

    Args:
        engine (Engine): Runs the models.
        folder (Path): For pictures that are shown; emptied user by user.

    Attributes:
        requests (int): Answered so far.
    """

    def __init__(self, engine: Engine, folder: Path):
        self.engine = engine
        self.folder = folder
        self.uploads = folder.parent
        self.requests = 0
        self._visitors: dict[str, tuple[str, Path]] = {}
        self._seen: dict[str, float] = {}  # by token
        self._lock = threading.Lock()

    def receive(self, visitor: str, path: str | Path) -> tuple[str, str]:
        """Take a visitor's image; it replaces the one before.

        Args:
            visitor (str): Who.
            path (str | Path): The file.

        Returns:
            tuple[str, str]: The word by which the image is found, and a remark.

        Raises:
            UserError: The file cannot be used; the visitor has no image then.
        """
        self.leave(visitor)
        try:
            image, remark = read_upload(path, self.engine.limits)
        except UserError:
            self._remove(Path(path))
            raise
        token = self.engine.keep(image)
        with self._lock:
            self._visitors[visitor] = (token, Path(path))
        self._touch(token)
        height, width = image.shape[:2]
        return token, remark or f'{width} x {height} pixels.'

    def leave(self, visitor: str) -> None:
        """Forget a visitor's image, its file and all that was drawn of it.

        Args:
            visitor (str): Who; may be unknown.
        """
        with self._lock:
            token, path = self._visitors.pop(visitor, (None, None))
            self._seen.pop(token, None)
            self.requests += 1
        if token is not None:
            self.engine.forget(token)
            shutil.rmtree(self.folder / token, ignore_errors=True)
            self._remove(path)

    def forget_idle(self, seconds: float) -> None:
        """Forget visitors of whom nothing was heard, who may never have said goodbye.

        Args:
            seconds (float): Since their last question.
        """
        before = time.monotonic() - seconds
        with self._lock:
            idle = [who for who, (token, _) in self._visitors.items() if self._seen[token] < before]
        for visitor in idle:
            self.leave(visitor)

    def held(self) -> set[Path]:
        """The uploads of all visitors and the folders of their pictures."""
        with self._lock:
            visitors = list(self._visitors.values())
        return {path for _, path in visitors} | {self.folder / token for token, _ in visitors}

    def _touch(self, token: str) -> None:
        """Note that somebody asks about an image."""
        with self._lock:
            self.requests += 1
            if any(token == known for known, _ in self._visitors.values()):
                self._seen[token] = time.monotonic()

    def _keep_if_here(self, token: str) -> None:
        """Delete what was drawn for a visitor who left meanwhile."""
        if not self.engine.has(token):
            shutil.rmtree(self.folder / token, ignore_errors=True)
            raise UserError('The image is no longer in memory; give it again.')

    def _remove(self, path: Path) -> None:
        """Delete an upload; other files, such as examples, stay."""
        inside = path.resolve().is_relative_to(self.uploads.resolve())
        ours = ('examples', self.folder.name)
        if inside and path.parent.parent == self.uploads and path.parent.name not in ours:
            shutil.rmtree(path.parent, ignore_errors=True)

    def ranges(self, wanted: Choice) -> Ranges:
        """Say what a model has.

        Args:
            wanted (Choice): What was chosen, perhaps of another model.

        Returns:
            Ranges: The model's own, and the nearest choice.

        Raises:
            UserError: The model cannot be loaded.
        """
        loaded = self.engine.model(wanted.label)
        stage, block, head = view.clamp(
            loaded.depths, loaded.heads, wanted.stage, wanted.block, wanted.head
        )
        choice = Choice(wanted.label, wanted.size, stage, block, head)
        return Ranges(len(loaded.depths), loaded.depths[stage], loaded.heads[stage], choice)

    def show(
        self,
        token: str,
        panel: str,
        choice: Choice,
        alpha: float,
        marks: Collection[str] = (),
        point: tuple[float, float] | None = None,
    ) -> Shown:
        """Draw the clusters of a block.

        Args:
            token (str): Of the image.
            panel (str): Which side of the page; its earlier pictures are replaced.
            choice (Choice): Model, input size, stage, block and head.
            alpha (float): 0 to 1.
            marks (Collection[str]): Of ``view.MARKS``. Defaults to none.
            point (tuple[float, float] | None): Across and down, 0 to 1. Defaults to
                None.

        Returns:
            Shown: The pictures.

        Raises:
            UserError: In one sentence, what cannot be done.
        """
        self._touch(token)
        look = self.engine.look(token, choice.label, choice.size)
        maps = view.maps_of(look, choice.stage, choice.block, choice.head)
        overlay = view.draw_overlay(look, maps, choice.head, alpha, marks, point)
        sheet = view.heads_sheet(look, maps, alpha, point)
        at = view.point_in(look, maps, point)
        words = _point_words(view.point_rows(maps, choice.head, at), choice, at) if at else _HINT
        name = f'clusters_stage{choice.stage}_block{choice.block}_head{choice.head}.png'
        folder = self.folder / token / panel
        shutil.rmtree(folder, ignore_errors=True)
        folder /= secrets.token_hex(4)  # pictures of one name may differ, and browsers keep them
        heads = f'heads_stage{choice.stage}_block{choice.block}.png'
        shown = Shown(
            self._save(folder / name, overlay),
            self._save(folder / heads, sheet),
            overlay.shape[1::-1],
            words,
        )
        self._keep_if_here(token)
        return shown

    def overlay_size(self, token: str, label: str, size: int | None) -> tuple[int, int]:
        """Return the size of overlays, in which clicks are told.

        Args:
            token (str): Of the image.
            label (str): Of the model.
            size (int | None): Of the network's input.

        Returns:
            tuple[int, int]: Width and height in pixels.

        Raises:
            UserError: The image is gone.
        """
        look = self.engine.look(token, label, size)
        return view.enlarged(look.inspection.picture).shape[1::-1]

    def predict(self, token: str, panel: str, choice: Choice) -> Predicted:
        """Say what a model makes of an image.

        Args:
            token (str): Of the image.
            panel (str): Which side of the page.
            choice (Choice): Model, input size, and the block whose map is described.

        Returns:
            Predicted: Names with numbers, and a picture for dense models.

        Raises:
            UserError: In one sentence, what cannot be done.
        """
        self._touch(token)
        look = self.engine.look(token, choice.label, choice.size)
        loaded = self.engine.model(choice.label)
        picture = view.draw_prediction(look, loaded.inspectors[None].classes)
        if picture is not None:
            picture = self._save(self.folder / token / secrets.token_hex(4) / 'answer.png', picture)
            self._keep_if_here(token)
        first = next(iter(look.inspection.maps.values()))
        height, width = first.input_size
        facts = (
            f'{loaded.summary()} Its input here: {width} x {height} pixels, {first.size[1]} x '
            f'{first.size[0]} points in stage {first.stage}; {look.seconds:.2f} s.'
        )
        classes = view.top_classes(look) if look.task == 'classification' else None
        found = '' if classes is not None else _found(look, loaded.inspectors[None].classes)
        return Predicted(classes, picture, found, facts)

    @staticmethod
    def _save(path: Path, picture: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, 'PNG', compress_level=1)
        return path


def _found(look: Look, classes) -> str:
    """A list of objects with their scores, or of areas with their shares."""
    if not look.inspection.findings:
        return f'<p>{html.escape(look.caption.capitalize())}.</p>'
    items = []
    for label, value in view.findings(look)[:12]:
        color = ', '.join(map(str, view.color_of(label)))
        share = f'{100 * value:.0f} %' if value >= 0.005 else 'under 1 %'
        number = f'{value:.2f}' if look.task == 'detection' else share
        name = html.escape(view.name_of(classes, label))
        items.append(
            f'<li><span style="background: rgb({color})"></span><b>{name}</b> {number}</li>'
        )
    return f'<ul>{"".join(items)}</ul>'


_HINT = '<p class="hint">Click a point of the picture to see its cluster in every head.</p>'


def _point_words(rows: list[view.PointRow], choice: Choice, at: tuple[int, int]) -> str:
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
        kind = ' class="chosen"' if row.head == choice.head else ''
        cells = (row.head, row.cluster, f'{row.similarity:.3f}', row.members)
        shared = f'{100 * row.shared:.0f} %'
        lines.append(
            f'<tr{kind}>' + ''.join(f'<td>{html.escape(str(c))}</td>' for c in (*cells, shared))
        )
        lines.append('</tr>')
    return ''.join(lines) + '</tbody></table>'
