"""Write the tables of ``model_zoo.md`` from the metafiles beside the configs."""

from pathlib import Path

from coc_mm.apis.model_zoo import SCOPES, entries

_MARKS = '<!-- tables: python docs/zoo_tables.py -->', '<!-- end of tables -->'
_KINDS = ('paper', 'released', 'converted', 'reproduced')


def _table(task: str) -> str:
    found = [entry for entry in entries().values() if entry.task == task]
    given = [row for entry in found for row in entry['Figures'].values() if row]
    metrics = list(max(given, key=len, default={}))
    head = ['model', 'parameters (M)', 'multiply-adds (G)', *_KINDS]
    rows = [head, ['---'] * len(head)]
    for entry in found:
        metadata = entry['Metadata']
        costs = []
        for key, unit in (('Parameters', 1e6), ('Multiply-adds', 1e9)):
            printed = metadata.get(f'Paper {key} ({"M" if unit == 1e6 else "G"})')
            costs.append(f'{metadata[key] / unit:.1f}' + (f' (paper {printed})' if printed else ''))
        figures = [
            ' / '.join(str(entry['Figures'][kind].get(metric, '')) for metric in metrics)
            if entry['Figures'][kind]
            else ''
            for kind in _KINDS
        ]
        rows.append([f'[{entry.name}](../{entry["Config"]})', *costs, *figures])
    lines = '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)
    return f'### {task.capitalize()}\n\nFigures: {" / ".join(metrics)}.\n\n{lines}'


def update_page(text: str) -> str:
    """Put fresh tables, one per family, between the marks of ``docs/model_zoo.md``."""
    before, rest = text.split(_MARKS[0])
    tables = '\n\n'.join(_table(task) for task in SCOPES)
    return f'{before}{_MARKS[0]}\n\n{tables}\n\n{_MARKS[1]}{rest.split(_MARKS[1])[1]}'


if __name__ == '__main__':
    page = Path(__file__).parent / 'model_zoo.md'
    page.write_text(update_page(page.read_text()))
