"""Vote testing: the mean prediction over several versions of a cloud."""

import torch
from mmengine.model import BaseTTAModel

from coc_mm.registry import MODELS


@MODELS.register_module()
class VoteModel(BaseTTAModel):
    """Average the class probabilities over the versions of each cloud.

    Wraps a model where ``tools/test.py --tta`` is asked for; the versions come from
    ``VotePoints`` in ``tta_pipeline``. The number of votes is fixed beforehand, and no best of
    several repetitions is taken, which would choose by the labels of the test.

    Args:
        module (dict | nn.Module): The model.
    """

    def merge_preds(self, data_samples_list):
        """Merge the predictions of each cloud.

        Args:
            data_samples_list (list[list[BaseDataElement]]): Per cloud, per version.

        Returns:
            list[BaseDataElement]: Per cloud, with the mean ``pred_score`` and its ``pred_label``.
        """
        merged = []
        for versions in data_samples_list:
            sample = versions[0].new()
            score = torch.stack([version.pred_score for version in versions]).mean(0)
            sample.set_field(score, 'pred_score')
            sample.set_field(score.argmax(), 'pred_label')
            merged.append(sample)
        return merged
