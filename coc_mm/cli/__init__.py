"""One file per command: ``parse`` its flags, ``run`` it, ``main`` for its exit status.

Nothing of torch or OpenMMLab is imported before the flags are parsed, so that ``--help`` is
there at once.
"""
