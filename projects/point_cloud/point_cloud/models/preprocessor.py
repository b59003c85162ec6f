"""Batches of clouds as the model takes them."""

import torch
from mmengine.model import BaseDataPreprocessor

from coc_mm.registry import MODELS
from projects.point_cloud.point_cloud.errors import PointCloudError


@MODELS.register_module()
class PointDataPreprocessor(BaseDataPreprocessor):
    """Move a batch to the model's device and stack its clouds to (B, 3, N)."""

    def __init__(self, non_blocking=False):
        super().__init__(non_blocking)

    def forward(self, data, training=False):
        """Stack ``inputs``, a list of (N, 3) tensors."""
        data = self.cast_data(data)
        lengths = {len(cloud) for cloud in data['inputs']}
        if len(lengths) > 1:
            raise PointCloudError(
                f'the clouds of a batch have {sorted(lengths)[:5]} points; add '
                "dict(type='SamplePoints', num_points=...) to the pipeline"
            )
        inputs = torch.stack(list(data['inputs'])).transpose(1, 2)
        return dict(inputs=inputs, data_samples=data.get('data_samples'))
