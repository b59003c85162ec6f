"""What the command line tools do, importable: run a config, load a model, predict.

Nothing here imports a task library when the package is imported; each function
imports the one that its config names.
"""
