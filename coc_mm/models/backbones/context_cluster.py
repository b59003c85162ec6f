"""The Context Cluster backbone."""

import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import nn
from torch.utils.checkpoint import checkpoint

from coc_mm.models.base_module import LazyBaseModule
from coc_mm.models.hub import HubMixin
from coc_mm.models.layers import ContextClusterBlock, GroupNorm1, PointReducer, append_positions
from coc_mm.ops.functional import DENOMINATORS
from coc_mm.registry import MODELS

MIN_SIZE = 32
_WHOLE = (int, np.integer)
_COMMON = dict(mlp_ratios=(8, 8, 4, 4), proposals=(2, 2, 2, 2), folds=(8, 4, 2, 1))
_TINY = dict(_COMMON, depths=(3, 4, 5, 2), dims=(32, 64, 196, 320), heads=(4, 4, 8, 8), head_dim=24)
_SMALL = dict(_COMMON, dims=(64, 128, 320, 512), head_dim=32)


@MODELS.register_module()
class ContextCluster(LazyBaseModule, HubMixin, pipeline_tag='image-feature-extraction'):
    """Context Cluster, a backbone that sees an image as a set of points.

    `Image as Set of Points <https://arxiv.org/abs/2303.01494>`_, for classification and dense
    prediction. Any input of at least 32 x 32 pixels, of any aspect, is accepted.

    Args:
        arch (str | dict): A name of :attr:`arch_zoo`, or a dict with the keys ``depths``, ``dims``,
            ``mlp_ratios``, ``heads`` (a number per stage, of which there are as many as
            ``depths``), ``head_dim`` (a number, or one per stage), and optionally ``proposals``,
            ``folds``, ``patch_size`` and ``patch_stride`` of the stem (4), ``reducer_size``
            between stages (3), and the ablations of the paper: ``positions=False`` appends none,
            ``clustering=False`` takes the mean of each region instead, ``folds=1`` has no regions.
        in_channels (int): Channels of the image; two position channels are appended inside.
        out_indices (int | Sequence[int]): Stages to return, of four 0-3 with strides 4, 8, 16, 32;
            negative numbers count from the end.
        proposals (int | Sequence | None): Centers per region: one value, or one for each of the
            four stages; a value is a number (2 means 2 x 2) or (rows, columns). None takes those
            of ``arch``.
        folds (int | Sequence | None): Regions that the map is cut into, in the same form.
        drop_rate (float): Dropout in mixers and MLPs.
        drop_path_rate (float): Stochastic depth of the last block, rising linearly from 0.
        layer_scale_init_value (float): Start of the layer scale, 0 for none.
        denominator (str | None): What a cluster's sum is divided by: 'similarity', or 'count' for
            weights published before June 2023, among them those for COCO and ADE20K. None is
            'similarity', until weights are loaded that record the other.
        frozen_stages (int): -1 freezes nothing, 0 the stem, k the stem and the first k stages
            (1-4), norms of their outputs included.
        norm_eval (bool): Keep norms in evaluation mode, which changes nothing for group norm.
        with_cp (bool): Recompute blocks in the backward pass to save memory.
        backend (str | None): Backend of the operator, see :func:`coc_mm.ops.context_cluster`.
        init_cfg (dict | list[dict] | None): Initialisation, for example ``dict(type='Pretrained',
            checkpoint=..., prefix='backbone.')``, on top of the paper's own: MLPs drawn from a
            truncated normal of deviation 0.02.

    Example:
        >>> import torch
        >>> from coc_mm.models import ContextCluster
        >>> model = ContextCluster('tiny', out_indices=(0, 1, 2, 3))
        >>> for level in model(torch.rand(1, 3, 64, 96)):
        ...     print(tuple(level.shape))
        (1, 32, 16, 24)
        (1, 64, 8, 12)
        (1, 196, 4, 6)
        (1, 320, 2, 3)
    """

    arch_zoo: ClassVar[dict[str, dict[str, Any]]] = {
        'tiny': _TINY,
        'tiny2': dict(_TINY, proposals=(4, 2, 7, 4), folds=(7, 7, 1, 1)),
        'tiny_plain': dict(_TINY, proposals=(4, 4, 2, 2), folds=(1, 1, 1, 1)),
        'small': dict(_SMALL, depths=(2, 2, 6, 2), heads=(4, 4, 8, 8)),
        'medium': dict(_SMALL, depths=(4, 4, 12, 4), heads=(6, 6, 12, 12)),
        'base_dim64': dict(_SMALL, depths=(6, 6, 24, 6), heads=(8, 8, 16, 16)),
        'base_dim96': dict(
            _SMALL, depths=(4, 4, 12, 4), dims=(96, 192, 384, 768), heads=(8, 8, 16, 16)
        ),
    }
    arch_defaults: ClassVar[dict[str, Any]] = dict(
        patch_size=4, patch_stride=4, reducer_size=3, positions=True, clustering=True
    )
    num_stages = 4
    # Filled by coc_mm.checkpoints: f(state_dict, prefix, metadata) renames other layouts in place.
    state_dict_converters: ClassVar[list[Callable[[dict, str, dict], None]]] = []

    def __init__(
        self,
        arch: str | dict = 'small',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        proposals: int | Sequence | None = None,
        folds: int | Sequence | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        denominator: str | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
        pretrained: None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if pretrained is not None:
            raise ValueError(
                f'pretrained={pretrained!r}, as configs of mmseg set it, is not for this backbone: '
                "set pretrained=None in the model, and init_cfg=dict(type='Pretrained', "
                'checkpoint=...) in its backbone for starting weights'
            )
        setting = self._parse_arch(arch)
        self.num_stages = len(setting['depths'])
        self.proposals = self._per_stage(
            'proposals', setting['proposals'] if proposals is None else proposals
        )
        self.folds = self._per_stage('folds', setting['folds'] if folds is None else folds)
        self.out_indices = self._parse_out_indices(out_indices)
        self.denominator = denominator
        denominator = denominator or 'similarity'
        if denominator not in DENOMINATORS:
            raise ValueError(f'unknown denominator {denominator!r}: choose one of {DENOMINATORS}')
        if not (isinstance(frozen_stages, _WHOLE) and -1 <= frozen_stages <= self.num_stages):
            raise ValueError(
                f'frozen_stages must be -1 (none), 0 (the stem) or the number of stages to '
                f'freeze with it, at most {self.num_stages}; got {frozen_stages!r}'
            )
        if not (isinstance(in_channels, _WHOLE) and in_channels >= 1):
            raise ValueError(f'in_channels must be a positive number, got {in_channels!r}')
        if layer_scale_init_value < 0:
            raise ValueError(
                f'layer_scale_init_value must not be negative, got {layer_scale_init_value!r}'
            )
        for name, rate in (('drop_rate', drop_rate), ('drop_path_rate', drop_path_rate)):
            if not 0 <= rate < 1:
                raise ValueError(f'{name} must be at least 0 and below 1, got {rate!r}')
        self.arch = setting
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        dims, depths = setting['dims'], setting['depths']
        extra = {**self.arch_defaults, **setting}
        self.positions, self.patch_stride = extra['positions'], extra['patch_stride']
        stem = in_channels + (2 if self.positions else 0)
        self.patch_embed = PointReducer(stem, dims[0], extra['patch_size'], self.patch_stride)
        kernel = extra['reducer_size']
        head_dims = setting['head_dim']
        if isinstance(head_dims, _WHOLE):
            head_dims = (head_dims,) * self.num_stages
        if not extra['clustering']:
            self.proposals = ((1, 1),) * self.num_stages
        self.stages = nn.ModuleList()
        rates = [drop_path_rate * k / max(sum(depths) - 1, 1) for k in range(sum(depths))]
        for i, depth in enumerate(depths):
            stage = nn.Module()
            if i > 0:
                stage.reducer = PointReducer(dims[i - 1], dims[i], kernel, 2, kernel // 2)
            stage.blocks = nn.ModuleList(
                ContextClusterBlock(
                    dims[i],
                    setting['heads'][i],
                    head_dims[i],
                    setting['mlp_ratios'][i],
                    self.proposals[i],
                    self.folds[i],
                    drop_rate,
                    rates.pop(0),
                    layer_scale_init_value,
                    denominator,
                    backend,
                )
                for _ in range(depth)
            )
            self.stages.append(stage)
        for i in self.out_indices:
            self.add_module(f'norm{i}', GroupNorm1(dims[i]))
        if not extra['clustering']:  # one center per region, to which all are equally similar
            for block in chain(*self.blocks):
                nn.init.zeros_(block.mixer.sim_alpha).requires_grad_(False)
                nn.init.constant_(block.mixer.sim_beta, 100).requires_grad_(False)
        self._freeze_stages()

    def init_weights(self) -> None:
        """Initialise as the paper's code does, then as ``init_cfg`` says."""
        if not self.is_init:
            self.init_mlps()
        super().init_weights()

    def init_mlps(self) -> None:
        """Draw the MLPs as the paper's code does, all else as PyTorch does."""
        for block in chain(*self.blocks):
            for layer in (block.mlp.fc1, block.mlp.fc2):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        record = getattr(destination, '_metadata', {}).get(prefix[:-1], {})
        record['denominator'] = self.blocks[0][0].mixer.denominator

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        trained = local_metadata.get('denominator')
        if trained is not None and self.denominator not in (None, trained):
            warnings.warn(
                f'these weights were trained with denominator={trained!r}, the backbone that loads '
                f'them has {self.denominator!r}: to predict with them as they are, build it with '
                f'denominator={trained!r}',
                stacklevel=2,
            )
        elif trained is not None:
            for block in chain(*self.blocks):
                block.mixer.denominator = trained
        for convert in self.state_dict_converters:
            convert(state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _hub_arguments(self):
        return dict(denominator=self.blocks[0][0].mixer.denominator)

    @property
    def num_features(self) -> int:
        """Channels of the last map that is returned."""
        return self.feature_info[-1]['num_chs']

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of each map that is returned, under timm's keys."""
        dims = self.arch['dims']
        return [
            dict(num_chs=dims[i], reduction=self.patch_stride * 2**i, module=f'norm{i}')
            for i in self.out_indices
        ]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the maps of ``out_indices``, (B, C_i, H_i, W_i) each, in channels-last memory."""
        x = self.forward_stem(x)
        outs = []
        for i in range(len(self.stages)):
            x = self.forward_stage(i, x)
            if i in self.out_indices:
                outs.append(getattr(self, f'norm{i}')(x).permute(0, 3, 1, 2))
        return tuple(outs)

    def forward_stem(self, x: torch.Tensor) -> torch.Tensor:
        """Turn an image (B, C, H, W) into points (B, H/4, W/4, C_0)."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'ContextCluster expects (B, {self.in_channels}, H, W), got {tuple(x.shape)}'
            )
        least = self.patch_stride * 2 ** (self.num_stages - 1)
        if x.shape[2] < least or x.shape[3] < least:
            raise ValueError(
                f'ContextCluster needs inputs of at least {least} x {least} pixels, got '
                f'{x.shape[2]} x {x.shape[3]}: resize or pad the images in the pipeline'
            )
        return self.patch_embed(append_positions(x) if self.positions else x.permute(0, 2, 3, 1))

    def forward_stage(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Run a stage on the points of the one before; its map is not normalised."""
        stage: Any = self.stages[
            index
        ]  # a bare module with a reducer, but in the first, and blocks
        if index > 0:
            x = stage.reducer(x)
        for block in stage.blocks:
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def train(self, mode: bool = True) -> 'ContextCluster':
        """Set the mode; frozen stages, and norms if asked, stay in evaluation."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.GroupNorm, nn.LayerNorm, _BatchNorm)):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter for layer-wise learning-rate decay.

        The stem has depth 0, the blocks count on through the stages, a points reducer belongs to
        the first block of its stage, the norm of an output to the last, and anything outside the
        backbone has the last depth. The second number is how many depths there are.
        """
        depths = self.arch['depths']
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name[len(prefix) :].split('.')
        if name[0] == 'patch_embed':
            return 0, num_layers
        if name[0] == 'stages':
            block = int(name[3]) if name[2] == 'blocks' else 0
            return sum(depths[: int(name[1])]) + block + 1, num_layers
        if name[0].startswith('norm'):
            return sum(depths[: int(name[0][4:]) + 1]), num_layers
        return num_layers - 1, num_layers

    @property
    def blocks(self) -> list[list[ContextClusterBlock]]:
        """The blocks of each stage."""
        stages: Any = self.stages  # bare modules, of which nn.Module knows no types
        return [list(stage.blocks) for stage in stages]

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.stages[: self.frozen_stages]]
        frozen += [getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    @classmethod
    def _parse_arch(cls, arch: str | dict[str, Any]) -> dict[str, Any]:
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(
                    f'unknown arch {arch!r}: choose one of {", ".join(cls.arch_zoo)}, '
                    'or give a dict'
                )
            return cls.arch_zoo[arch]
        if not isinstance(arch, dict):
            raise ValueError(f'arch must be a name or a dict, got {arch!r}')
        lists = ('depths', 'dims', 'mlp_ratios', 'heads')
        stages = len(arch.get('depths', ())) or cls.num_stages
        folds = tuple(2 ** (stages - 1 - i) for i in range(stages))
        arch = {'proposals': 2, 'folds': folds, **arch}
        missing = [key for key in (*lists, 'head_dim') if key not in arch]
        unknown = sorted(set(arch) - {*lists, 'head_dim', 'proposals', 'folds', *cls.arch_defaults})
        if missing or unknown:
            raise ValueError(f'arch dict: missing keys {missing}, unknown keys {unknown}')
        for key in lists:
            if len(arch[key]) != stages or min(arch[key]) <= 0:
                raise ValueError(
                    f'arch[{key!r}] must hold {stages} positive numbers, one per stage; '
                    f'got {arch[key]!r}'
                )
        for key in ('head_dim', 'patch_size', 'patch_stride', 'reducer_size'):
            given = arch.get(key, 1)
            sizes = (given,) if key != 'head_dim' or isinstance(given, _WHOLE) else given
            if len(sizes) not in (1, stages) or not all(
                isinstance(n, _WHOLE) and n >= 1 for n in sizes
            ):
                raise ValueError(f'arch[{key!r}] must be positive, got {given!r}')
        return arch

    def _parse_out_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        n = self.num_stages
        indices = [out_indices] if isinstance(out_indices, _WHOLE) else list(out_indices)
        if not indices or not all(isinstance(i, _WHOLE) and -n <= i < n for i in indices):
            raise ValueError(
                f'out_indices must be stage numbers from 0 to {n - 1} (or -{n} to -1, from the '
                f'end), got {out_indices!r}'
            )
        indices = [i % n for i in indices]
        if sorted(set(indices)) != indices:
            raise ValueError(f'out_indices must rise and not repeat, got {out_indices!r}')
        return tuple(indices)

    def _per_stage(self, name: str, value: int | Sequence) -> tuple[tuple[int, int], ...]:
        """Return one (rows, columns) pair per stage."""

        def pair(given: int | Sequence[int]) -> tuple[int, int]:
            v = (given, given) if isinstance(given, _WHOLE) else given
            if not (
                isinstance(v, Sequence)
                and len(v) == 2
                and all(isinstance(n, _WHOLE) and n >= 1 for n in v)
            ):
                raise ValueError(
                    f'{name}: {given!r} is not a positive number or a pair (rows, columns) of them'
                )
            return v[0], v[1]

        if isinstance(value, _WHOLE):
            return (pair(value),) * self.num_stages
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f'{name} must be a number or a sequence, got {value!r}')
        if len(value) == 2 and all(isinstance(v, _WHOLE) for v in value):
            return (pair(value),) * self.num_stages
        if len(value) != self.num_stages:
            raise ValueError(
                f'{name} has the wrong length: give a number, a pair (rows, columns), or one of '
                f'either for each of the {self.num_stages} stages; got {value!r}'
            )
        return tuple(pair(v) for v in value)
