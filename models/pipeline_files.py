"""A diffusers pipeline as it is stored: its index and its components, in a folder or on the hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .precision import recast
from .text import load_tokenizer
from .weight_files import only_variant


@dataclass(frozen=True)
class PipelineFiles:
    """Where the components of a pipeline are read from.

    Args:
        path: folder or hub id.
        index: content of model_index.json.
        variant: file variant of the weights, or None for plain files.
        device: where the networks go.
    """

    path: str
    index: Mapping[str, Any]
    variant: str | None = None
    device: torch.device | str = "cpu"

    @classmethod
    def open(cls, path: str, variant: str | None = None, device: torch.device | str = "cpu") -> "PipelineFiles":
        """Read the index of a folder or hub id; without a `variant` it is that of a folder that has no plain files.

        Raises:
            ValueError: the folder is no pipeline's, or has no files without a variant and several with one.
        """
        return cls(path, index_of(path), variant or only_variant(path), device)

    def has(self, name: str) -> bool:
        """Whether the pipeline has a component: one that is named and is not left empty."""
        return self.index.get(name, (None, None))[0] is not None

    def scheduler(self, kind: Any) -> Any:
        """The scheduler, as one of class `kind` whatever class its config names."""
        return kind.from_pretrained(self.path, subfolder="scheduler")

    def tokenizer(self, kind: Any, name: str) -> Any:
        """The tokenizer `name` of class `kind`."""
        return load_tokenizer(self.path, name, kind)

    def network(self, kind: Any, name: str, dtype: torch.dtype) -> Any:
        """The network `name` of class `kind`, a model of diffusers or transformers.

        Raises:
            ValueError: it has no files of the variant.
        """
        try:
            module = kind.from_pretrained(self.path, subfolder=name, torch_dtype=dtype, variant=self.variant)
        except OSError as error:
            if self.variant is None:
                raise
            raise ValueError(
                f"the {name} of {self.path} cannot be loaded in the file variant {self.variant!r} ({error}); set "
                "variant to one that its files have in their names, or leave it out"
            ) from error
        return module.to(self.device)


class ConfigFiles(PipelineFiles):
    """A stored pipeline of which only the config files are read: networks lie on the meta device."""

    def network(self, kind: Any, name: str, dtype: torch.dtype) -> Any:
        """The network of its config alone."""
        if hasattr(kind, "load_config"):  # diffusers'
            config, make = kind.load_config(self.path, subfolder=name), kind.from_config
        else:
            config, make = kind.config_class.from_pretrained(self.path, subfolder=name), kind
        with torch.device("meta"):
            module = make(config)
        recast(module, dtype)
        return module


def index_of(path: str) -> dict[str, Any]:
    """The model_index.json of a folder or hub id.

    Raises:
        ValueError: the folder has none.
    """
    if Path(path).is_dir() and not (Path(path) / "model_index.json").is_file():
        raise ValueError(f"{path} is not a pipeline folder: it has no model_index.json; give a diffusers pipeline")
    return DiffusionPipeline.load_config(path)
