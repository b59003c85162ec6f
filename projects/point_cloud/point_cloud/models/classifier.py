"""PointMLP with a context cluster in front of each residual block."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn

from coc_mm.registry import MODELS
from projects.point_cloud.point_cloud.errors import PointCloudError
from projects.point_cloud.point_cloud.models.layers import (
    GroupBlocks,
    LocalGrouper,
    PointBlocks,
    PointwiseNormAct,
    activation_layer,
)
from projects.point_cloud.point_cloud.ops import gather_points


@MODELS.register_module()
class PointMLPCoC(BaseModel):
    """Classifier of point clouds: PointMLP with one-center context clusters.

    The fourth task of `Image as Set of Points <https://arxiv.org/abs/2303.01494>`_ (section
    4.3), on `PointMLP <https://arxiv.org/abs/2202.07123>`_. Every stage samples centers,
    gathers their neighbors, mixes each neighborhood as one cluster before each residual block
    and takes its maximum. Options and the names of the weights are those of the authors' code;
    the defaults are its ``pointMLP_CoC``.

    Args:
        num_classes (int): Classes.
        points (int): Points that the stages' numbers of centers are computed from. A cloud may
            have more, and fewer down to the centers of the first stage.
        embed_dim (int): Channels of the embedding.
        groups (int): Groups of channels in residual blocks.
        res_expansion (float): Hidden over outer channels there.
        activation (str): 'relu', 'gelu', 'rrelu', 'selu', 'silu', 'hardswish', 'leakyrelu' or
            'leakyrelu0.2'.
        bias (bool): Biases in front of batch norms.
        use_xyz (bool): Append coordinates to the grouped features.
        normalize (str | None): 'anchor', 'center' or None.
        dim_expansion (Sequence[int]): Growth of the channels per stage.
        pre_blocks (Sequence[int]): Blocks on groups per stage.
        pos_blocks (Sequence[int]): Blocks on points per stage.
        k_neighbors (Sequence[int]): Neighbors per stage.
        reducers (Sequence[int]): Points over centers per stage.
        heads (int): Heads of a cluster.
        head_dim (int | None): Channels of a head; None: a quarter of the stage's, 32 or more.
        dropout (float): In the classifier.
        smoothing (float): Probability that the target gives to the wrong classes together.
        fps_start (int | str): First sampled point, an index or 'random'. Evaluation takes 0
            instead of 'random', so that results repeat.
        search_backend (str | None): 'torch', 'triton' or None.
        cluster_backend (str | None): Backend of the cluster operator.
        data_preprocessor (dict | None): Defaults to ``PointDataPreprocessor``.
        init_cfg (dict | None): As in mmengine.
    """

    def __init__(
        self,
        num_classes=15,
        points=1024,
        embed_dim=64,
        groups=1,
        res_expansion=1.0,
        activation='relu',
        bias=False,
        use_xyz=False,
        normalize='anchor',
        dim_expansion=(2, 2, 2, 2),
        pre_blocks=(2, 2, 2, 2),
        pos_blocks=(2, 2, 2, 2),
        k_neighbors=(24, 24, 24, 24),
        reducers=(2, 2, 2, 2),
        heads=1,
        head_dim=None,
        dropout=0.5,
        smoothing=0.2,
        fps_start=0,
        search_backend=None,
        cluster_backend=None,
        data_preprocessor=None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor or dict(type='coc_mm.PointDataPreprocessor'), init_cfg)
        stages = dict(
            dim_expansion=dim_expansion,
            pre_blocks=pre_blocks,
            pos_blocks=pos_blocks,
            k_neighbors=k_neighbors,
            reducers=reducers,
        )
        _check_stages(stages, points)
        if num_classes < 2 or not 0 <= smoothing <= (num_classes - 1) / num_classes:
            raise PointCloudError(
                f'two classes or more and a smoothing of 0 to {1 - 1 / max(num_classes, 2):.3g} '
                f'are needed, got num_classes={num_classes}, smoothing={smoothing}'
            )
        self.num_classes, self.smoothing, self.fps_start = num_classes, smoothing, fps_start
        residual = dict(
            groups=groups, res_expansion=res_expansion, bias=bias, activation=activation
        )
        cluster = dict(heads=heads, head_dim=head_dim, backend=cluster_backend)
        self.embedding = PointwiseNormAct(3, embed_dim, bias, activation)
        self.local_grouper_list = nn.ModuleList()
        self.pre_blocks_list = nn.ModuleList()
        self.pos_blocks_list = nn.ModuleList()
        channels, centers = embed_dim, points
        for growth, pre, pos, neighbours, reducer in zip(*stages.values(), strict=True):
            centers = centers // reducer
            grouper = LocalGrouper(
                channels, centers, neighbours, use_xyz, normalize, fps_start, search_backend
            )
            out = channels * growth
            blocks = GroupBlocks(grouper.channels, channels, out, pre, cluster, residual)
            self.local_grouper_list.append(grouper)
            self.pre_blocks_list.append(blocks)
            self.pos_blocks_list.append(PointBlocks(out, pos, residual))
            channels = out
        self.classifier = nn.Sequential(
            nn.Linear(channels, 512),
            nn.BatchNorm1d(512),
            activation_layer(activation),
            nn.Dropout(dropout),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            activation_layer(activation),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )

    def train(self, mode=True):
        """Switch between training and evaluation, and the sampling's start with it."""
        start = 0 if self.fps_start == 'random' and not mode else self.fps_start
        for grouper in self.local_grouper_list:
            grouper.start = start
        return super().train(mode)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        """Compute logits, losses or predictions.

        Args:
            inputs (Tensor): (B, 3, N), coordinates.
            data_samples (list[BaseDataElement] | None): With ``gt_label`` for 'loss'; 'predict'
                adds ``pred_score`` (num_classes,) and ``pred_label``.
            mode (str): 'tensor', 'loss' or 'predict'.

        Returns:
            Tensor | dict | list: Logits (B, num_classes); ``dict(loss=..., accuracy=...)``; or
            the data samples.
        """
        logits = self.classifier(self.extract_feat(inputs))
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return self._loss(logits, data_samples)
        if mode == 'predict':
            return self._predict(logits, data_samples)
        raise PointCloudError(f"mode must be 'tensor', 'loss' or 'predict', not {mode!r}")

    def stage_inputs(self, inputs):
        """Run the stages on (B, 3, N), yielding what each sees.

        Yields:
            tuple: Coordinates (B, N_i, 3); what the grouper returns, four tensors; the features
            that the stage gives, (B, S_i, C_i).
        """
        if inputs.dim() != 3 or inputs.shape[1] != 3:
            raise PointCloudError(
                f'a batch of clouds must be (B, 3, N), coordinates second, got '
                f'{tuple(inputs.shape)}'
            )
        least = max(self.local_grouper_list[0].centers, self.local_grouper_list[0].neighbours)
        if inputs.shape[2] < least:
            raise PointCloudError(
                f'clouds of {inputs.shape[2]} points are too small for this model, whose first '
                f'stage needs {least}; sample more points, or build it with fewer (points=...)'
            )
        xyz = inputs.transpose(1, 2)
        x = self.embedding(xyz.reshape(-1, 3)).unflatten(0, xyz.shape[:2])
        stages = (self.local_grouper_list, self.pre_blocks_list, self.pos_blocks_list)
        for grouper, pre, pos in zip(*stages, strict=True):
            chosen, index, grouped, center = grouper(xyz, x)
            x = pos(pre(grouped, center))
            yield xyz, (chosen, index, grouped, center), x
            xyz = gather_points(xyz, chosen)

    def extract_feat(self, inputs):
        """Map clouds (B, 3, N) to features (B, C): the maximum over the last stage's points."""
        for stage in self.stage_inputs(inputs):
            x = stage[-1]
        return x.amax(1)

    def _loss(self, logits, data_samples):
        labels = torch.stack([sample.gt_label.view(()) for sample in data_samples])
        labels = labels.to(logits.device)
        # On a GPU this check would wait for it; there the loss itself stops.
        if not labels.is_cuda and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise PointCloudError(
                f'labels from {labels.min()} to {labels.max()} do not fit a model of '
                f'{self.num_classes} classes; set model.num_classes to those of the data'
            )
        # cross_entropy spreads its smoothing over all classes, the right one among them.
        smoothing = self.smoothing * self.num_classes / (self.num_classes - 1)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        accuracy = (logits.argmax(1) == labels).float().mean() * 100
        return dict(loss=loss, accuracy=accuracy)

    def _predict(self, logits, data_samples):
        if data_samples is None:
            data_samples = [BaseDataElement() for _ in logits]
        for sample, score in zip(data_samples, logits.softmax(1), strict=True):
            sample.set_field(score, 'pred_score')
            sample.set_field(score.argmax(), 'pred_label')
        return data_samples


def _check_stages(stages, points):
    lengths = {name: len(values) for name, values in stages.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise PointCloudError(f'every stage needs one entry of each, got {lengths}')
    for name, values in stages.items():
        if min(values) < (0 if name.endswith('blocks') else 1):
            raise PointCloudError(f'{name}={list(values)} must be positive')
    left = points
    for stage, (neighbours, reducer) in enumerate(
        zip(stages['k_neighbors'], stages['reducers'], strict=True)
    ):
        if neighbours > left or left // reducer < 1:
            raise PointCloudError(
                f'stage {stage + 1} sees {left} points, too few for {neighbours} neighbours and a '
                f'reduction by {reducer}; raise points or lower k_neighbors or reducers'
            )
        left //= reducer
