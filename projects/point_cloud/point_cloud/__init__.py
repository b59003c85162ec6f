"""Point clouds on the context-cluster operator: models, data, transforms, metric.

Importing it registers everything in the registries of scope ``coc_mm``; a config says
``custom_imports = dict(imports=['projects.point_cloud.point_cloud'])``.
"""

from projects.point_cloud.point_cloud import data, metric, models, official, ops

__all__ = ['data', 'metric', 'models', 'official', 'ops']
