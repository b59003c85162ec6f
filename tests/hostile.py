"""Pickles that call functions, for tests of what reads them."""

import codecs
import importlib
import operator
import os
import pickle
import runpy
import shutil
import subprocess

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


class Call:
    """Pickled as a call, and a state set on its result."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


# Each would leave a file or folder RUN, or read one.
GADGETS = {
    'os.system': Call(os.system, 'touch RUN'),
    'os.mkdir': Call(os.mkdir, 'RUN'),
    'subprocess': Call(subprocess.check_output, ['touch', 'RUN']),
    'exec': Call(exec, "open('RUN', 'w')"),
    'eval': Call(eval, "open('RUN', 'w')"),
    'open': Call(open, 'RUN', 'w'),
    'runpy': Call(runpy.run_path, 'RUN.py'),
    'import_module': Call(importlib.import_module, 'this'),
    'operator': Call(operator.methodcaller, 'system', 'touch RUN'),
    'rmtree': Call(shutil.rmtree, '.'),
    'codecs': Call(codecs.open, 'RUN', 'w'),
    'pickle again': Call(pickle.loads, pickle.dumps(Call(os.mkdir, 'RUN'))),
    'torch.load': Call(torch.load, 'RUN.pth'),
    'numpy.load': Call(np.load, 'RUN.npy'),
    'memmap': Call(np.memmap, 'RUN', np.uint8, 'w+', 0, (1,)),
    'a method of HistoryBuffer': Call(getattr, HistoryBuffer, '__init__'),
    'attribute of a result': Call(getattr, dict, 'fromkeys'),
}
