"""What the command line tools do, importable: run a config, load a model, predict.

Nothing here imports a task library when the package is imported; each function
imports the one that its config names.
"""

__all__ = ['get_model', 'list_models', 'predict']


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if name == 'predict':
        from coc_mm.apis.predictions import predict

        return predict
    from coc_mm.apis import model_zoo

    return getattr(model_zoo, name)
