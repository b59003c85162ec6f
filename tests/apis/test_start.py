from mmengine.config import Config

from coc_mm.apis.start import pretrained_files


def test_pretrained_files():
    def start(path):
        return dict(type='Pretrained', checkpoint=path)

    model = dict(
        backbone=dict(init_cfg=start('a.pth')),
        heads=[dict(init_cfg=[dict(type='Normal'), start('~/b.pth')])],
        neck=dict(init_cfg=start('https://x/c.pth')),
    )
    assert pretrained_files(Config(dict(model=model))) == ['a.pth', '~/b.pth']
