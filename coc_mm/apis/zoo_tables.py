"""The tables of ``docs/model_zoo.md``, written from the metafiles."""

from pathlib import Path

from coc_mm.apis.model_zoo import SCOPES, ModelEntry, entries

__all__ = ['tables', 'update_page']

_MARKS = '<!-- tables: python -m coc_mm.apis.zoo_tables -->', '<!-- end of tables -->'
_KINDS = ('paper', 'released', 'converted', 'reproduced')


def _metrics(found: list[ModelEntry]) -> list[str]:
    given = [row for entry in found for row in entry['Figures'].values() if row]
    return list(max(given, key=len, default={}))


def tables() -> str:
    """Write a table per family.

    Returns:
        str: Markdown; a cell that nobody measured is blank.
    """
    parts = []
    for task in SCOPES:
        found = [entry for entry in entries().values() if entry.task == task]
        metrics = _metrics(found)
        short = ' / '.join(metrics)
        head = ['model', 'parameters (M)', 'multiply-adds (G)', *_KINDS]
        rows = [head, ['---'] * len(head)]
        for entry in found:
            metadata = entry['Metadata']
            printed = metadata.get('Paper Parameters (M)')
            cost = metadata.get('Paper Multiply-adds (G)')
            rows.append(
                [
                    f'[{entry.name}](../{entry["Config"]})',
                    f'{metadata["Parameters"] / 1e6:.1f}' + (f' (paper {printed})' * bool(printed)),
                    f'{metadata["Multiply-adds"] / 1e9:.1f}' + (f' (paper {cost})' * bool(cost)),
                    *(
                        ' / '.join(str((entry['Figures'][kind] or {}).get(m, '')) for m in metrics)
                        if entry['Figures'][kind]
                        else ''
                        for kind in _KINDS
                    ),
                ]
            )
        lines = '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)
        parts.append(f'### {task.capitalize()}\n\nFigures: {short}.\n\n{lines}')
    return '\n\n'.join(parts)


def update_page(text: str) -> str:
    """Put fresh tables between the marks of a page.

    Args:
        text (str): The page.

    Returns:
        str: The page with the tables of today.
    """
    before, rest = text.split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    return f'{before}{_MARKS[0]}\n\n{tables()}\n\n{_MARKS[1]}{after}'


if __name__ == '__main__':
    page = Path(__file__).resolve().parents[2] / 'docs' / 'model_zoo.md'
    page.write_text(update_page(page.read_text()))
