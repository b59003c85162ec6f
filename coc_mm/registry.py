"""The registries of the package, children of mmengine's, scope ``coc_mm``.

A config reaches them under any default scope with a scoped name such as
``type='coc_mm.ContextCluster'``. The modules that fill a registry are listed
in its ``locations`` and imported at the first look-up.
"""

from mmengine import registry
from mmengine.registry import Registry


def _child(kind: str, *locations: str) -> Registry:
    parent = getattr(registry, kind)
    places = [f'coc_mm.{location}' for location in locations]
    return Registry(parent.name, parent=parent, scope='coc_mm', locations=places)


DATASETS = _child('DATASETS', 'datasets')
HOOKS = _child('HOOKS', 'engine', 'visualization.hook')
METRICS = _child('METRICS', 'apis.dump_predictions')
MODELS = _child('MODELS', 'models')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'engine.cpu_amp')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'engine')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS', 'engine.warmup')
TRANSFORMS = _child('TRANSFORMS', 'registry')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS', 'checkpoints.pretrained')
# Under default_scope = 'coc_mm' mmengine warns of every kind without a child here. These hold
# nothing of ours, so a look-up goes on to mmengine's own.
for _kind in (
    'DATA_SAMPLERS',
    'LOOPS',
    'OPTIMIZERS',
    'VISBACKENDS',
    'VISUALIZERS',
):
    _child(_kind, 'registry')
