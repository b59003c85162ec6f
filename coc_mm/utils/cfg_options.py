"""Values of ``--cfg-options KEY=VALUE``, read as mmengine's ``DictAction`` does, less its traps."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

_CLOSES = {')': '(', ']': '['}
_WORDS = {'true': True, 'false': False}


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` pairs into a dict."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not (key and equals):
            raise ValueError(f'expected KEY=VALUE, got {pair!r}')
        options[key] = parse_value(value)
    return options


def parse_value(text: str) -> Any:
    """Read a number, True, False, None, a text, or a list or tuple of them.

    ``1,2`` and ``[1,2]`` are lists, ``(1,2)`` is a tuple, and both nest. A quoted value is a text
    as it stands, and so are a path that exists and ``007``; double quotes around brackets make a
    list, as mmengine writes it: ``"[(a,b),(c,d)]"``.
    """
    text = text.strip()
    if text[:1] in ('"', "'") and text.find(text[0], 1) == len(text) - 1:
        quote, text = text[0], text[1:-1]
        brackets = text[:1] in _CLOSES.values() and len(_split(text)) == 1 and text[-1] in _CLOSES
        if quote == "'" or not brackets:
            return text
    if re.match(r'\{|dict\(', text):
        raise ValueError(f'lists, tuples, numbers and text can be given here, not {text}')
    bracketed = text[:1] + text[-1:] in ('()', '[]')
    if not bracketed and ',' not in text:
        return _parse_scalar(text)
    if os.path.exists(os.path.expanduser(text)):
        return text
    elements = _split(text)
    if len(elements) == 1 and not bracketed:
        return text
    is_tuple = len(elements) == 1 and text[0] == '('
    elements = _split(text[1:-1]) if len(elements) == 1 else elements
    return (tuple if is_tuple else list)(parse_value(x) for x in elements if x)


def _parse_scalar(text: str) -> Any:
    for kind in (int, float) if not re.match(r'[+-]?0\d', text) else ():
        with suppress(ValueError):
            return kind(text)
    return None if text == 'None' else _WORDS.get(text.lower(), text)


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets and quotes."""
    elements, opened, quote, start = [], [], '', 0
    for i, char in enumerate(text):
        if quote:
            quote = '' if char == quote else quote
        elif char in '"\'' and text[:i].rstrip()[-1:] in ('', ',', '(', '['):
            quote = char
        elif char in _CLOSES.values():
            opened.append(char)
        elif char in _CLOSES and (not opened or opened.pop() != _CLOSES[char]):
            raise ValueError(f'brackets do not match in {text}')
        elif char == ',' and not opened:
            elements.append(text[start:i].strip())
            start = i + 1
    if opened or quote:
        raise ValueError(f'{"quotes" if quote else "brackets"} do not match in {text}')
    return [*elements, text[start:].strip()]
