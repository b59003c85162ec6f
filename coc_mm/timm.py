"""``import coc_mm.timm`` gives timm every architecture: ``timm.create_model('coc_tiny')``.

Weights have the names of mmpretrain's classifiers (``backbone.*``, ``head.fc.*``), so that files of
either go into the other. ``pretrained`` is what ``coc_mm.apis.get_model`` takes: True, a source of
published weights, or a path or URL of a checkpoint, official ones included.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from coc_mm.apis.model_zoo import find_entry, find_weights
from coc_mm.checkpoints.load import load_checkpoint_safely, state_dict_of
from coc_mm.errors import CheckpointError
from coc_mm.models import ContextCluster
from coc_mm.models.hub import HubMixin

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.layers import ClassifierHead
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
    from timm.models._manipulate import adapt_input_conv
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('coc_mm.timm needs timm: pip install timm', name='timm') from error

_POSITIONS = 2  # channels of the first convolution after those of the image


class ContextClusterClassifier(nn.Module, HubMixin, pipeline_tag='image-classification'):
    """A Context Cluster backbone with a linear head, as timm expects its models.

    ``backbone`` are further arguments of :class:`ContextCluster`, such as ``proposals``;
    ``global_pool=''`` returns maps.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        backbone: dict | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        kwargs: dict[str, Any] = {'drop_path_rate': drop_path_rate, **(backbone or {})}
        self.backbone: Any = ContextCluster(arch, in_chans, out_indices=3, **kwargs)
        self.backbone.init_mlps()
        dims = self.backbone.arch['dims']
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = [
            dict(num_chs=dim, reduction=4 * 2**i, module=f'backbone.stages.{i}')
            for i, dim in enumerate(dims)
        ]
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images (B, C, H, W): (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the last map, (B, C, H/32, W/32)."""
        return self.backbone(x)[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool a map and classify it; ``pre_logits`` returns what was pooled."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Any:
        """Return the maps of stages, and the last one before them unless they are all wanted.

        ``norm`` normalises the last stage's, which alone has a norm.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        last = len(self.backbone.stages) - 1
        wanted, end = feature_take_indices(last + 1, indices)
        maps = []
        x = self.backbone.forward_stem(x)
        for i in range((end if stop_early else last) + 1):
            x = self.backbone.forward_stage(i, x)
            if i in wanted:
                maps.append(self.backbone.norm3(x) if norm and i == 3 else x)
        maps = [level.permute(0, 3, 1, 2) for level in maps]
        if intermediates_only:
            return maps
        return (self.backbone.norm3(x) if i == 3 else x).permute(0, 3, 1, 2), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of some stages do not need; return their indices."""
        wanted, end = feature_take_indices(len(self.backbone.stages), indices)
        cut = end < len(self.backbone.stages) - 1
        self.backbone.stages = self.backbone.stages[: end + 1]
        if cut or prune_norm:
            self.backbone.norm3 = nn.Identity()
        if cut or prune_head:
            self.reset_classifier(0, '')
        return wanted

    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put another linear layer in, or none for 0 classes."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def _hub_arguments(self):
        given: Any = self._hub_mixin_config or {}
        return dict(
            num_classes=self.num_classes,
            global_pool=self.head.global_pool.pool_type,
            backbone={**(given.get('backbone') or {}), **self.backbone._hub_arguments()},
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass to save memory."""
        self.backbone.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameters from the stem on, for layer-wise learning rates."""
        stage, norm = r'^backbone\.stages\.(\d+)', (r'^backbone\.norm', (99999,))
        blocks: list[tuple] = [(rf'{stage}\.reducer', (0,)), (rf'{stage}\.blocks\.(\d+)', None)]
        blocks = [(stage, None)] if coarse else blocks
        return dict(stem=r'^backbone\.patch_embed', blocks=[*blocks, norm])


def _read(path: str, in_chans: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a classifier's weights, and what is recorded of the mixer that they belong to."""
    checkpoint = load_checkpoint_safely(path)
    given = state_dict_of(checkpoint, path)
    weights = {k: v for k, v in given.items() if k.startswith(('backbone.', 'head.fc.'))}
    if not weights:
        raise CheckpointError(
            f'checkpoint {path} holds no weights of a Context Cluster classifier.'
        )
    stem = weights['backbone.patch_embed.proj.weight']
    if stem.shape[1] != in_chans + _POSITIONS:
        image, positions = stem[:, :-_POSITIONS], stem[:, -_POSITIONS:]
        image = adapt_input_conv(in_chans, image)
        weights['backbone.patch_embed.proj.weight'] = torch.cat([image, positions], 1)
    # timm copies the weights, without what PyTorch notes beside them.
    noted = getattr(given, '_metadata', {}).get('backbone', {}).get('denominator')
    record = ((checkpoint.get('meta') or {}).get('coc_mm') or {}).get('backbone') or {}
    return weights, {**(dict(denominator=noted) if noted else {}), **record}


def _create(arch: str, pretrained: Any, overlay: dict | None, kwargs: dict[str, Any]) -> Any:
    if pretrained and not overlay:
        zoo_name = f'coc-{arch.replace("_", "-")}_8xb128_in1k'
        path = None if pretrained is True else os.fspath(pretrained)
        if path is None or path in find_entry(zoo_name).sources:
            path = find_weights(zoo_name, path)
        weights, record = _read(path, kwargs.get('in_chans', 3))
        kwargs['backbone'] = {**record, **(kwargs.get('backbone') or {})}
        overlay = dict(state_dict=weights)
        if 'head.fc.weight' in weights:
            overlay['num_classes'] = len(weights['head.fc.weight'])
            kwargs.setdefault('num_classes', overlay['num_classes'])
    model = build_model_with_cfg(
        *(ContextClusterClassifier, f'coc_{arch}', bool(pretrained)),
        pretrained_cfg_overlay=overlay,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'),
        arch=arch,
        **kwargs,
    )
    model.pretrained_cfg.pop('state_dict', None)
    return model


def _make_entry(arch: str) -> Callable:
    def build(pretrained=False, pretrained_cfg_overlay=None, **kwargs):
        return _create(arch, pretrained, pretrained_cfg_overlay, kwargs)

    build.__name__ = build.__qualname__ = f'coc_{arch}'
    build.__doc__ = f'Build the Context Cluster classifier {arch}.'
    return build


default_cfgs = generate_default_cfgs(
    {
        f'coc_{arch}': dict(
            url='',
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.9,
            interpolation='bicubic',
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            first_conv=None,
            classifier='head.fc',
            paper_ids='arXiv:2303.01494',
        )
        for arch in ContextCluster.arch_zoo
    }
)
for _arch in ContextCluster.arch_zoo:
    register_model(_make_entry(_arch))
