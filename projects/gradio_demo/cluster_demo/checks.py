"""What a request to the queue may say; one sentence about everything else."""

import json
import math
import re
from pathlib import Path

from gradio import components

__all__ = ['RefusedError', 'check_event', 'file_inside', 'read_json']

_SESSION = re.compile(r'[A-Za-z0-9_-]{1,64}')
_LONGEST = 200  # characters of a text, items of a list
_FILE = {'_type': 'gradio.FileData'}
# The page moves the ends of these sliders to the chosen model; handlers take the nearest value.
_MOVING = ('stage', 'block', 'head')
_MOST = 9999


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status (int): Of HTTP.
        message (str): For who sent it.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def read_json(body: bytes) -> dict:
    """Decode the body of a request.

    Args:
        body (bytes): JSON, UTF-8.

    Returns:
        dict: The outermost object.

    Raises:
        RefusedError: The body is something else.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, 'The request is not JSON.') from None
    if not isinstance(found, dict):
        raise RefusedError(400, 'The request is not a JSON object.')
    return found


def file_inside(path: str, folder: Path) -> Path:
    """Resolve a path that somebody names.

    Args:
        path (str): As it was sent.
        folder (Path): In which it must lie, its links followed.

    Returns:
        Path: A regular file.

    Raises:
        RefusedError: There is none inside of the folder.
    """
    try:
        found = Path(path).resolve(strict=True)
        allowed = found.is_relative_to(folder.resolve()) and found.is_file()
    except (OSError, ValueError, RuntimeError):
        allowed = False
    if not allowed or not Path(path).is_absolute():
        raise RefusedError(403, 'There is no such file here.')
    return found


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise RefusedError(400, f'{what} cannot be used.')


def _number(value, low: float, high: float, what: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        raise RefusedError(400, f'{what} must be a number from {low:g} to {high:g}.')
    return value


def _image(value, folder: Path):
    """A file that was uploaded before; never an address, which would be fetched."""
    if value is None:
        return None
    _need(isinstance(value, dict) and isinstance(value.get('path'), str), 'The image')
    path = file_inside(value['path'], folder)
    name = value.get('orig_name')
    return dict(path=str(path), orig_name=str(name)[:_LONGEST] if name else path.name, meta=_FILE)


def _value(block, value, folder: Path):
    """Check the value of a control against what it can be set to."""
    what = f'The value of {getattr(block, "label", None) or "a control"!r}'
    if isinstance(block, components.Slider):
        moving = str(block.elem_id).split('-')[0] in _MOVING
        low, high = (0, _MOST) if moving else (block.minimum, block.maximum)
        return _number(value, low, high, what)
    if isinstance(block, components.Dropdown):
        choices = [choice for _, choice in block.choices]
        if not isinstance(value, (str, int)) or value not in choices:
            raise RefusedError(400, f'{what} is none of the list; choose one of it.')
    elif isinstance(block, components.CheckboxGroup):
        choices = [choice for _, choice in block.choices]
        _need(isinstance(value, list) and len(value) <= len(choices), what)
        _need(all(isinstance(item, str) and item in choices for item in value), what)
    elif isinstance(block, components.Checkbox):
        _need(isinstance(value, bool), what)
    elif isinstance(block, components.Dataset):
        _number(value, 0, len(block.samples) - 1, 'The number of the example')
        _need(value == int(value), 'The number of the example')
        return int(value)
    elif isinstance(block, components.Image):
        return _image(value, folder)
    else:
        return None  # what the server itself remembers
    return value


def _place(event) -> dict:
    """Where a picture was clicked."""
    index = event.get('index') if isinstance(event, dict) else None
    _need(isinstance(index, list) and len(index) == 2, 'The place of the click')
    places = [_number(value, 0, 2**16, 'The place of the click') for value in index]
    return dict(index=places, value=None)


def check_event(page, body: dict, folder: Path) -> dict:
    """Check a request to the queue before gradio sees it.

    Args:
        page (gr.Blocks): Whose functions are called.
        body (dict): As it was sent.
        folder (Path): Where uploads are.

    Returns:
        dict: What of it is passed on.

    Raises:
        RefusedError: It names no session or function of the page, or values that its
            controls do not have.
    """
    session, number = body.get('session_hash'), body.get('fn_index')
    _need(isinstance(session, str) and bool(_SESSION.fullmatch(session)), 'The session')
    known = isinstance(number, int) and not isinstance(number, bool) and number in page.fns
    if not known:
        raise RefusedError(404, 'There is no such function here.')
    function, data = page.fns[number], body.get('data')
    if not isinstance(data, list) or len(data) != len(function.inputs):
        raise RefusedError(400, f'The function takes {len(function.inputs)} values.')
    values = [
        _value(block, value, folder) for block, value in zip(function.inputs, data, strict=True)
    ]
    trigger = body.get('trigger_id')
    trigger = trigger if type(trigger) is int and trigger in page.blocks else None
    event = _place(body.get('event_data')) if function.collects_event_data else None
    return dict(
        session_hash=session, fn_index=number, data=values, trigger_id=trigger, event_data=event
    )
