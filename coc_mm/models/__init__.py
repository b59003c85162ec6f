"""Models, registered under the scope ``coc_mm``."""

from coc_mm.models.backbones import ContextCluster
