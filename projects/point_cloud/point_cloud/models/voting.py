"""Vote testing: the mean prediction over several versions of a cloud."""

import torch
from mmengine.model import BaseTTAModel

from coc_mm.registry import MODELS


@MODELS.register_module()
class VoteModel(BaseTTAModel):
    """Average the class probabilities over the versions of each cloud (``tools/test.py --tta``).

    The versions come from ``VotePoints`` in ``tta_pipeline``. Their number is fixed
    beforehand: no best of several is taken, which would choose by the labels of the test.
    """

    def merge_preds(self, data_samples_list):
        """Merge the predictions of the versions of each cloud."""
        merged = []
        for versions in data_samples_list:
            sample = versions[0].new()
            score = torch.stack([version.pred_score for version in versions]).mean(0)
            sample.set_field(score, 'pred_score')
            sample.set_field(score.argmax(), 'pred_label')
            merged.append(sample)
        return merged
