"""Layout of the page, and the functions behind its controls."""

import html
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from weakref import WeakValueDictionary

import gradio as gr

from coc_mm.errors import UserError

from .engine import GONE, Choice, Engine
from .session import Session
from .uploads import read_upload
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

# Longer sides of the network's input in pixels; 0 is the model's own.
SIZES = (0, 96, 160, 224, 320, 448, 640, 896)


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
    ui.clusters = [ui.overlay, ui.download, ui.sheet, ui.point, ui.message]
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
        ui.size = gr.Dropdown(
            [(f'{size} pixels' if size else "the model's own", size) for size in SIZES],
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


class _Page:
    """The functions behind the controls.

    Args:
        engine: Runs the models.
        examples: Image files to choose from.
        folder: For pictures.
        keep: Seconds after which a visitor of whom nothing was heard is forgotten.
    """

    def __init__(self, engine: Engine, examples: Sequence[Path], folder: Path, keep: float):
        self.engine, self.examples, self.folder = engine, examples, folder
        # Each function that works for a visitor returns the session: its time starts anew.
        self.session = gr.State(None, time_to_live=keep, delete_callback=_close)
        self.point = gr.State(None)
        self._open: WeakValueDictionary[str, Session] = WeakValueDictionary()

    def upload(self, session: Session | None, file: dict | None, request: gr.Request) -> tuple:
        """Take what a browser sent: session, point, image, message, remark."""
        if file is None and session is not None:
            session.drop()
        if file is None:
            return session, None, gr.skip(), '', ''
        return self._receive(session, file['path'], request, gr.skip())

    def example(self, session: Session | None, index: int, request: gr.Request) -> tuple:
        """Take an example: as :meth:`upload`, with the image to show."""
        path = str(self.examples[index])
        return self._receive(session, path, request, path)

    def start(self, request: gr.Request) -> tuple:
        """Begin with the first example."""
        return self.example(None, 0, request)

    def _receive(self, session, path: str, request: gr.Request, image) -> tuple:
        if session is None:
            session = self._open[request.session_hash] = Session(self.engine, self.folder)
        try:
            remark = session.receive(path)
        except UserError as error:
            return session, None, None, _message(str(error)), ''
        return session, None, image, '', f'<p>{html.escape(remark)}</p>'

    def leave(self, request: gr.Request) -> None:
        """Forget a visitor whose page is closed."""
        _close(self._open.pop(request.session_hash, None))

    def update(self, ui: SimpleNamespace, sliders: bool = False, answers: bool = False):
        """Make the function that draws a panel anew, and what else is asked for."""

        def run(session, label, size, stage, block, head, alpha, marks, point, compare) -> dict:
            shown = {self.session: session}
            if ui.side == 'b' and not compare:
                return shown
            shown |= dict.fromkeys(ui.clusters) | {ui.point: '', ui.message: ''}
            if answers:
                shown |= {ui.answer: None, ui.found: '', ui.facts: ''}
            try:
                choice, moved = self._nearest(ui, label, size, stage, block, head)
                if sliders:
                    shown |= (
                        moved if answers else {ui.block: moved[ui.block], ui.head: moved[ui.head]}
                    )
                if session is None:
                    raise UserError(GONE)
                if session.token is None:
                    return shown
                if answers:
                    shown |= self._answers(ui, session, choice)
                drawn = session.show(ui.side, choice, alpha, marks, point)
                overlay = str(drawn.overlay)
                shown |= {ui.overlay: overlay, ui.download: overlay, ui.sheet: str(drawn.sheet)}
                shown[ui.point] = drawn.point
            except UserError as error:
                shown[ui.message] = _message(str(error))
            return shown

        return run

    def _nearest(self, ui, label, size, stage, block, head) -> tuple[Choice, dict]:
        """The nearest choice that the model has, and sliders that end where it ends."""
        loaded = self.engine.model(label)
        stage, block, head = loaded.nearest(stage, block, head)
        moved = {
            ui.stage: gr.Slider(**_range('Stage', len(loaded.depths), stage)),
            ui.block: gr.Slider(**_range('Block', loaded.depths[stage], block)),
            ui.head: gr.Slider(**_range('Head', loaded.heads[stage], head)),
        }
        return Choice(label, size or None, stage, block, head), moved

    @staticmethod
    def _answers(ui, session: Session, choice: Choice) -> dict:
        answer = session.predict(choice)
        classifies = answer.classes is not None
        return {
            ui.classes: gr.Label(value=answer.classes, visible=classifies),
            ui.answer: gr.Image(
                value=answer.picture and str(answer.picture), visible=not classifies
            ),
            ui.found: answer.found,
            ui.facts: answer.facts,
        }

    def pick(self, session, label, size, event: gr.SelectData):
        """Follow a click: position across and down, 0 to 1."""
        if session is None or session.token is None:
            return gr.skip()
        try:
            width, height = session.overlay_size(label, size or None)
        except UserError:
            return gr.skip()
        across, down = event.index
        return min((across + 0.5) / width, 1), min((down + 0.5) / height, 1)


def _close(session: Session | None) -> None:
    if session is not None:
        session.close()


def build_page(
    engine: Engine,
    examples: Sequence[Path],
    folder: Path,
    workers: int = 2,
    keep: int = 1800,
    api: bool = False,
) -> gr.Blocks:
    """Lay the page out and connect it.

    Args:
        engine: Runs the models.
        examples: Image files to choose from, the first shown at once.
        folder: For pictures, inside gradio's own temporary folder.
        workers: Requests that are worked on at a time.
        keep: Seconds until an idle visitor is forgotten, and until files are deleted.
        api: Offer ``predict`` to ``gradio_client``.
    """
    with gr.Blocks(
        title='Context clusters', analytics_enabled=False, delete_cache=(60, keep), fill_width=True
    ) as page:
        do = _Page(engine, examples, folder, keep)
        gr.Markdown(
            '# Context clusters\nWhat a Context Cluster network groups together. Points of one '
            'color belong to one cluster; click one to see it alone.',
            elem_id='title',
        )
        with gr.Row():
            shared = _inputs(engine.labels, examples)
            with gr.Column(scale=7, min_width=320), gr.Row():
                panels = [_panel(engine.labels, side, side == 'a') for side in 'ab']
        _connect(do, shared, panels, workers)
        if api:
            _offer_predict(engine, workers)
        page.unload(do.leave)
    return page


def _offer_predict(engine: Engine, workers: int) -> None:
    """``client.predict(handle_file(PATH), MODEL, api_name='/predict')`` gives the findings."""

    def predict(image, model):
        try:
            if not image:
                raise UserError('No image was given.')
            token = engine.keep(read_upload(image['path'], engine.limits)[0])
            try:
                result = engine.run(token, model)
            finally:
                engine.forget(token)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        found = result.inspection.findings
        rows = [dict(label=name, score=round(float(score), 6)) for name, score in found]
        return dict(model=model, task=result.task, predictions=rows)

    labels = engine.labels
    gr.Button(visible=False).click(
        predict,
        [gr.Image(visible=False), gr.Dropdown(labels, value=labels[0], visible=False)],
        gr.JSON(visible=False),
        api_name='predict',
        preprocess=False,
        concurrency_limit=workers,
        concurrency_id='models',
    )


def _connect(do: _Page, shared: SimpleNamespace, panels: list, workers: int) -> None:
    """Say what follows what."""
    # AllowlistMiddleware has checked the values; gradio would decode files itself, of any size,
    # and say of what is broken only that there was an error.
    private = dict(api_visibility='private', preprocess=False)
    working = dict(private, concurrency_limit=workers, concurrency_id='models')
    quiet = dict(working, show_progress='hidden', trigger_mode='always_last')

    def state(ui):
        choice = [do.session, ui.model, shared.size, *ui.sliders]
        return [*choice, shared.alpha, shared.marks, do.point, shared.compare]

    def renew(event, chosen=panels):
        for ui in chosen:
            event = event.then(
                do.update(ui, sliders=True, answers=True),
                state(ui),
                [*ui.sliders, *ui.clusters, *ui.answers, do.session],
                show_progress='minimal',
                show_progress_on=ui.overlay,
                **working,
            )

    def redraw(event):
        for ui in panels:
            event = event.then(do.update(ui), state(ui), [*ui.clusters, do.session], **quiet)

    taken = [do.session, do.point, shared.image, shared.message, shared.remark]
    receiving = dict(working, show_progress='hidden')
    renew(shared.image.upload(do.upload, [do.session, shared.image], taken, **receiving))
    renew(shared.image.clear(do.upload, [do.session, shared.image], taken, **receiving))
    renew(shared.examples.click(do.example, [do.session, shared.examples], taken, **receiving))
    renew(gr.on(None, do.start, None, taken, **receiving))
    renew(shared.size.input(lambda: None, None, None, **private))
    for ui in panels:
        renew(ui.model.input(lambda: None, None, None, **private), [ui])
        moved = [*ui.sliders[1:], *ui.clusters, do.session]
        ui.stage.input(do.update(ui, sliders=True), state(ui), moved, **quiet)
        for slider in ui.sliders[1:]:
            slider.input(do.update(ui), state(ui), [*ui.clusters, do.session], **quiet)
        clicked = [do.session, ui.model, shared.size]
        redraw(ui.overlay.select(do.pick, clicked, do.point, show_progress='hidden', **private))
        redraw(ui.clear.click(lambda: None, None, do.point, **private))
    for control in (shared.alpha, shared.marks):
        redraw(control.input(lambda: None, None, None, **private))
    sliders = [shared.across, shared.down]
    position = shared.choose.click(lambda x, y: (x / 100, y / 100), sliders, do.point, **private)
    redraw(position)
    a, b = panels
    compared = shared.compare.input(
        lambda on, *values: (gr.Column(visible=on), *values[:3], values[3] + 1),
        [shared.compare, a.model, *a.sliders],
        [b.column, b.model, *b.sliders],
        **private,
    )
    renew(compared, [b])
