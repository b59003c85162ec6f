"""The pinned versions leave room for another torch than the pinned one."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What releases between the oldest supported one and the pinned one allow in a range that ends.
# torch 2.6 asks for one sympy, 2.11 for setuptools before 82; torchvision and triton are its own.
BOUND = {'torch', 'torchvision', 'triton', 'sympy', 'setuptools'}


def left_out(path):
    """Names that a recipe leaves out of the pins where another torch is wanted."""
    (names,) = re.findall(r"grep -viE '\^\(([\w|]+)\)=='", (ROOT / path).read_text())
    return set(names.split('|'))


@pytest.mark.parametrize('recipe', ['Makefile', '.ci/oldest_torch.sh'])
def test_pins_that_bind_torch_are_left_out(recipe):
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pinned = {line.partition('==')[0].lower() for line in lines if '==' in line}
    asked = [line.partition(';')[0] for line in (requires('torch') or ()) if 'extra ==' not in line]
    bound = {re.match(r'[\w-]+', line)[0].lower() for line in asked if re.search('==|~=|<', line)}
    assert (BOUND | (bound & pinned)) <= left_out(recipe)
