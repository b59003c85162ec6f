"""Models and images at work: bounded in number, in time and in memory."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from coc_mm.checkpoints.load import use_safe_loading
from coc_mm.errors import UserError, explain
from coc_mm.visualization import ClusterInspector, ClusterMaps, Inspection

from .catalog import TASK_NAMES, ModelSource, load_source
from .uploads import Limits

__all__ = ['Engine', 'LoadedModel', 'Look', 'Store']


class Store:
    """Things by key, the longest unused dropped when there are too many.

    Args:
        most (float): Sum of the weights that is kept.
        weigh (Callable): Weight of a thing. Defaults to 1 for each.
    """

    def __init__(self, most: float, weigh: Callable = lambda thing: 1):
        self.most, self._weigh = most, weigh
        self._things: OrderedDict = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key):
        """Return a thing and count it as used; None if it is not here."""
        with self._lock:
            if key not in self._things:
                return None
            self._things.move_to_end(key)
            return self._things[key]

    def put(self, key, thing) -> None:
        """Keep a thing; drop others, but never this one."""
        with self._lock:
            self._things[key] = thing
            self._things.move_to_end(key)
            while len(self._things) > 1 and sum(map(self._weigh, self._things.values())) > (
                self.most
            ):
                self._things.popitem(last=False)

    def drop(self, chosen: Callable) -> None:
        """Drop the things whose keys are chosen."""
        with self._lock:
            for key in [key for key in self._things if chosen(key)]:
                del self._things[key]


class _Deadline(threading.local):
    """The moment at which the work of this thread stops."""

    at = None


_deadline = _Deadline()


class TimeIsUpError(UserError):
    """A model took longer than it may."""


def _watch(module, args) -> None:
    if _deadline.at is not None and time.monotonic() > _deadline.at:
        raise TimeIsUpError('time is up')


@dataclass
class LoadedModel:
    """A model that is ready.

    Attributes:
        source (ModelSource): What it was loaded from.
        model (nn.Module): In evaluation mode.
        config (Config): Of the model.
        task (str): 'classification', 'detection' or 'segmentation'.
        depths (list[int]): Blocks of each stage.
        heads (list[int]): Heads of each stage.
        inspectors (dict): By size of the input; None is the pipeline's own.
        lock (Lock): Held while the model runs.
    """

    source: ModelSource
    model: nn.Module
    config: Config
    task: str
    depths: list[int]
    heads: list[int]
    inspectors: dict[int | None, ClusterInspector]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def summary(self) -> str:
        """Say in a sentence what it is, and plainly if it is untrained."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        kind = type(self.model).__name__
        said = f'{self.task.capitalize()}, {kind} with {millions:.1f} million parameters.'
        if not self.source.trained:
            said = f'**Untrained: its weights are random and its answers mean nothing.** {said}'
        return said


@dataclass(frozen=True)
class Look:
    """What a model made of an image.

    Attributes:
        inspection (Inspection): Picture, maps and findings.
        caption (str): The findings in a few words.
        task (str): As of the model.
        seconds (float): That the model took.
    """

    inspection: Inspection
    caption: str
    task: str
    seconds: float

    @property
    def nbytes(self) -> int:
        """Memory that it takes, nearly."""
        count = self.inspection.picture.nbytes
        for maps in self.inspection.maps.values():
            for tensor in (maps.assignment, maps.center_index, maps.similarity):
                count += tensor.numel() * tensor.element_size()
        return count


def _compact(maps: ClusterMaps) -> ClusterMaps:
    """The same maps in half the memory; clusters count far below 2**31."""
    return replace(
        maps,
        assignment=maps.assignment.to(torch.int32),
        center_index=maps.center_index.to(torch.int16),
    )


class Engine:
    """Runs models on images for many users at once.

    Args:
        sources (Sequence[ModelSource]): The models, by their labels.
        limits (Limits, optional): Defaults to ``Limits()``.
        device (str): Where models run. Defaults to ``'cpu'``.
        most_models (int): Models in memory at a time. Defaults to 3.
        megabytes (float): Memory for results, and as much again for images.
            Defaults to 512.
        workers (int): Threads in which models run, however many threads ask.
            Defaults to 2.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        limits: Limits | None = None,
        device: str = 'cpu',
        most_models: int = 3,
        megabytes: float = 512,
        workers: int = 2,
    ):
        self.sources = {source.label: source for source in sources}
        self.limits = limits or Limits()
        self.device = device
        self._models = Store(most_models)
        self._looks = Store(megabytes * 1e6, lambda look: look.nbytes)
        self._images = Store(megabytes * 1e6, lambda image: image.nbytes)
        self._loading = threading.Lock()
        # Each thread that computes gets a team of OpenMP threads and buffers of its own.
        self._pool = ThreadPoolExecutor(workers, 'model')
        use_safe_loading()

    @property
    def labels(self) -> list[str]:
        """Of the models, in order."""
        return list(self.sources)

    def model(self, label: str) -> LoadedModel:
        """Return a model, loaded if it is not yet.

        Args:
            label (str): One of :attr:`labels`.

        Returns:
            LoadedModel: The model.

        Raises:
            UserError: There is no such model, or it cannot be loaded.
        """
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
            module.register_forward_pre_hook(_watch)
        task = TASK_NAMES[config.default_scope]
        return LoadedModel(
            source, model, config, task, inspector.depths, inspector.heads, {None: inspector}
        )

    def keep(self, image: np.ndarray) -> str:
        """Take an image into memory.

        Args:
            image (ndarray): (height, width, 3) uint8, RGB.

        Returns:
            str: A word nobody can guess, by which it is found again.
        """
        token = secrets.token_hex(16)
        self._images.put(token, image)
        return token

    def has(self, token: str) -> bool:
        """Whether an image is in memory."""
        return self._images.get(token) is not None

    def forget(self, token: str | None) -> None:
        """Drop an image and all that was found in it.

        Args:
            token (str | None): From :meth:`keep`; None does nothing.
        """
        if token is not None:
            self._images.drop(lambda key: key == token)
            self._looks.drop(lambda key: key[0] == token)

    def look(self, token: str, label: str, size: int | None = None) -> Look:
        """Let a model look at an image, or recall what it saw.

        Args:
            token (str): From :meth:`keep`.
            label (str): Of the model.
            size (int | None): Longer side of the network's input. Defaults to None,
                as the model's pipeline makes it.

        Returns:
            Look: What it saw, every block and head.

        Raises:
            UserError: The image is gone, does not fit the model, or takes too long.
        """
        key = (token, label, size)
        found = self._looks.get(key)
        if found is not None:
            return found
        image = self._images.get(token)
        if image is None:
            raise UserError('The image is no longer in memory; give it again.')
        loaded = self.model(label)
        with self._turn(loaded):
            found = self._looks.get(key)  # somebody ahead may have asked for the same
            if found is None:
                found = self._pool.submit(self._run, loaded, image, size).result()
                if self._images.get(token) is not None:  # not forgotten meanwhile
                    self._looks.put(key, found)
        return found

    @contextmanager
    def _turn(self, loaded: LoadedModel):
        if not loaded.lock.acquire(timeout=self.limits.seconds):
            raise UserError('The model is busy with images of others; try again in a moment.')
        try:
            yield
        finally:
            loaded.lock.release()

    def _run(self, loaded: LoadedModel, image: np.ndarray, size: int | None) -> Look:
        started = time.monotonic()
        _deadline.at = started + self.limits.seconds
        try:
            inspector = loaded.inspectors.get(size)
            if inspector is None:
                with self._loading:
                    inspector = ClusterInspector(
                        loaded.model, loaded.config, self.limits.longest, size
                    )
                loaded.inspectors[size] = inspector
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
        return Look(inspection, caption, loaded.task, time.monotonic() - started)
