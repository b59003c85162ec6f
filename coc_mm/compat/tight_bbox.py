"""mmpretrain's browse_dataset beside matplotlib 3.11, which asks for the renderer, too."""

import inspect
from typing import Any


def find_renderer(module: Any) -> None:
    """Let ``adjust_bbox`` of ``matplotlib._tight_bbox`` take the figure's own renderer."""
    adjust = module.adjust_bbox
    if 'renderer' not in inspect.signature(adjust).parameters:
        return

    def adjust_bbox(fig: Any, bbox_inches: Any, renderer: Any = None, *args: Any) -> Any:
        return adjust(fig, bbox_inches, renderer or fig.canvas.get_renderer(), *args)

    module.adjust_bbox = adjust_bbox
