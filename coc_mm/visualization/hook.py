"""The training hook that draws clusters of validation images."""

from collections.abc import Sequence
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from torch.distributed.fsdp import FullyShardedDataParallel

from coc_mm.registry import HOOKS
from coc_mm.utils.undisturbed import undisturbed
from coc_mm.visualization.maps import find_backbone, record_clusters
from coc_mm.visualization.sheets import contact_sheet, picture_of, stage_row


@HOOKS.register_module()
class ClusterVisualizationHook(Hook):
    """Draw the clusters of fixed validation images at intervals of training.

    Pictures go to the run's visualizer as ``clusters_0``, ``clusters_1``, ..., with the epoch or
    iteration as the step. Each shows an image beside one head of a block in every stage. Training
    is not disturbed. Drawn are the weights in training, not the average of an ``EMAHook``.

    Args:
        interval: Epochs, or iterations, between drawings.
        by_epoch: Whether the interval counts epochs.
        indices: Images of the validation dataset; None: the first four.
        stage: As for :func:`record_clusters`, like ``block`` and ``head``.
        alpha: 0 is the image, 1 flat colors; ``height`` is that of a picture in pixels.
        channel_order: 'bgr' or 'rgb', of the images that the validation pipeline makes; the
            loaders of mmcv make BGR.
        at_start: Draw before the first step of training, too.
    """

    priority = 'VERY_LOW'

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        indices: Sequence[int] | None = None,
        stage: int | None = None,
        block: int = -1,
        head: int = 0,
        alpha: float = 0.55,
        height: int = 256,
        channel_order: str = 'bgr',
        at_start: bool = True,
    ) -> None:
        if interval < 1:
            raise ValueError(f'interval must be a positive number, got {interval!r}')
        if channel_order not in ('bgr', 'rgb'):
            raise ValueError(f"channel_order must be 'bgr' or 'rgb', got {channel_order!r}")
        self.interval, self.by_epoch, self.at_start = interval, by_epoch, at_start
        self.indices, self.channel_order = indices, channel_order
        self.selection = (stage, block, head)
        self.style: dict[str, Any] = dict(alpha=alpha, height=height)
        self._samples: list[dict] = []

    def before_train(self, runner: Any) -> None:
        """Fetch the images, check that there is something to draw, and draw it."""
        if any(isinstance(m, FullyShardedDataParallel) for m in runner.model.modules()):
            # One process alone has not all the weights, and the others would not help.
            raise ValueError('ClusterVisualizationHook does not work with sharded models (FSDP)')
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                'ClusterVisualizationHook: this training counts iterations, not epochs; set '
                'by_epoch=False and the interval in iterations'
            )
        self._prepare(runner)

    @master_only
    def _prepare(self, runner) -> None:
        model = self._model(runner)
        with record_clusters(model, *self.selection):
            pass  # a number out of range raises here
        if runner.val_loop is None:
            raise ValueError(
                'ClusterVisualizationHook draws validation images, and there is no '
                'val_dataloader (or --no-validate is given): remove the hook'
            )
        dataset = runner.val_loop.dataloader.dataset
        indices = range(min(4, len(dataset))) if self.indices is None else self.indices
        absent = [i for i in indices if not 0 <= i < len(dataset)]
        if absent:
            raise ValueError(
                f'ClusterVisualizationHook: indices {absent} are out of range; the validation '
                f'dataset has images 0 to {len(dataset) - 1}'
            )
        with undisturbed(model):
            self._samples = [dataset[i] for i in indices]
        if self.at_start and runner.iter == 0:
            self._draw(runner, 0)

    def after_train_epoch(self, runner: Any) -> None:
        """Draw, if it is time."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._draw(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Draw, if it is time."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    @staticmethod
    def _model(runner):
        return runner.model.module if is_model_wrapper(runner.model) else runner.model

    @master_only
    def _draw(self, runner, step: int) -> None:
        model = self._model(runner)
        with undisturbed(model), record_clusters(model, *self.selection) as record:
            for number, sample in enumerate(self._samples):
                inputs = sample['inputs']
                batch = dict(inputs=[inputs], data_samples=[sample.get('data_samples')])
                processed = model.data_preprocessor(batch)['inputs']
                find_backbone(model).forward(processed)
                maps = [m.to('cpu') for m in record.maps.values()]
                ends = [n / m for n, m in zip(processed.shape[2:], inputs.shape[1:], strict=True)]
                style = dict(self.style, extent=(0.0, 0.0, *ends), caption='input')
                row = stage_row(picture_of(inputs, self.channel_order), maps, **style)
                runner.visualizer.add_image(f'clusters_{number}', contact_sheet([row]), step)
