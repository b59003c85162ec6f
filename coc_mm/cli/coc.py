"""``coc COMMAND``: the scripts of ``tools/`` under one name, from any folder."""

import ast
import difflib
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from coc_mm.errors import UserError, run_command
from coc_mm.utils.package_files import zoo_root
from coc_mm.version import __version__

#: Command -> script below ``tools``.
COMMANDS = {
    'train': 'train.py',
    'test': 'test.py',
    'infer': 'infer.py',
    'clusters': 'visualization/clusters.py',
    'export': 'deployment/export.py',
    'serve': 'deployment/serve.py',
    'benchmark': 'analysis_tools/benchmark.py',
    'complexity': 'analysis_tools/model_complexity.py',
    'prepare': 'dataset_converters/prepare.py',
    'convert': 'model_converters/official_to_coc_mm.py',
    'download': 'model_converters/download.py',
    'publish': 'model_converters/publish.py',
    'models': 'models.py',
    'tool': 'tool.py',
    'quickstart': 'quickstart.py',
    'demo': 'demo.py',
    'points': 'points.py',
    'point-clusters': 'visualization/point_clusters.py',
}


def _usage(tools: Path) -> str:
    lines = ['usage: coc COMMAND ...   (coc COMMAND --help shows its flags)', '']
    for name, script in COMMANDS.items():
        about = ast.get_docstring(ast.parse((tools / script).read_text())) or ''
        lines.append(f'  {name:<15} {about.splitlines()[0]}')
    return '\n'.join(lines)


def _find(name: str) -> Path:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f'did you mean {near[0]}?' if near else f'commands are {", ".join(COMMANDS)}.'
        raise UserError(f'coc has no command {name!r}; {hint}')
    return zoo_root() / 'tools' / COMMANDS[name]


def _run(argv: Sequence[str]) -> int:
    if argv[0] in ('-h', '--help', 'help'):
        print(_usage(zoo_root() / 'tools'))
        return 0
    if argv[0] == '--version':
        print(f'coc_mm {__version__}')
        return 0
    script = _find(argv[0])
    spec: Any = spec_from_file_location(f'coc_{script.stem}', script)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.argv = [f'coc {argv[0]}', *argv[1:]]  # argparse names the program by the first
    return module.main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status."""
    statuses: list[int] = []
    argv = (sys.argv[1:] if argv is None else argv) or ['--help']
    status = run_command(lambda _: statuses.append(_run(argv)))
    return statuses[0] if statuses else status


if __name__ == '__main__':  # torchrun -m coc_mm.cli.coc train ...
    raise SystemExit(main())
