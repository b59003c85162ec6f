"""Pack configs, tools, projects and the model index into ``coc_mm/.mim``, as OpenMMLab packages do.

mmengine looks there for ``coc_mm::<config>`` and mim for tools and models. A wheel gets copies,
an editable install links into the checkout. For ``read_base`` each config gets a module in
``coc_mm/configs``, dashes of its name as underscores. Everything else is in setup.cfg.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TRAVELS = ('configs', 'tools', 'projects', 'model-index.yml')
MODULE = """from os.path import dirname

from mmengine.config import Config

globals().update(Config.fromfile(f'{dirname(__file__)}/../../.mim/%s').to_dict())
del Config, dirname
"""


class BuildPyWithMim(build_py):
    def run(self):
        super().run()
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / 'coc_mm'
        mim = package / '.mim'
        for folder in (mim, package / 'configs'):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for name in TRAVELS:
            if self.editable_mode:
                (mim / name).symlink_to(os.path.relpath(ROOT / name, mim))
            elif (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, mim / name, ignore=ignore)
            else:
                shutil.copy2(ROOT / name, mim / name)
        for path in (ROOT / 'configs').glob('[!_]*/*.py'):
            module = package / 'configs' / path.parent.name / path.name.replace('-', '_')
            module.parent.mkdir(exist_ok=True)
            module.write_text(MODULE % path.relative_to(ROOT).as_posix())


setup(cmdclass={'build_py': BuildPyWithMim})
