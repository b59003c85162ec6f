"""Fully sharded data parallelism: units of a model, and a strategy that resumes."""

from mmengine._strategy.fsdp import FSDPStrategy
from mmengine.device import get_device
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from coc_mm.models.layers import ContextClusterBlock


def wrap_context_cluster_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Make each block a unit of FSDP; the rest (stem, reducers, norms, neck, heads) is one more.

    ``auto_wrap_policy`` of mmengine's ``MMFullyShardedDataParallel``, named in a config as
    ``'coc_mm.engine.fsdp.wrap_context_cluster_blocks'``.
    """
    return transformer_auto_wrap_policy(module, recurse, nonwrapped_numel, {ContextClusterBlock})


class ResumableFSDPStrategy(FSDPStrategy):
    """``FSDPStrategy`` whose runs can be resumed, also from and by runs without FSDP.

    mmengine's own (0.10) passes the optimizer's state in the argument order of torch before 2.1,
    with a group that has no weights where a config has ``paramwise_cfg``, and drops the loss scale
    of AMP. Named in a config as ``'coc_mm.engine.fsdp.ResumableFSDPStrategy'``, with
    ``state_dict_cfg='full'`` and the default ``use_orig_params=True``.
    """

    def _init_state_dict_cfg(self, state_dict_cfg: str | dict) -> None:
        super()._init_state_dict_cfg(state_dict_cfg)
        device = (self.model_wrapper or {}).get('device_id', get_device())
        # torch up to 2.11 frees weights that it offloads from CPU to CPU, and reads them after.
        if str(device).startswith('cpu'):
            self.state_dict_config.offload_to_cpu = False

    def optim_state_dict(self) -> dict:
        """Gather the state of the optimizer, keyed by the names of weights, on rank 0."""
        own = self.optim_wrapper.state_dict()
        extras = {key: own[key] for key in own.keys() - {'state', 'param_groups'}}
        found = FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer)
        return {**found, **extras}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Shard and load a full state, keyed by names or, from a run without FSDP, by numbers."""
        extras = {key: state_dict[key] for key in state_dict.keys() - {'state', 'param_groups'}}
        loaded = FullyShardedDataParallel.optim_state_dict_to_load(
            self.model, self.optim_wrapper.optimizer, self._by_name(state_dict)
        )
        self.optim_wrapper.load_state_dict({**loaded, **extras})

    def _by_name(self, state_dict: dict) -> dict:
        """Key a state by the names of weights; numbers count them in the optimizer's order."""
        names = {}
        for name, weight in self.model.named_parameters():
            name = name.replace('_fsdp_wrapped_module.', '')
            names[id(weight)] = name.replace('_checkpoint_wrapped_module.', '')
        saved = state_dict['param_groups']
        groups = self.optim_wrapper.optimizer.param_groups
        if [len(group['params']) for group in saved] != [len(group['params']) for group in groups]:
            raise ValueError(
                'the checkpoint to resume has other groups of weights in its optimizer: resume '
                'with the optim_wrapper that it was trained with.'
            )
        new = {}
        for old, group in zip(saved, groups, strict=True):
            for key, weight in zip(old['params'], group['params'], strict=True):
                new[key] = key if isinstance(key, str) else names[id(weight)]
        return dict(
            state={new[key]: value for key, value in state_dict['state'].items()},
            param_groups=[dict(old, params=[new[key] for key in old['params']]) for old in saved],
        )
