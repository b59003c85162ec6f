"""Use this package with one task library: ``python one_library.py mmdet [--hide]``.

With ``--hide`` the other two libraries are made absent where they are installed; without it they
must be absent, as where onedl-mmdetection alone was installed. Prints what was done.
"""

import contextlib
import importlib.util
import io
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(path for path in (ROOT / 'tools').rglob('*.py'))
# Library -> a config of ours for it, the extra that installs it.
LIBRARIES = dict(
    mmpretrain=('classification/coc-tiny_8xb128_in1k.py', 'mmpretrain'),
    mmdet=('detection/mask-rcnn_coc-s-c4_fpn_1x_coco.py', 'mmdetection'),
    mmseg=('segmentation/fpn_coc-s-c4_4xb4-80k_ade20k-512x512.py', 'mmsegmentation'),
)


class Without:
    """A finder of modules that does not find some packages, as if they were not there."""

    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def use_backbone():
    import torch
    from mmengine.registry import MODELS

    backbone = MODELS.build(dict(type='coc_mm.ContextCluster', arch='tiny', out_indices=(0, 3)))
    shapes = [tuple(out.shape) for out in backbone.eval()(torch.rand(1, 3, 64, 96))]
    assert shapes == [(1, 32, 16, 24), (1, 320, 2, 3)], shapes


def use_model(library):
    import torch

    from coc_mm.apis.config import load_config
    from coc_mm.apis.start import build_model

    config = load_config(str(ROOT / 'configs' / LIBRARIES[library][0]))
    model = build_model(config).eval()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    info = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96), scale_factor=(1, 1))
    structures = importlib.import_module(f'{library}.structures')
    kinds = dict(mmpretrain='DataSample', mmdet='DetDataSample', mmseg='SegDataSample')
    sample = getattr(structures, kinds[library])(metainfo=info)
    with torch.no_grad():
        (answer,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    if library == 'mmpretrain':
        assert abs(float(answer.pred_score.sum()) - 1) < 1e-5
    elif library == 'mmdet':
        assert answer.pred_instances.masks.shape[1:] == (64, 96)
    else:
        assert answer.pred_sem_seg.data.shape == (1, 64, 96)


def ask_for_help(path):
    said = io.StringIO()
    sys.argv = [str(path), '--help']
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_path(str(path), run_name='__main__')
    assert 'usage' in said.getvalue(), f'{path.name} --help said {said.getvalue()!r}'


def refuse(library):
    from coc_mm.apis import get_model
    from coc_mm.apis.config import load_config
    from coc_mm.errors import UserError

    config, full = LIBRARIES[library]
    for ask, name in (
        (load_config, str(ROOT / 'configs' / config)),
        (get_model, Path(config).stem),
    ):
        said = 'nothing'
        try:
            ask(name)
        except UserError as error:
            said = str(error)
        assert f'needs {library}, which is not installed' in said, said
        assert f'pip install onedl-{full}' in said, said


def main(library, hide):
    others = LIBRARIES.keys() - {library}
    if hide:
        # Before anything is imported: coc_mm adds finders of its own.
        sys.meta_path[:] = [Without(finder, others) for finder in sys.meta_path]
    import coc_mm  # noqa: F401

    assert [name for name in sorted(others) if importlib.util.find_spec(name)] == []
    assert not LIBRARIES.keys() & sys.modules.keys(), 'importing coc_mm imports a task library'
    use_backbone()
    use_model(library)
    for other in sorted(others):
        refuse(other)
    for path in TOOLS:
        ask_for_help(path)
    assert not others & sys.modules.keys()
    print(f'{library} alone: backbone, model, {len(TOOLS)} tools, {len(others)} refusals')


if __name__ == '__main__':
    main(sys.argv[1], '--hide' in sys.argv[2:])
