"""Write what a test predicts as JSON or CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from coc_mm.apis.predictions import Prediction, encode_masks, records_to_text
from coc_mm.registry import METRICS
from coc_mm.utils.atomic_io import atomic_write


@METRICS.register_module()
class DumpPredictions(BaseMetric):
    """Write the predictions of classifiers and detectors, as ``infer --save`` does.

    Args:
        out_file_path (str): A ``.json`` or ``.csv`` file.
        topk (int): Classes of a classifier, the likeliest first.
    """

    def __init__(self, out_file_path: str, topk: int = 5) -> None:
        super().__init__()
        self.out_file_path, self.topk = Path(out_file_path), topk

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Turn samples into records."""
        classes = [str(x) for x in (self.dataset_meta or {}).get('classes') or ()]
        for sample in data_samples:
            masks = None
            if 'pred_score' in sample:
                scores, indices = (
                    sample['pred_score'].cpu().topk(min(self.topk, len(sample['pred_score'])))
                )
                boxes = None
            else:
                found = sample['pred_instances']
                scores, indices = found['scores'].cpu(), found['labels'].cpu()
                boxes = found['bboxes'].cpu().numpy()
                masks = found.get('masks')
            labels = [classes[i] if i < len(classes) else str(i) for i in indices.tolist()]
            path, size = sample.get('img_path') or '', tuple(sample.get('ori_shape', (0, 0))[:2])
            one = Prediction(path, size, indices.tolist(), labels, scores.tolist(), boxes)
            record = one.to_dict()
            if masks is not None:
                masks = masks.cpu() if isinstance(masks, torch.Tensor) else masks
                rles = encode_masks(np.asarray(masks)) if not isinstance(masks, list) else masks
                for row, rle in zip(record['predictions'], rles, strict=True):
                    row['segmentation'] = rle
            self.results.append(record)

    def compute_metrics(self, results: list) -> dict:
        """Write the file; there are no figures."""
        with atomic_write(self.out_file_path) as file:
            file.write_bytes(records_to_text(results, self.out_file_path.suffix[1:]).encode())
        return {}
