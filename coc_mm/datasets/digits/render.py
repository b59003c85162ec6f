"""Composing one scene from one random state: a cluttered background with digits on it."""

from dataclasses import dataclass

import cv2
import numpy as np

# A point belongs to a digit where its ink covers at least half of it.
INK_THRESHOLD = 0.5


@dataclass(frozen=True)
class SceneSpec:
    """What the scenes are made of; the same spec gives the same scenes."""

    seed: int = 0
    num_train: int = 2400
    num_test: int = 160
    height: int = 96
    width: int = 96
    min_digits: int = 2  # that are tried per scene
    max_digits: int = 4
    min_size: int = 34  # height of a digit's 8x8 frame in pixels
    max_size: int = 56
    max_hidden: float = 0.1  # most that others may hide of one digit, as a part of its points

    def __post_init__(self) -> None:
        for name in ('num_train', 'num_test', 'min_digits'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}.')
        if self.max_digits < self.min_digits or self.max_size < self.min_size:
            raise ValueError('max_digits and max_size must not be below min_digits and min_size.')
        if self.min_size < 16 or self.max_size > min(self.height, self.width):
            raise ValueError(
                f'digits of {self.min_size} to {self.max_size} pixels do not fit: they must be '
                f'at least 16 and fit into {self.height}x{self.width}.'
            )
        if not 0 <= self.max_hidden < 1:
            raise ValueError(f'max_hidden must lie in [0, 1), got {self.max_hidden}.')


@dataclass
class SceneDigit:
    """One digit of a scene: class, position in scikit-learn's table, visible points."""

    label: int
    digit_index: int
    mask: np.ndarray

    @property
    def bbox(self) -> list[int]:
        """The tight box around the visible points, ``[x, y, width, height]`` in pixels."""
        return list(cv2.boundingRect(self.mask.astype(np.uint8)))


def compose_scene(
    spec: SceneSpec, pool: tuple[np.ndarray, np.ndarray, np.ndarray], rng: np.random.RandomState
) -> tuple[np.ndarray, list[SceneDigit]]:
    """Compose one scene from a pool of digits, see :func:`load_digits_split`.

    Returns the image ``(height, width, 3)`` as uint8 in BGR, and a list of :class:`SceneDigit`, at
    least one, whose masks do not overlap.
    """
    images, labels, positions = pool
    canvas = draw_background(spec.height, spec.width, rng)
    digits: list[SceneDigit] = []
    areas: list[int] = []
    wanted = rng.randint(spec.min_digits, spec.max_digits + 1)
    for _ in range(12 * wanted):
        if len(digits) == wanted:
            break
        choice = rng.randint(len(images))
        ink = _place(images[choice], spec, rng)
        mask = ink >= INK_THRESHOLD
        hidden = [1 - (d.mask & ~mask).sum() / a for d, a in zip(digits, areas, strict=True)]
        if any(part > spec.max_hidden for part in hidden):
            continue
        for other in digits:
            other.mask &= ~mask
        paint(canvas, ink, rng)
        digits.append(SceneDigit(int(labels[choice]), int(positions[choice]), mask))
        areas.append(mask.sum())
    noise = rng.normal(0, rng.uniform(1, 6), (spec.height, spec.width, 1))
    return np.clip(canvas + noise, 0, 255).astype(np.uint8), digits


def _place(image, spec, rng):
    """The ink ``(height, width)``, float in 0..1, of one digit, slanted, sized and placed."""
    size = np.exp(rng.uniform(np.log(spec.min_size), np.log(spec.max_size)))
    angle, shear = np.deg2rad(rng.uniform(-8, 8)), rng.uniform(-0.1, 0.1)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale_x = size / 8 * rng.uniform(0.85, 1.1)
    linear = rotate @ np.array([[scale_x, shear * scale_x], [0, size / 8]])
    # The frame's corners tell how far its center must stay from the border.
    reach = np.abs(linear) @ np.array([3.5, 4.0])
    extent = (spec.width, spec.height)
    reach = np.minimum(reach, [spec.width / 2 - 1, spec.height / 2 - 1])
    center = [rng.uniform(r, size - r) for r, size in zip(reach, extent, strict=True)]
    matrix = np.column_stack([linear, center - linear @ np.array([3.5, 3.5])])
    ink = cv2.warpAffine(image.astype(np.float32) / 255, matrix, extent, flags=cv2.INTER_CUBIC)
    # Steeper edges with a soft rim: an 8x8 image grown to 60 pixels is a haze otherwise.
    return np.clip((ink - 0.30) / 0.30, 0, 1)


def draw_background(height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw a cluttered background: ``(height, width, 3)``, BGR, float32 in 0..255."""
    base = rng.uniform(10, 110, 3)
    coarse = np.clip(base + rng.normal(0, 28, (rng.randint(2, 5), rng.randint(2, 6), 3)), 0, 255)
    canvas = cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(rng.randint(6, 16)):
        _clutter(canvas, base, rng)
    if rng.rand() < 0.5:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 1.5))
    return canvas.astype(np.float32)


def _clutter(canvas, base, rng):
    """Draw one shape that is no digit onto the canvas, in place."""
    height, width = canvas.shape[:2]
    color = np.clip(base + rng.normal(0, 35, 3), 0, 150).tolist()
    points = [(rng.randint(width), rng.randint(height)) for _ in range(4)]
    kind, layer = rng.randint(5), canvas.copy()
    if kind == 0:
        cv2.line(layer, points[0], points[1], color, rng.randint(1, 5), cv2.LINE_AA)
    elif kind == 1:
        axes = (rng.randint(3, 30), rng.randint(3, 30))
        cv2.ellipse(layer, points[0], axes, rng.randint(180), 0, 360, color, -1, cv2.LINE_AA)
    elif kind == 2:
        cv2.rectangle(layer, points[0], points[1], color, rng.choice([-1, 1, 2]))
    elif kind == 3:
        cv2.fillPoly(layer, [np.array(points[:3])], color, cv2.LINE_AA)
    else:
        for _ in range(rng.randint(10, 40)):
            dot = (rng.randint(width), rng.randint(height))
            cv2.circle(layer, dot, rng.randint(1, 3), color, -1, cv2.LINE_AA)
    cv2.addWeighted(layer, opacity := rng.uniform(0.4, 0.9), canvas, 1 - opacity, 0, canvas)


def paint(canvas: np.ndarray, ink: np.ndarray, rng: np.random.RandomState) -> None:
    """Lay ink over a canvas, in place, in a light color that stands out from what it covers."""
    rows, cols = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    canvas, ink = canvas[window], ink[window]
    ground = _luma(canvas[cv2.dilate(ink, np.ones((7, 7), np.uint8)) > INK_THRESHOLD]).mean()
    for _ in range(40):
        color = rng.uniform(150, 255, 3)
        if _luma(color) - ground >= 60:
            break
    else:
        color = np.full(3, 255.0)
    # Uneven ink: a slow ramp along the stroke.
    height, width = ink.shape
    ramp = np.add.outer(np.linspace(-1, 1, height), np.linspace(-1, 1, width))
    colors = color + ramp[..., None] * rng.uniform(-25, 25)
    canvas += (colors - canvas) * ink[..., None]


def _luma(bgr):
    """Rec. 601 luma of BGR values ``(..., 3)``."""
    return bgr @ np.array([0.114, 0.587, 0.299])
