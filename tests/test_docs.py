"""What the documentation points at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for folder in ('.', 'docs', 'benchmarks', 'projects', 'tools', 'configs')
    for path in (ROOT / folder).glob('*.md' if folder == '.' else '**/*.md')
)


def test_there_are_pages():
    assert {'README.md', 'reliability.md'} <= {page.name for page in PAGES}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if not re.match(r'[a-z]+:|#', link):
            assert (page.parent / link.split('#')[0]).exists(), link


def test_what_is_promised_names_tests_that_exist():
    text = (ROOT / 'docs' / 'reliability.md').read_text()
    sources = {path.stem: path.read_text() for path in (ROOT / 'tests').rglob('*.py')}
    files = set(re.findall(r'(?:tests/[\w/]+/)?(test_\w+)\.py', text))
    assert files <= set(sources)
    names = set(re.findall(r'\b(test_\w+)\b(?!\.py)', text)) - files
    assert len(names) > 80
    everything = '\n'.join(sources.values())
    assert [name for name in sorted(names) if f'def {name}(' not in everything] == []
