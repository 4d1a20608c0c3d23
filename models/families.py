"""The table of model families: whose network a pipeline's is, and which file of `models` knows it.

A file is imported when its family is asked for, so the others' classes cost no start-up; each names its class FAMILY.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

FAMILIES = {
    **dict.fromkeys(("UNet2DConditionModel", "StableDiffusionPipeline", "StableDiffusionXLPipeline"), "unet_family"),
    **dict.fromkeys(("SD3Transformer2DModel", "StableDiffusion3Pipeline"), "sd3"),
    **dict.fromkeys(("SanaTransformer2DModel", "SanaSprintPipeline"), "sana"),
    **dict.fromkeys(("ZImageTransformer2DModel", "ZImagePipeline"), "z_image"),
    **dict.fromkeys(("FluxTransformer2DModel", "FluxPipeline"), "flux"),
    **dict.fromkeys(("Flux2Transformer2DModel", "Flux2KleinPipeline"), "flux2"),
}
"""File of `models` by diffusers classes: of the generator's network, by which a pipeline of any class is known (those
for image to image, exports of this project), and of the stock pipelines, which decide where the name is here."""


def family_of_index(path: str, index: Mapping[str, Any]) -> Any:
    """The family of a pipeline, a subclass of Backbone, by its model_index.json.

    Raises:
        ValueError: none of its components is a network that is known.
    """
    name, *parts = [entry if isinstance(entry, str) else entry[1] for entry in _classes(index)]
    for kind in (name, *parts):
        if kind in FAMILIES:
            return _family(kind)
    held, known = ", ".join(filter(None, parts)), ", ".join(FAMILIES)
    raise ValueError(f"{path} is a {name} with the components {held}; expected one of {known}")


def family_of(network: nn.Module) -> Any:
    """The family of a network, a subclass of Backbone; the network may be compiled, sharded or of a subclass.

    Raises:
        ValueError: it is of none.
    """
    kinds = [kind.__name__ for kind in type(getattr(network, "_orig_mod", network)).__mro__]
    for kind in kinds:
        if kind in FAMILIES:
            return _family(kind)
    raise ValueError(f"{kinds[0]} is no network of a known family; expected one of {', '.join(FAMILIES)}")


def families() -> list[Any]:
    """All families, each a subclass of Backbone; all their classes of diffusers are imported."""
    return [_family(kind) for kind in {file: kind for kind, file in FAMILIES.items()}.values()]


def _classes(index: Mapping[str, Any]) -> list[Any]:
    """The class of the pipeline and those of its components: a name, or with a file's or a library's before it."""
    parts = [entry for name, entry in index.items() if name != "_class_name" and isinstance(entry, list | tuple)]
    return [index.get("_class_name", "pipeline"), *(entry for entry in parts if len(entry) == 2)]


def _family(kind: str) -> Any:
    # In an export the names of all files end with the same digest, this one's too.
    ending = __name__.rpartition("families")[2]
    return import_module(f".{FAMILIES[kind]}{ending}", __package__).FAMILY
