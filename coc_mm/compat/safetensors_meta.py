"""Config and class names in ``.safetensors`` files.

mmengine reads the weights of such a file alone, which the inference functions of the task
libraries cannot use. Files of this package carry the rest in their header.
"""

from typing import Any


def read_with_meta(checkpoint: Any) -> None:
    """Let mmengine see what local ``.safetensors`` files hold beside weights.

    Args:
        checkpoint (module): ``mmengine.runner.checkpoint``.
    """
    checkpoint.CheckpointLoader.register_scheme(
        prefixes=r'(?!\w+:)[^?]*\.safetensors$', loader=load_from_local_safely, force=True
    )


def load_from_local_safely(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local file for mmengine, which logs the function's name after 'load_from_'.

    Args:
        filename (str): The file.
        map_location: Where tensors go, as in :func:`torch.load`. Defaults to None.

    Returns:
        dict: ``state_dict``, and ``meta`` where the file has it.
    """
    # While mmengine's module is being imported nothing that needs it can be.
    from coc_mm.checkpoints.io import load_checkpoint_safely

    return load_checkpoint_safely(filename, map_location)
