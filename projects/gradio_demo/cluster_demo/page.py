"""The page: what is where, and what happens when something is chosen."""

import html
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from coc_mm.errors import UserError

from .desk import SIZES, Choice, Desk
from .view import MARKS

__all__ = ['CSS', 'THEME', 'build_page']

# Fonts that every machine has: gradio's own themes fetch theirs from Google.
THEME = gr.themes.Default(
    primary_hue='teal',
    neutral_hue='slate',
    font=['system-ui', 'Segoe UI', 'sans-serif'],
    font_mono=['ui-monospace', 'monospace'],
    spacing_size='sm',
    radius_size='sm',
)

CSS = """
.gradio-container { max-width: 1560px !important; margin: 0 auto; }
#title h1 { margin: 0.2em 0 0; font-size: 1.5rem; }
#title p { margin: 0.1em 0 0.4em; opacity: 0.8; }
.message:not(:has(p)), .point:not(:has(p)) { display: none !important; }
.remark:not(:has(p)):not(:has(li)) { display: none !important; }
.message p { margin: 0; padding: 0.5em 0.75em; border-left: 4px solid #c2410c;
  background: color-mix(in srgb, #c2410c 12%, transparent); border-radius: 3px; }
.remark p { margin: 0; font-size: 0.85rem; opacity: 0.75; }
.found ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 0.2em 1.1em; }
.found li { font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.found li span { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.4em;
  border-radius: 2px; vertical-align: -0.1em; }
.facts { font-size: 0.85rem; }
.point p { margin: 0.2em 0 0.5em; }
.point .hint { opacity: 0.75; }
.point table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  border: 0 !important; }
.point caption { text-align: left; font-weight: 600; padding-bottom: 0.2em; }
.point th, .point td { text-align: right; padding: 0.12em 0.5em; font-size: 0.85rem;
  border: 0 !important;
  border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent) !important; }
.point table * { border-left: 0 !important; border-right: 0 !important; }
.sliders .form { flex-wrap: wrap; }
.sliders .form > * { flex: 1 1 170px; min-width: 170px !important; }
.point tr.chosen td { font-weight: 700;
  background: color-mix(in srgb, #0d9488 18%, transparent); }
.overlay img { cursor: crosshair; }
"""

_ORIGINAL = "the model's own"


def _message(text: str) -> str:
    return f'<p role="alert">{html.escape(text)}</p>' if text else ''


def _range(name: str, count: int, value: int) -> dict:
    """A slider over what the model has; greyed out where there is but one."""
    said = f'0-{count - 1}' if count > 1 else 'only 0'
    return dict(
        minimum=0,
        maximum=max(count - 1, 1),
        value=value,
        step=1,
        label=f'{name}, {said}',
        interactive=count > 1,
        buttons=[],
    )


def _panel(labels: Sequence[str], side: str, shown: bool) -> SimpleNamespace:
    """One view of one model."""
    ui = SimpleNamespace(side=side)
    with gr.Column(visible=shown, min_width=320, elem_id=f'panel-{side}') as ui.column:
        ui.model = gr.Dropdown(
            list(labels),
            value=labels[0],
            label='Model' if side == 'a' else 'Second model',
            elem_id=f'model-{side}',
        )
        ui.message = gr.HTML(elem_id=f'message-{side}', elem_classes='message', padding=False)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                ui.overlay = gr.Image(
                    label='Clusters',
                    type='filepath',
                    format='png',
                    height=440,
                    interactive=False,
                    buttons=['fullscreen'],
                    alt_text='The image with its clusters painted over',
                    elem_id=f'overlay-{side}',
                    elem_classes='overlay',
                )
                with gr.Row(elem_classes='sliders'):
                    ui.stage, ui.block, ui.head = (
                        gr.Slider(
                            **_range(name, 2, int(name == 'Stage')),
                            min_width=150,
                            elem_id=f'{name.lower()}-{side}',
                        )
                        for name in ('Stage', 'Block', 'Head')
                    )
                with gr.Row():
                    ui.download = gr.DownloadButton(
                        'Download the picture', size='sm', elem_id=f'download-{side}'
                    )
                    ui.clear = gr.Button('Show all clusters', size='sm', elem_id=f'clear-{side}')
            with gr.Column(scale=2, min_width=280):
                ui.classes = gr.Label(
                    label='Most probable classes',
                    num_top_classes=5,
                    elem_id=f'classes-{side}',
                )
                ui.answer = gr.Image(
                    label='What the model finds',
                    type='filepath',
                    format='png',
                    height=300,
                    interactive=False,
                    visible=False,
                    buttons=['fullscreen', 'download'],
                    alt_text='The image with what the model finds drawn in',
                    elem_id=f'answer-{side}',
                )
                ui.found = gr.HTML(
                    elem_id=f'found-{side}', elem_classes=['remark', 'found'], padding=False
                )
                ui.point = gr.HTML(elem_id=f'point-{side}', elem_classes='point', padding=False)
        ui.sheet = gr.Image(
            label='All heads of the block',
            type='filepath',
            format='png',
            interactive=False,
            buttons=['fullscreen', 'download'],
            alt_text='The clusters of every head of the block',
            elem_id=f'sheet-{side}',
        )
        ui.facts = gr.Markdown(elem_id=f'facts-{side}', elem_classes='facts')
    ui.sliders = [ui.stage, ui.block, ui.head]
    ui.pictures = [ui.overlay, ui.download, ui.sheet, ui.point, ui.message]
    ui.answers = [ui.classes, ui.answer, ui.found, ui.facts]
    return ui


def _inputs(labels: Sequence[str], examples: Sequence[Path]) -> SimpleNamespace:
    """What both sides share."""
    ui = SimpleNamespace()
    with gr.Column(scale=2, min_width=270):
        ui.image = gr.Image(
            label='Image',
            sources=['upload', 'clipboard'],
            height=230,
            buttons=[],
            elem_id='image',
        )
        ui.message = gr.HTML(elem_id='message', elem_classes='message', padding=False)
        ui.remark = gr.HTML(elem_id='remark', elem_classes='remark', padding=False)
        ui.examples = gr.Dataset(
            components=[gr.Image(visible=False, type='filepath')],
            samples=[[str(path)] for path in examples],
            label='Examples',
            type='index',
            samples_per_page=12,
            elem_id='examples',
        )
        ui.alpha = gr.Slider(0, 1, 0.55, step=0.05, label='Opacity', buttons=[], elem_id='alpha')
        ui.marks = gr.CheckboxGroup(
            list(MARKS), value=list(MARKS[:1]), label='Draw', elem_id='marks'
        )
        sizes = [(_ORIGINAL if size is None else f'{size} pixels', size or 0) for size in SIZES]
        ui.size = gr.Dropdown(
            sizes,
            value=0,
            label='Input size of the network',
            info='Longer side; more pixels, more points.',
            elem_id='size',
        )
        ui.compare = gr.Checkbox(label='Compare two models or heads', elem_id='compare')
        with gr.Accordion('Choose a point without a mouse', open=False):
            with gr.Row():
                ui.across = gr.Slider(0, 100, 50, step=1, label='Across, %', min_width=100)
                ui.down = gr.Slider(0, 100, 50, step=1, label='Down, %', min_width=100)
            ui.choose = gr.Button('Show this point', size='sm', elem_id='choose')
    return ui


class _Handlers:
    """The functions behind the controls.

    Args:
        desk (Desk): Answers.
        examples (Sequence[Path]): Files of the examples.
    """

    def __init__(self, desk: Desk, examples: Sequence[Path]):
        self.desk, self.examples = desk, examples

    def upload(self, file: dict | None, request: gr.Request):
        """Take what a browser sent: token, point, image, message, remark."""
        if file is None:
            self.desk.leave(request.session_hash)
            return None, None, gr.skip(), '', ''
        return self._receive(file.get('path') or '', request, gr.skip())

    def _receive(self, path: str, request: gr.Request, shown):
        try:
            token, remark = self.desk.receive(request.session_hash, path)
        except UserError as error:
            return None, None, None, _message(str(error)), ''
        return token, None, shown, '', f'<p>{html.escape(remark)}</p>'

    def leave(self, request: gr.Request) -> None:
        """Forget a visitor whose page is closed."""
        self.desk.leave(request.session_hash)

    def example(self, index: int, request: gr.Request):
        """Take an example: as :meth:`upload`, with the image to show."""
        path = str(self.examples[int(index)])
        return self._receive(path, request, path)

    def start(self, request: gr.Request):
        """Begin with the first example."""
        return self.example(0, request)

    def refresh(self, side: str):
        """Make the function that renews a whole panel."""

        def run(token, label, size, stage, block, head, alpha, marks, point, compare):
            if side == 'b' and not compare:
                return [gr.skip()] * 12
            wanted = Choice(label, size or None, int(stage), int(block), int(head))
            sliders = [gr.skip()] * 3
            try:
                found = self.desk.ranges(wanted)
                sliders = self._sliders(found)
                if token is None:
                    return [*sliders, *self._empty(), None, gr.skip(), '', '']
                answer = self.desk.predict(token, side, found.choice)
            except UserError as error:
                return [*sliders, *self._empty(str(error)), None, gr.skip(), '', '']
            pictures = self._show(token, side, found.choice, alpha, marks, point)
            names = dict(answer.classes) if answer.classes else None
            classifies = answer.classes is not None
            answers = [
                gr.Label(value=names, visible=classifies),
                gr.Image(value=answer.picture and str(answer.picture), visible=not classifies),
                answer.found,
                answer.facts,
            ]
            return [*sliders, *pictures, *answers]

        return run

    def restage(self, side: str):
        """Make the function that follows the slider of stages."""

        def run(token, label, size, stage, block, head, alpha, marks, point, compare):
            wanted = Choice(label, size or None, int(stage), int(block), int(head))
            try:
                found = self.desk.ranges(wanted)
            except UserError as error:
                return [gr.skip(), gr.skip(), *self._empty(str(error))]
            sliders = self._sliders(found)[1:]
            if token is None:
                return [*sliders, *self._empty()]
            return [*sliders, *self._show(token, side, found.choice, alpha, marks, point)]

        return run

    def redraw(self, side: str):
        """Make the function that draws a panel's pictures anew."""

        def run(token, label, size, stage, block, head, alpha, marks, point, compare):
            if token is None or (side == 'b' and not compare):
                return [gr.skip()] * 5
            wanted = Choice(label, size or None, int(stage), int(block), int(head))
            try:
                choice = self.desk.ranges(wanted).choice
            except UserError as error:
                return self._empty(str(error))
            return self._show(token, side, choice, alpha, marks, point)

        return run

    def pick(self, side: str):
        """Make the function that follows a click: position across and down, 0 to 1."""

        def run(token, label, size, stage, block, head, event: gr.SelectData):
            if token is None:
                return gr.skip()
            try:
                width, height = self.desk.overlay_size(token, label, size or None)
            except UserError:
                return gr.skip()
            across, down = event.index
            return min((across + 0.5) / width, 1), min((down + 0.5) / height, 1)

        return run

    def _show(self, token, side, choice, alpha, marks, point) -> list:
        try:
            shown = self.desk.show(token, side, choice, alpha, marks, point)
        except UserError as error:
            return self._empty(str(error))
        overlay = str(shown.overlay)
        return [overlay, overlay, str(shown.sheet), shown.point, '']

    @staticmethod
    def _empty(message: str = '') -> list:
        return [None, None, None, '', _message(message)]

    @staticmethod
    def _sliders(found) -> list:
        choice = found.choice
        return [
            gr.Slider(**_range('Stage', found.stages, choice.stage)),
            gr.Slider(**_range('Block', found.blocks, choice.block)),
            gr.Slider(**_range('Head', found.heads, choice.head)),
        ]


def build_page(desk: Desk, examples: Sequence[Path], workers: int = 2, keep: int = 1800):
    """Lay the page out and connect it.

    Args:
        desk (Desk): Answers.
        examples (Sequence[Path]): Image files to choose from, the first shown at once.
        workers (int): Requests that are worked on at a time. Defaults to 2.
        keep (int): Seconds after which files are deleted even while a page is open.
            Defaults to 1800.

    Returns:
        gr.Blocks: Not launched yet.
    """
    labels = desk.engine.labels
    do = _Handlers(desk, examples)
    with gr.Blocks(
        title='Context clusters', analytics_enabled=False, delete_cache=(60, keep), fill_width=True
    ) as page:
        token, point = gr.State(None), gr.State(None)
        gr.Markdown(
            '# Context clusters\nWhat a Context Cluster network groups together. Points of one '
            'color belong to one cluster; click one to see it alone.',
            elem_id='title',
        )
        with gr.Row():
            shared = _inputs(labels, examples)
            with gr.Column(scale=7, min_width=320), gr.Row():
                a, b = _panel(labels, 'a', True), _panel(labels, 'b', False)
        _connect(do, shared, a, b, token, point, workers)
        page.unload(do.leave)
    return page


def _connect(do: _Handlers, shared, a, b, token, point, workers: int) -> None:
    """Say what follows what."""
    # Values come checked (checks.py); gradio would decode files itself, of any size, and say of
    # what is broken only that there was an error.
    private = dict(api_visibility='private', preprocess=False)
    working = dict(private, concurrency_limit=workers, concurrency_id='models')
    quiet = dict(working, show_progress='hidden', trigger_mode='always_last')

    def state(panel):
        choice = [token, panel.model, shared.size, *panel.sliders]
        return [*choice, shared.alpha, shared.marks, point, shared.compare]

    def everything(panel):
        return [*panel.sliders, *panel.pictures, *panel.answers]

    def renew(event, panels=(a, b)):
        for panel in panels:
            event = event.then(
                do.refresh(panel.side),
                state(panel),
                everything(panel),
                show_progress='minimal',
                show_progress_on=panel.overlay,
                **working,
            )
        return event

    def paint(event):
        for panel in (a, b):
            event = event.then(do.redraw(panel.side), state(panel), panel.pictures, **quiet)

    taken = [token, point, shared.image, shared.message, shared.remark]
    receiving = dict(working, show_progress='hidden')
    renew(shared.image.upload(do.upload, shared.image, taken, **receiving))
    renew(shared.image.clear(do.upload, shared.image, taken, **receiving))
    renew(shared.examples.click(do.example, shared.examples, taken, **receiving))
    renew(gr.on(None, do.start, None, taken, **receiving))
    renew(shared.size.input(lambda: None, None, None, **private))
    for panel in (a, b):
        renew(panel.model.input(lambda: None, None, None, **private), [panel])
        panel.stage.input(
            do.restage(panel.side), state(panel), [*panel.sliders[1:], *panel.pictures], **quiet
        )
        for slider in panel.sliders[1:]:
            slider.input(do.redraw(panel.side), state(panel), panel.pictures, **quiet)
        picked = panel.overlay.select(
            do.pick(panel.side), state(panel)[:6], point, show_progress='hidden', **private
        )
        paint(picked)
        paint(panel.clear.click(lambda: None, None, point, **private))
    for control in (shared.alpha, shared.marks):
        paint(control.input(lambda: None, None, None, **private))
    chosen = shared.choose.click(
        lambda x, y: (x / 100, y / 100), [shared.across, shared.down], point, **private
    )
    paint(chosen)
    compared = shared.compare.input(
        lambda on, *values: (gr.Column(visible=on), *values[:3], values[3] + 1),
        [shared.compare, a.model, a.stage, a.block, a.head],
        [b.column, b.model, *b.sliders],
        **private,
    )
    renew(compared, [b])
