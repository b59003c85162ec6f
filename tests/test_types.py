"""What is public says its types; the checker itself runs with the linter."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / 'coc_mm'
# Triton reads the annotations of kernels as its own and takes everything else as it comes.
KERNELS = PACKAGE / 'ops' / 'backends' / 'triton_kernels'


def public_functions(body, owner=''):
    """Yield (name, node, whether the first argument is the object) of a module or class."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            yield from public_functions(node.body, f'{node.name}.')
        elif isinstance(node, ast.FunctionDef) and (
            node.name == '__init__' or not node.name.startswith('_')
        ):
            static = any(getattr(x, 'id', None) == 'staticmethod' for x in node.decorator_list)
            yield owner + node.name, node, bool(owner) and not static


def missing_types(node, method):
    """List what has no type: arguments, ``return``."""
    given = node.args
    named = [*given.posonlyargs, *given.args][method:] + given.kwonlyargs
    named += [extra for extra in (given.vararg, given.kwarg) if extra is not None]
    lacking = [argument.arg for argument in named if argument.annotation is None]
    # A constructor with typed arguments is known to return nothing.
    constructor = node.name == '__init__' and named
    return lacking + (['return'] if node.returns is None and not constructor else [])


def test_public_functions_have_types():
    visited, lacking = 0, {}
    for path in sorted(PACKAGE.rglob('*.py')):
        if '.mim' in path.parts or path.is_relative_to(KERNELS):
            continue
        for name, node, method in public_functions(ast.parse(path.read_text()).body):
            visited += 1
            if missing := missing_types(node, method):
                lacking[f'{path.relative_to(PACKAGE)}: {name}'] = missing
    assert visited > 250
    assert not lacking, '\n'.join(f'{name} {missing}' for name, missing in lacking.items())


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / 'py.typed').is_file()
