"""When a block may use the weights of its modules without calling them."""

from collections.abc import Iterable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as global_hooks

from coc_mm.ops.regions import is_transformed

_PLAIN = (torch.Tensor, nn.Parameter)
_TRACED = (*_PLAIN, FakeTensor, FunctionalTensor)  # what compilers and exporters put in their place


def can_bypass(x: torch.Tensor, modules: Iterable[nn.Module], classes: tuple[type, ...]) -> bool:
    """Say whether nobody can notice that modules are not called, only their weights used.

    So not where anything observes, replaces, adapts, shards, quantizes, transforms or traces one
    of them: hooks, also global ones; another class, also a subclass; a ``forward`` of the
    instance; weights that are not plain tensors; ``torch.func``, forward AD, ``torch.jit.trace``,
    dispatch modes, fake and meta tensors. Compilers are no obstacle. ``modules`` are looked at with
    all their children; ``classes`` are those known to do what is done in their place.
    """
    compiling = torch.compiler.is_compiling()
    plain = _TRACED if compiling else _PLAIN
    if not compiling and (
        type(x) not in plain
        or x.is_meta
        or is_transformed()
        or torch._C._len_torch_dispatch_stack()
    ):
        return False
    if (
        global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
    ):
        return False
    for module in modules:
        for part in (module, *module._modules.values()):
            if part is None or type(part) not in classes:
                return False
            if part._forward_hooks or part._forward_pre_hooks:
                return False
            if part._backward_hooks or part._backward_pre_hooks or 'forward' in part.__dict__:
                return False
            for weight in part._parameters.values():
                if type(weight) not in plain and (weight is not None or type(part) is nn.Linear):
                    return False
    return True
