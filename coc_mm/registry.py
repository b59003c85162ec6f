"""The registries of the package, children of mmengine's, scope ``coc_mm``.

A config reaches them under any default scope with a scoped name such as
``type='coc_mm.ContextCluster'``. The modules that fill a registry are listed
in its ``locations`` and imported at the first look-up.
"""

from mmengine.registry import (
    DATA_SAMPLERS,
    LOOPS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS

__all__ = [
    'DATASETS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'TRANSFORMS',
    'WEIGHT_INITIALIZERS',
]


def _child(name, parent, locations):
    return Registry(name, parent=parent, scope='coc_mm', locations=locations)


MODELS = _child('model', MMENGINE_MODELS, ['coc_mm.models'])
DATASETS = _child('dataset', MMENGINE_DATASETS, ['coc_mm.datasets'])
TRANSFORMS = _child('transform', MMENGINE_TRANSFORMS, ['coc_mm.datasets'])
METRICS = _child('metric', MMENGINE_METRICS, ['coc_mm.engine'])
HOOKS = _child('hook', MMENGINE_HOOKS, ['coc_mm.engine', 'coc_mm.visualization.hook'])
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    'optimizer wrapper constructor', MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS, ['coc_mm.engine']
)
WEIGHT_INITIALIZERS = _child(
    'weight initializer', MMENGINE_WEIGHT_INITIALIZERS, ['coc_mm.checkpoints.pretrained']
)
# Under default_scope = 'coc_mm' mmengine warns of every kind without a child here. These hold
# nothing of ours, so a look-up goes on to mmengine's own.
for _parent in (
    DATA_SAMPLERS,
    LOOPS,
    OPTIMIZERS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
):
    _child(_parent.name, _parent, ['coc_mm.registry'])
