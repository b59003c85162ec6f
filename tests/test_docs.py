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
