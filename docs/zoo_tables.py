"""Write the tables of ``model_zoo.md`` from the metafiles beside the configs."""

from pathlib import Path

from coc_mm.apis.model_zoo import SCOPES, entries, find_models

_PUBLISHED = '<!-- published: python docs/zoo_tables.py -->', '<!-- end of published -->'
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


def _published() -> str:
    """Tabulate what can be fetched by name."""
    head = ['model', 'source', 'figure', 'denominator', 'layout', 'file']
    rows = [head, ['---'] * len(head)]
    points = 'projects/point_cloud/metafile.yml'
    for entry in find_models(['all'], [str(Path(__file__).parents[1] / points)]):
        for name, x in entry.sources.items():
            used = x.get('Denominator') or ('' if x['Layout'] == 'pointcloud' else 'count')
            file = f'[{x["File"]}]({x["Address"]})'
            rows.append([entry.name, name, str(x['Figure']), used, x['Layout'], file])
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def update_page(text: str) -> str:
    """Put fresh tables, one per family, between the marks of ``docs/model_zoo.md``."""
    tables = '\n\n'.join(_table(task) for task in SCOPES)
    for (begin, end), new in ((_PUBLISHED, _published()), (_MARKS, tables)):
        before, rest = text.split(begin)
        text = f'{before}{begin}\n\n{new}\n\n{end}{rest.split(end)[1]}'
    return text


if __name__ == '__main__':
    page = Path(__file__).parent / 'model_zoo.md'
    page.write_text(update_page(page.read_text()))
