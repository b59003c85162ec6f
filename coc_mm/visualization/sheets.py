"""Sheets of pictures with captions, and animations."""

import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from coc_mm.utils.atomic_io import atomic_write
from coc_mm.visualization.drawing import draw_clusters
from coc_mm.visualization.maps import ClusterMaps

_INK = (33, 33, 33)
_PAPER = (255, 255, 255)
# Below this many pixels a point, lines around clusters would hide them.
_MIN_CELL = 6


def fit(picture: np.ndarray, height: int | None = None, longest: int | None = None) -> np.ndarray:
    """Scale a picture to a height, or shrink its longer side, keeping its proportions."""
    scale = 1.0 if height is None else height / picture.shape[0]
    if longest is not None:
        scale = min(scale, longest / max(picture.shape[:2]))
    if scale == 1:
        return picture
    size = [max(1, round(n * scale)) for n in picture.shape[:2]]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, size[::-1], interpolation=how)


def picture_of(inputs: torch.Tensor, channel_order: str = 'bgr') -> np.ndarray:
    """Return the RGB picture (H, W, 3) uint8 of a pipeline's image (C, H, W), C of 1 or more."""
    inputs = inputs[: 3 if len(inputs) >= 3 else 1]
    picture = np.clip(np.rint(inputs.permute(1, 2, 0).cpu().numpy()), 0, 255).astype(np.uint8)
    picture = picture[..., :: -1 if channel_order == 'bgr' else 1]
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    name = font_manager.FontProperties(family='DejaVu Sans', weight='bold' if bold else 'normal')
    return ImageFont.truetype(font_manager.findfont(name), size)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 2) -> list[str]:
    """Break a text into lines of a width in pixels; what is left over is cut off."""
    lines: list[str] = []
    for word in text.split():
        joined = f'{lines[-1]} {word}' if lines else word
        if lines and (font.getlength(joined) <= width or len(lines) == most):
            lines[-1] = joined
        else:
            lines.append(word)
    for i, line in enumerate(lines):
        while line and font.getlength(line) > width:
            line = line.rstrip('…')[:-1].rstrip() + '…' if len(line) > 1 else ''
        lines[i] = line
    return lines


def contact_sheet(
    rows: Sequence[Sequence[tuple[np.ndarray | None, str]]], title: str = ''
) -> np.ndarray:
    """Lay pictures with captions out in rows on white paper.

    Args:
        rows: Rows of (picture, caption), RGB uint8; None leaves a place empty. Captions are cut
            off after two lines.
    """
    columns = list(zip_longest(*rows, fillvalue=(None, '')))
    tiles = list(zip(*columns, strict=True))
    widths = [max((p.shape[1] for p, _ in col if p is not None), default=0) for col in columns]
    heights = [max(p.shape[0] for p, _ in row if p is not None) for row in tiles]
    gap = max(4, round(0.03 * min(heights)))
    font = _font(max(11, round(0.055 * max(heights))))
    bold = _font(max(13, round(0.065 * max(heights))), bold=True)
    line = sum(font.getmetrics())
    texts = [
        [_lines(caption, font, column) for (_, caption), column in zip(row, widths, strict=True)]
        for row in tiles
    ]
    captions = [max(len(text) for text in row) * line + gap // 2 for row in texts]
    width = sum(widths) + gap * (len(widths) + 1)
    title = ''.join(_lines(title, bold, width - 2 * gap, most=1))
    top = gap + (sum(bold.getmetrics()) + gap if title else 0)
    height = top + sum(heights) + sum(captions) + gap * len(tiles)

    sheet = Image.new('RGB', (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, _INK, bold)
    y = top
    for i, row in enumerate(tiles):
        x, row_height = gap, heights[i]
        for (picture, _), column, text in zip(row, widths, texts[i], strict=True):
            if picture is not None:
                h, w = picture.shape[:2]
                sheet.paste(Image.fromarray(picture), (x + (column - w) // 2, y + row_height - h))
            for j, words in enumerate(text):
                place = (x + column // 2, y + row_height + gap // 4 + j * line)
                draw.text(place, words, _INK, font, anchor='ma')
            x += column + gap
        y += row_height + captions[i] + gap
    return np.asarray(sheet)


def _overlay(picture, maps: ClusterMaps, head, extent=(0, 0, 1, 1), **style) -> np.ndarray:
    top, left, bottom, right = extent
    height, width = picture.shape[0] * (bottom - top), picture.shape[1] * (right - left)
    cell = min(height / maps.size[0], width / maps.size[1])
    style |= dict(
        head=head, extent=extent, borders=cell >= _MIN_CELL / 2, outlines=cell >= _MIN_CELL
    )
    return draw_clusters(picture, maps, channel_order='rgb', **style)


def head_grid(
    picture: np.ndarray, maps: ClusterMaps, *, height: int = 256, title: str = '', **style: Any
) -> np.ndarray:
    """Show the image beside the clusters of every head of a block.

    Args:
        picture: (height, width, 3) uint8, RGB.
        maps: Of this image alone.
        height: Of every picture, in pixels.
        style: ``alpha``, ``extent`` and ``centers``, as for ``draw_clusters``.
    """
    tile = fit(picture, height)
    tiles = [(_overlay(tile, maps, head, **style), f'head {head}') for head in maps.heads]
    # As square as the pictures' own proportions allow, at most eight beside each other.
    columns = min(8, ceil(sqrt(len(tiles) * 1.6 * tile.shape[0] / tile.shape[1])))
    columns = max(1, min(columns, len(tiles)))
    rows = ceil(len(tiles) / columns)
    columns = ceil(len(tiles) / rows)
    grid = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    lead = [(tile, 'input'), *[(None, '')] * (rows - 1)]
    return contact_sheet([[first, *row] for first, row in zip(lead, grid, strict=True)], title)


def stage_row(
    picture: np.ndarray,
    maps: Sequence[ClusterMaps],
    *,
    height: int = 256,
    caption: str = '',
    **style: Any,
) -> list[tuple[np.ndarray, str]]:
    """Return the image and the clusters of several blocks, a row for :func:`contact_sheet`.

    ``maps`` are one per block, of one head each; the rest is as for :func:`head_grid`.
    """
    tile = fit(picture, height)
    row = [(tile, caption)]
    for m in maps:
        (head,) = m.heads
        row.append(
            (_overlay(tile, m, head, **style), f'stage {m.stage}, block {m.block}, head {head}')
        )
    return row


def save_picture(path: str | os.PathLike, picture: np.ndarray) -> Path:
    """Write a picture as PNG, all of it or nothing; missing folders are made."""
    path = Path(path)
    with atomic_write(path) as part:
        Image.fromarray(picture).save(part, 'PNG')
    return path


def save_gif(path: str | os.PathLike, frames: Sequence[np.ndarray]) -> Path:
    """Write RGB pictures of one size as an endless GIF, 0.6 s each and the last for 2 s."""
    path = Path(path)
    # One table of colors for all frames, lest flat areas flicker.
    pooled = Image.fromarray(np.concatenate([frame[::2, ::2] for frame in frames]))
    table = pooled.quantize(256, Image.Quantize.MEDIANCUT)
    first, *others = (
        Image.fromarray(frame).quantize(palette=table, dither=Image.Dither.NONE) for frame in frames
    )
    duration = [600] * len(others) + [2000]
    with atomic_write(path) as part:
        first.save(part, 'GIF', save_all=True, append_images=others, duration=duration, loop=0)
    return path
