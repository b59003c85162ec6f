"""The official PointMLP with context clusters, as a layout of weights to convert.

Its weights keep their names: the model here is the official one, module by module.
"""

import re
from pathlib import Path

from coc_mm.apis.config import load_config
from coc_mm.apis.convert import dataset_meta_of
from coc_mm.checkpoints.official import Layout, Official, register_layout

_CONFIG = Path(__file__).parents[1] / 'configs' / 'pointmlp-coc_1xb32-250e_scanobjectnn.py'
# One-center clusters in front of each residual block.
_CLUSTER = r'(?:pre|pos)_blocks_list\.\d+\.operation\.\d+\.'
_NORM = r'(?:weight|bias|running_mean|running_var|num_batches_tracked)'
_NAMES = re.compile(
    rf'embedding\.net\.(?:0\.(?:weight|bias)|1\.{_NORM})'
    r'|local_grouper_list\.\d+\.affine_(?:alpha|beta)'
    rf'|pre_blocks_list\.\d+\.transfer\.net\.(?:0\.(?:weight|bias)|1\.{_NORM})'
    rf'|{_CLUSTER}(?:sim_alpha|sim_beta|(?:fc1|fc2|fc_v)\.(?:weight|bias))'
    rf'|{_CLUSTER}net\d\.(?:0\.(?:weight|bias)|\d\.{_NORM})'
    rf'|classifier\.\d+\.{_NORM}'
)


def _target(official: Official):
    """Give the config of the model with as many classes as the last layer has."""
    config = load_config(str(_CONFIG))
    last = max(
        (name for name in official.weights if name.startswith('classifier.')),
        key=lambda name: int(name.split('.')[1]),
    )
    classes = len(official.weights[last])
    meta = dataset_meta_of(config)
    if classes != config.model.num_classes:
        meta = dict(classes=[str(i) for i in range(classes)])
        config.model.num_classes = classes
    return config, meta, 'pointMLP_CoC'


register_layout(
    Layout(
        'pointcloud',
        sign=_CLUSTER + r'fc_v\.',
        task='point_cloud',
        keeps=lambda name: _NAMES.fullmatch(name) is not None,
        target=_target,
    )
)
