"""Layer-wise decay of the learning rate, for all three task libraries."""

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from coc_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give the layers of a backbone learning rates that fall towards the input.

    A parameter of depth d among n depths gets ``lr * layer_decay_rate ** (n - 1 - d)`` (as in
    BEiT, arXiv 2106.08254). Depths come from the backbone's ``get_layer_depth``, which
    :class:`coc_mm.models.ContextCluster` and many backbones of mmpretrain have; necks and heads
    keep the full rate. ``paramwise_cfg`` also takes any key of mmengine's default constructor.

    Example:
        >>> optim_wrapper.update(
        ...     constructor='coc_mm.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.8, flat_decay_mult=0.0))
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not (isinstance(rate, (int, float)) and 0 < rate <= 1):
            raise ValueError(
                'paramwise_cfg.layer_decay_rate must be above 0 and at most 1, got '
                f'{rate!r}: give e.g. paramwise_cfg=dict(layer_decay_rate=0.8)'
            )
        if self.base_lr is None:
            raise ValueError('layer-wise decay needs the optimizer to have an lr; give one')

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Append the parameter groups of a model, or of the part of it under ``prefix``.

        Groups of equal settings are merged, so that the optimizer steps many tensors at once.
        """
        if prefix:
            return super().add_params(params, module, prefix, is_dcn_module)
        groups: list[dict] = []
        super().add_params(groups, module, prefix, is_dcn_module)
        backbones = _find_backbones(module)
        names = {id(param): name for name, param in module.named_parameters()}
        rate = self.paramwise_cfg['layer_decay_rate']
        by_setting: dict[str, dict] = {}
        for group in groups:
            (param,) = group.pop('params')
            name, distance = names[id(param)], 0
            for prefix, backbone in backbones.items():
                if name.startswith(prefix):
                    depth, count = backbone.get_layer_depth(name, prefix)
                    distance = count - 1 - depth
            scale = rate**distance
            group.update(lr=group.get('lr', self.base_lr) * scale, lr_scale=scale)
            key = repr(sorted(group.items()))
            by_setting.setdefault(key, dict(group, params=[]))['params'].append(param)
        for group in sorted(by_setting.values(), key=lambda group: group['lr_scale']):
            decay = group.get('weight_decay', self.base_wd)
            print_log(
                f'layer decay: {len(group["params"])} parameters with lr {group["lr"]:.4g} '
                f'({group["lr_scale"]:.4g} of the full one), weight decay {decay}',
                logger='current',
            )
            params.append(group)


def _find_backbones(model: nn.Module) -> dict:
    """Find the backbones with a ``get_layer_depth``, by prefix of their parameters' names."""
    found = {
        name + '.': module
        for name, module in model.named_modules()
        if name.split('.')[-1] == 'backbone' and hasattr(module, 'get_layer_depth')
    }
    if not found:
        backbone = type(getattr(model, 'backbone', None)).__name__
        raise ValueError(
            'layer-wise decay needs a backbone with a method get_layer_depth; that of '
            f'{type(model).__name__} is {backbone}. Use coc_mm.ContextCluster, or take the '
            'constructor out of optim_wrapper.'
        )
    return found
