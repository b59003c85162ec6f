"""``coc COMMAND``: every command is there, says what it takes at once, and ends with its status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coc_mm.cli.coc import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
# Without torch and what else is heavy; prints the seconds of CPU at the end.
HELP = """
import sys, time
for name in ('torch', 'mmcv', 'mmengine', 'cv2'):
    sys.modules[name] = None
from coc_mm.cli.coc import main
try:
    sys.exit(main(sys.argv[1:]))
finally:
    print(time.process_time(), file=sys.stderr)
"""


@pytest.mark.parametrize(
    'argv', [['--help'], *([name, '--help'] for name in COMMANDS)], ids=' '.join
)
def test_help_is_there_at_once(argv, tmp_path):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, '-c', HELP, *argv], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(' '.join(['usage: coc', *argv[:-1]]))
    assert float(done.stderr) < 1


def test_every_script_of_tools_is_a_command():
    scripts = {path.relative_to(ROOT / 'tools').as_posix() for path in ROOT.glob('tools/**/*.py')}
    assert scripts == set(COMMANDS.values())


@pytest.mark.parametrize(
    ('argv', 'says'),
    [(['trian'], 'did you mean train?'), (['zzz'], 'commands are train, test, infer')],
)
def test_unknown_commands_are_refused(argv, says, capsys):
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def test_the_status_is_that_of_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', sys.argv)
    assert main(['train', 'missing.py']) == 2
    assert 'missing.py does not exist' in capsys.readouterr().err
    assert main(['--version']) == 0
    assert capsys.readouterr().out.startswith('coc_mm ')
