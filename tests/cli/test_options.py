import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coc_mm.cli import options

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path.relative_to(ROOT) for path in (ROOT / 'tools').rglob('*.py'))

# Before a tool is run, torch and what else is heavy is made absent; afterwards it prints the
# seconds of CPU it took.
HELP = """
import runpy, sys, time
for name in ('torch', 'mmcv', 'mmengine'):
    sys.modules[name] = None
sys.argv = [sys.argv[1], '--help']
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as stop:
    print(time.process_time(), file=sys.stderr)
    sys.exit(stop.code)
"""


@pytest.mark.parametrize('tool', TOOLS, ids=str)
def test_help_is_there_at_once(tool):
    done = subprocess.run(
        [sys.executable, '-c', HELP, tool],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'usage: {tool.name}')
    assert float(done.stderr) < 1


def test_tools_are_a_few_lines():
    assert len(TOOLS) >= 12
    assert max(len((ROOT / tool).read_text().splitlines()) for tool in TOOLS) <= 23


def _refused(capsys, parser, *argv):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_numbers_have_bounds(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument('--topk', type=options.at_least(1))
    parser.add_argument('--share', type=options.between(0, 1, float))
    args = parser.parse_args(['--topk', '1', '--share', '0.5'])
    assert (args.topk, args.share) == (1, 0.5)
    assert 'argument --topk: at least 1, got 0' in _refused(capsys, parser, '--topk', '0')
    assert "--topk: invalid int value: '1.5'" in _refused(capsys, parser, '--topk', '1.5')
    assert '--share: between 0 and 1, got 2' in _refused(capsys, parser, '--share', '2')


def test_shared_flags(capsys, monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    parser = options.make_parser('Do.', 'config', 'checkpoint?')
    options.add_cfg_options(parser)
    options.add_device(parser)
    options.add_shape(parser, 'of images', minimum=32)
    options.add_launcher(parser)
    args = parser.parse_args(['c.py'])
    assert vars(args) == dict(
        config='c.py', checkpoint=None, cfg_options=None, device=None, shape=None,
        launcher='none', local_rank=0,
    )  # fmt: skip
    assert os.environ['LOCAL_RANK'] == '0'
    argv = ['c.py', 'a.pth', '--shape', '64', '--local_rank=3']
    args = parser.parse_args([*argv, '--cfg-options', 'a=1', 'b=x', '--cfg-options', 'c=2'])
    assert (args.checkpoint, args.shape) == ('a.pth', (64, 64))
    assert args.cfg_options == dict(a=1, b='x', c=2)
    assert parser.parse_args(['c.py', '--shape', '64', '96']).shape == (64, 96)
    for shape in (['16'], ['64', '64', '64']):
        assert 'two numbers, at least 32' in _refused(capsys, parser, 'c.py', '--shape', *shape)
