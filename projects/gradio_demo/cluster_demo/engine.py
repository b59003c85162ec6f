"""Models and images at work: bounded in number, in time and in memory."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from coc_mm.checkpoints.load import use_safe_loading
from coc_mm.errors import UserError, explain
from coc_mm.visualization import ClusterInspector, ClusterMaps, Inspection

from .catalog import TASK_NAMES, ModelSource, load_source
from .uploads import Limits

__all__ = ['GONE', 'Choice', 'Engine', 'LRUCache', 'LoadedModel', 'Result']

GONE = 'The image is no longer in memory; give it again.'


class Choice(NamedTuple):
    """Model, longer side of its input (None: its own), stage, block and head."""

    label: str
    size: int | None
    stage: int
    block: int
    head: int


class LRUCache:
    """Values by key; the longest unused go when their weights exceed ``capacity``."""

    def __init__(self, capacity: float, weigh: Callable = lambda value: 1):
        self.capacity, self._weigh = capacity, weigh
        self._values: OrderedDict = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key):
        """Return a value and count it as used; None if it is not here."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key, value) -> None:
        """Keep a value; drop others, but never this one."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            weight = sum(map(self._weigh, self._values.values()))
            while len(self._values) > 1 and weight > self.capacity:
                weight -= self._weigh(self._values.popitem(last=False)[1])

    def drop(self, chosen: Callable) -> None:
        """Drop the values whose keys are chosen."""
        with self._lock:
            for key in [key for key in self._values if chosen(key)]:
                del self._values[key]


class _Deadline(threading.local):
    """The moment at which the model that this thread runs is stopped."""

    at = None


_deadline = _Deadline()


class TimeIsUpError(UserError):
    """A model took longer than it may."""


def _check_deadline(module, args) -> None:
    if _deadline.at is not None and time.monotonic() > _deadline.at:
        raise TimeIsUpError('time is up')


@dataclass
class LoadedModel:
    """A model in evaluation mode.

    Attributes:
        inspectors: By size of the input; None is the test pipeline's own.
        lock: Held while the model runs.
    """

    source: ModelSource
    model: nn.Module
    config: Config
    inspectors: dict[int | None, ClusterInspector]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def task(self) -> str:
        """'classification', 'detection' or 'segmentation'."""
        return TASK_NAMES[self.config.default_scope]

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, if the model knows any."""
        return self.inspectors[None].classes

    @property
    def depths(self) -> list[int]:
        """Blocks of each stage."""
        return self.inspectors[None].depths

    @property
    def heads(self) -> list[int]:
        """Heads of each stage."""
        return self.inspectors[None].heads

    def nearest(self, stage: int, block: int, head: int) -> tuple[int, int, int]:
        """Return the nearest stage, block and head that the model has."""
        stage = min(max(int(stage), 0), len(self.depths) - 1)
        block = min(max(int(block), 0), self.depths[stage] - 1)
        return stage, block, min(max(int(head), 0), self.heads[stage] - 1)

    def summary(self) -> str:
        """Say in a sentence what it is, and plainly if it is untrained."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        kind = type(self.model).__name__
        said = f'{self.task.capitalize()}, {kind} with {millions:.1f} million parameters.'
        if not self.source.trained:
            said = f'**Untrained: its weights are random and its answers mean nothing.** {said}'
        return said


@dataclass(frozen=True)
class Result:
    """What a model made of an image.

    Attributes:
        inspection: Picture, maps and findings.
        caption: The findings in a few words.
        task: Of the model.
        seconds: That the model took.
    """

    inspection: Inspection
    caption: str
    task: str
    seconds: float

    @property
    def nbytes(self) -> int:
        """Memory of the picture and the maps."""
        count = self.inspection.picture.nbytes
        for maps in self.inspection.maps.values():
            for tensor in (maps.assignment, maps.center_index, maps.similarity):
                count += tensor.nbytes
        return count


def _compact(maps: ClusterMaps) -> ClusterMaps:
    """The same maps in half the memory; there are far fewer clusters than 2**31."""
    return replace(
        maps,
        assignment=maps.assignment.to(torch.int32),
        center_index=maps.center_index.to(torch.int16),
    )


class Engine:
    """Runs models on images, for many users at once.

    Args:
        sources: The models.
        limits: Defaults to ``Limits()``.
        device: Where models run.
        max_models: Models in memory at a time.
        megabytes: Memory for results, and as much again for images.
        workers: Threads in which models run, however many threads ask.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        limits: Limits | None = None,
        device: str = 'cpu',
        max_models: int = 3,
        megabytes: float = 512,
        workers: int = 2,
    ):
        self.sources = {source.label: source for source in sources}
        self.limits = limits or Limits()
        self.device = device
        self._models = LRUCache(max_models)
        self._results = LRUCache(megabytes * 1e6, lambda result: result.nbytes)
        self._images = LRUCache(megabytes * 1e6, lambda image: image.nbytes)
        self._loading = threading.Lock()
        # Each thread that computes gets a team of OpenMP threads and buffers of its own.
        self._pool = ThreadPoolExecutor(workers, 'model')
        use_safe_loading()

    @property
    def labels(self) -> list[str]:
        """Of the models, in order."""
        return list(self.sources)

    def model(self, label: str) -> LoadedModel:
        """Return a model, loaded if it is not yet."""
        if label not in self.sources:
            raise UserError('There is no such model here; choose one of the list.')
        with self._loading:  # the libraries' registries are not made for several at once
            loaded = self._models.get(label)
            if loaded is None:
                loaded = self._load(self.sources[label])
                self._models.put(label, loaded)
        return loaded

    def _load(self, source: ModelSource) -> LoadedModel:
        try:
            model, config = load_source(source, self.device)
            inspector = ClusterInspector(model, config, longest=self.limits.longest)
        except Exception as error:
            reason = explain(error) or (str(error) if isinstance(error, ValueError) else None)
            if reason is None:
                raise
            raise UserError(f'The model {source.label} cannot be used: {reason}') from error
        for module in model.modules():
            module.register_forward_pre_hook(_check_deadline)
        return LoadedModel(source, model, config, {None: inspector})

    def keep(self, image: np.ndarray) -> str:
        """Take an RGB image (height, width, 3) of uint8; return a token that finds it again."""
        token = secrets.token_hex(16)
        self._images.put(token, image)
        return token

    def forget(self, token: str | None) -> None:
        """Drop an image and all that was found in it."""
        self._images.drop(lambda key: key == token)
        self._results.drop(lambda key: key[0] == token)

    def run(self, token: str, label: str, size: int | None = None) -> Result:
        """Run a model on an image, or recall its result.

        Args:
            token: From :meth:`keep`.
            label: Of the model.
            size: Longer side of the network's input in pixels; None: as the
                model's test pipeline makes it.
        """
        key = (token, label, size)
        image, loaded = self._images.get(token), self.model(label)
        if image is None:
            raise UserError(GONE)
        result = self._results.get(key)
        if result is not None:
            return result
        if not loaded.lock.acquire(timeout=self.limits.seconds):
            raise UserError('The model is busy with images of others; try again in a moment.')
        try:
            result = self._results.get(key)  # somebody ahead may have asked for the same
            if result is None:
                result = self._pool.submit(self._run, loaded, image, size).result()
                if self._images.get(token) is not None:  # not forgotten meanwhile
                    self._results.put(key, result)
        finally:
            loaded.lock.release()
        return result

    def _run(self, loaded: LoadedModel, image: np.ndarray, size: int | None) -> Result:
        started = time.monotonic()
        _deadline.at = started + self.limits.seconds
        try:
            if size not in loaded.inspectors:
                with self._loading:
                    loaded.inspectors[size] = ClusterInspector(
                        loaded.model, loaded.config, self.limits.longest, size
                    )
            inspector = loaded.inspectors[size]
            inspection = inspector(image)
            caption = inspector.caption(inspection)
        except TimeIsUpError:
            raise UserError(
                f'The model took longer than {self.limits.seconds:g} s and was stopped; choose a '
                'smaller input size or a smaller image.'
            ) from None
        except torch.OutOfMemoryError:
            raise UserError(
                'The image is too large for the memory here; choose a smaller one.'
            ) from None
        except ValueError as error:
            raise UserError(f'The model cannot take this image: {error}') from error
        finally:
            _deadline.at = None
        maps = {key: _compact(value) for key, value in inspection.maps.items()}
        inspection = replace(inspection, maps=maps)
        return Result(inspection, caption, loaded.task, time.monotonic() - started)
