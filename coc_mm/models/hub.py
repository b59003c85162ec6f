"""Models to and from a folder or the Hugging Face hub: safetensors, arguments, a model card."""

import json
from typing import Any

from huggingface_hub import PyTorchModelHubMixin

from coc_mm.utils.package_files import zoo_root

_CARD = """---
{{ card_data }}
---

# Context Cluster, {{ arch }}

A `{{ kind }}` of coc_mm with {{ parameters }} parameters, from the paper
[Image as Set of Points](https://arxiv.org/abs/2303.01494) (ICLR 2023).

```python
from {{ module }} import {{ kind }}

model = {{ kind }}.from_pretrained('FOLDER or OWNER/NAME')
```

## Results

{{ results | default("Not measured with these weights.", true) }}
{% if figures %}
ImageNet-1k top-1 at 224 x 224 that others give for this architecture:

| source | top-1 |
|---|---|
{% for source, value in figures -%}
| {{ source }} | {{ value }} |
{% endfor %}{% endif %}
## Arguments

```json
{{ arguments }}
```
"""


class HubMixin(
    PyTorchModelHubMixin,
    library_name='coc_mm',
    tags=['context-cluster'],
    model_card_template=_CARD,
):
    """``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of huggingface_hub.

    The card tells figures of the architecture; text about these weights is given as
    ``model_card_kwargs=dict(results=...)``.
    """

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> Any:
        model = super()._from_pretrained(strict=strict, **kwargs)
        model.is_init = True  # else the model that it becomes a part of draws the weights anew
        return model

    def _hub_arguments(self) -> dict[str, Any]:
        """Arguments that may have changed since the model was built."""
        return {}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> str | None:
        """Save weights, arguments and card in a folder."""
        config: Any = self._hub_mixin_config or {}
        self._hub_mixin_config = {**config, **self._hub_arguments()}
        return super().save_pretrained(*args, **kwargs)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """Write the card; ``kwargs`` are entries of its template."""
        config: Any = self._hub_mixin_config or {}
        arch = config.get('arch', 'small')
        facts = dict(
            arch=arch if isinstance(arch, str) else 'of its own kind',
            kind=type(self).__name__,
            module=type(self).__module__.partition('.backbones')[0],
            parameters=f'{sum(p.numel() for p in self.parameters()):,}',  # type: ignore[attr-defined]
            figures=_figures(arch),
            arguments=json.dumps(config, indent=2, sort_keys=True),
        )
        return super().generate_model_card(*args, **{**facts, **kwargs})


def _figures(arch: Any) -> list[tuple[str, float]]:
    """List what the metafile says of an architecture, with its source."""
    import yaml

    name = f'coc-{str(arch).replace("_", "-")}_8xb128_in1k'
    index = yaml.safe_load((zoo_root() / 'configs/classification/metafile.yml').read_text())
    figures: dict = next((m['Figures'] for m in index['Models'] if m['Name'] == name), {})
    named = (('the paper', 'paper'), ("the authors' release", 'released'))
    found = [(source, (figures.get(key) or {}).get('top-1')) for source, key in named]
    return [(source, figure) for source, figure in found if figure]
