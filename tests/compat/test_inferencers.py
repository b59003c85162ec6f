"""More models by name in the libraries' inferencers."""

from types import SimpleNamespace

from coc_mm.compat.inferencers import add_model_names


def test_names_are_found_and_listed_beside_the_librarys_own():
    class Base:
        scope = 'mmdet'

        def _load_model_from_metafile(self, model):
            return 'theirs', model

        @staticmethod
        def list_models(scope=None, patterns=r'.*'):
            return ['theirs']

    ours = {('mmdet', 'ours'): ('config', 'weights')}
    add_model_names(
        SimpleNamespace(BaseInferencer=Base),
        lambda *wanted: ours.get(wanted),
        lambda scope: [name for known, name in ours if scope in (None, known)],
    )
    assert Base()._load_model_from_metafile('ours') == ('config', 'weights')
    assert Base()._load_model_from_metafile('other') == ('theirs', 'other')
    assert Base.list_models() == Base.list_models('mmdet', 'o') == ['theirs', 'ours']
    assert Base.list_models('mmseg') == Base.list_models('mmdet', 'x') == ['theirs']
