"""What the documentation points at is there, and the README's code and commands work."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from coc_mm.apis import get_model
from coc_mm.cli.coc import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for folder in ('.', 'docs', 'benchmarks', 'projects', 'tools', 'configs')
    for path in (ROOT / folder).glob('*.md' if folder == '.' else '**/*.md')
)
GUIDES = [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]
README = (ROOT / 'README.md').read_text()
SCRIPTS = {f'tools/{script}': name for name, script in COMMANDS.items()}
NO_PARSER = {'tool', 'demo', 'points', 'point-clusters'}  # of other packages
WITHOUT_COMMANDS = {'api.md', 'code_tour.md', 'glossary.md', 'index.md'}


def test_there_are_pages():
    assert {'README.md', 'reliability.md'} <= {page.name for page in PAGES}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if not re.match(r'[a-z]+:|#', link):
            assert (page.parent / link.split('#')[0]).exists(), link


def test_the_tour_names_what_is_there():
    stops = re.findall(r'\[`(\w+)`\]\((\S+)#(\w+)\)', (ROOT / 'docs/code_tour.md').read_text())
    assert len(stops) == 10
    for shown, path, symbol in stops:
        assert shown == symbol
        code = (ROOT / 'docs' / path).read_text()
        assert re.search(rf'^ *(def {symbol}\(|class {symbol}\b|{symbol} = )', code, re.M), symbol


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    """With random weights in place of those that an earlier call would have fetched."""
    weights = get_model('coc-tiny_8xb128_in1k').state_dict()
    (tmp_path / 'checkpoints').mkdir()
    path = tmp_path / 'checkpoints' / 'coc-tiny_8xb128_in1k.pth'
    torch.save(dict(state_dict=weights, meta=dict(coc_mm=dict(source='openmixup'))), path)
    (tmp_path / 'docs').symlink_to(ROOT / 'docs')
    monkeypatch.chdir(tmp_path)
    blocks = re.findall('```python\n(.*?)```', README, re.S)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(names['found'].labels) == 5
    assert [tuple(x.shape) for x in names['maps']] == [
        (1, 64, 120, 160), (1, 128, 60, 80), (1, 320, 30, 40), (1, 512, 15, 20)
    ]  # fmt: skip


def test_the_code_about_clusters_runs():
    blocks = re.findall('```python\n(.*?)```', (ROOT / 'docs/clusters.md').read_text(), re.S)
    names = {}
    exec(blocks[-1], names)
    assert names['picture'].shape == (202, 202, 3)  # what the crop of testing leaves


def commands(page):
    """(command, flags) of what the shell blocks of a page call."""
    fenced = re.split(r'^```(\w*)$', page.read_text(), flags=re.M)
    for kind, block in zip(fenced[1::4], fenced[2::4], strict=True):
        if kind not in ('', 'bash', 'shell'):
            continue
        for line in block.replace('\\\n', ' ').splitlines():
            if re.search(r'\[-|\||<<', line):  # a synopsis, or more than one command
                continue
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words[:3]):
                if word == 'coc' and words[i + 1 :]:
                    yield words[i + 1], words[i + 2 :]
                    break
                if word in SCRIPTS:
                    yield SCRIPTS[word], words[i + 1 :]
                    break


@pytest.mark.parametrize('page', GUIDES, ids=lambda path: path.name)
def test_commands_are_understood(page):
    found = list(commands(page))
    assert found or page.name in WITHOUT_COMMANDS
    for name, argv in found:
        if name.startswith('-') or name in {'coc', '.'}:
            continue
        assert name in COMMANDS, name
        if name not in NO_PARSER:
            importlib.import_module(f'coc_mm.cli.{name}').parse(argv)


def test_commands_are_found():
    assert len(list(commands(ROOT / 'README.md'))) == 3
