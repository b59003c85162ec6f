"""Pack configs, tools and the model index into ``coc_mm/.mim``, as OpenMMLab packages do.

mmengine looks there for ``coc_mm::<config>`` and mim for tools and models. A wheel gets copies,
an editable install links into the checkout. Everything else is in setup.cfg.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TRAVELS = ('configs', 'tools', 'projects', 'model-index.yml')


class BuildPyWithMim(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            mim = ROOT / 'coc_mm' / '.mim'
            shutil.rmtree(mim, ignore_errors=True)
            mim.mkdir()
            for name in TRAVELS:
                (mim / name).symlink_to(os.path.relpath(ROOT / name, mim))
            return
        mim = Path(self.build_lib) / 'coc_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in TRAVELS:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, mim / name, ignore=shutil.ignore_patterns('__pycache__')
                )
            else:
                shutil.copy2(ROOT / name, mim / name)


setup(cmdclass={'build_py': BuildPyWithMim})
