import pytest

from coc_mm.utils.cfg_options import parse_options, parse_value


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1', 1),
        ('-1e-4', -1e-4),
        ('true', True),
        ('None', None),
        ('', ''),
        ('007', '007'),
        ('1,2', [1, 2]),
        ('1,', [1]),
        ('[]', []),
        ('()', ()),
        ('(a, 2)', ('a', 2)),
        ('[(1, 2), [a, b], c]', [(1, 2), ['a', 'b'], 'c']),
        ('(a),(b)', [('a',), ('b',)]),
        ('my photos', 'my photos'),
        ('dog(big, brown)', 'dog(big, brown)'),
        ("it's", "it's"),
        ("'1,2'", '1,2'),
        ("'[background]'", '[background]'),
        ("'(a, b)'", '(a, b)'),
        ("'7'", '7'),
        ('"[2,2]"', [2, 2]),
        ("['my photos, 2024', x y]", ['my photos, 2024', 'x y']),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_path_that_exists_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('photos, 2024', '[a]', '(1, 2)'):
        (tmp_path / name).mkdir()
        assert parse_value(name) == name
        assert parse_value(str(tmp_path / name)) == str(tmp_path / name)
    (tmp_path / '7').touch()
    assert parse_value('7') == 7


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('[1,2', 'brackets do not match'),
        ('"[1,2"', 'brackets do not match'),
        ('1,2]', 'brackets do not match'),
        ('(a)(b)', 'brackets do not match'),
        ("['a,b]", 'quotes do not match'),
        ('dict(a=1,b=2)', 'not dict'),
    ],
)
def test_values_that_cannot_be_read(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_value(text)


def test_pairs():
    assert parse_options(['a.b=1', 'c==x']) == {'a.b': 1, 'c': '=x'}
    for pair in ('a', '=1'):
        with pytest.raises(ValueError, match='expected KEY=VALUE'):
            parse_options([pair])
