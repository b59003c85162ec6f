"""``tools/analysis_tools/model_complexity.py``: its table and what it refuses."""

import csv
import io

TOOL = 'analysis_tools/model_complexity'


def test_command(tool, capsys, refused, misused):
    main = tool(TOOL)
    assert main(['coc-tiny_*xb128_in1k', '--shape', '64', '96', '--csv']) == 0
    out = capsys.readouterr().out
    (row,) = csv.DictReader(io.StringIO(out[out.index('model,') :]))
    assert (row['model'], row['height'], row['width']) == ('coc-tiny_8xb128_in1k', '64', '96')
    assert row['parameters'] == '5570584'
    assert main(['coc-tiny_8xb128_in1k']) == 0
    out = capsys.readouterr().out
    for figure in ('coc-tiny_8xb128_in1k', '224x224', '5.6', '5.3', '1.0', 'whole model'):
        assert figure in out
    refused(TOOL, 'coc-tny', says=['did you mean'])
    for wrong in (['16'], ['64', '96', '128'], ['64', '16'], ['wide']):
        misused(TOOL, 'coc-tiny_8xb128_in1k', '--shape', *wrong, says='error: argument --shape')
