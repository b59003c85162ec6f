"""Overall and mean class accuracy."""

import numpy as np
from mmengine.evaluator import BaseMetric

from coc_mm.registry import METRICS


@METRICS.register_module()
class PointAccuracy(BaseMetric):
    """Overall accuracy (OA) and mean class accuracy (mAcc), in percent.

    OA is the share of clouds classified right, mAcc the mean of the classes' own shares, so
    rare classes count like frequent ones.

    Args:
        per_class (bool): Report every class as well, as ``acc/NAME``.
        **kwargs: Of :class:`mmengine.evaluator.BaseMetric`.
    """

    def __init__(self, per_class=False, **kwargs):
        super().__init__(**kwargs)
        self.per_class = per_class

    def process(self, data_batch, data_samples):
        """Note true and predicted labels of a batch."""
        for sample in data_samples:
            self.results.append((int(sample['gt_label']), int(sample['pred_label'])))

    def compute_metrics(self, results):
        """Compute ``OA`` and ``mAcc`` of (true, predicted) labels."""
        true, predicted = np.asarray(results, np.int64).reshape(-1, 2).T
        right = true == predicted
        total = np.bincount(true)
        present = np.flatnonzero(total)
        share = 100 * np.bincount(true, right)[present] / total[present]
        metrics = dict(OA=float(100 * right.mean()), mAcc=float(share.mean()))
        if self.per_class:
            names = (self.dataset_meta or {}).get('classes') or range(len(total))
            metrics.update(
                {f'acc/{names[c]}': float(s) for c, s in zip(present, share, strict=True)}
            )
        return metrics
