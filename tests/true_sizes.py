"""Pipeline folders of config files alone, for plans of models of their true sizes."""

import json
from pathlib import Path
from typing import Any


def write_configs(folder: Path, kind: str, **components: Any) -> Path:
    """Write model_index.json and the configs of a pipeline's components, which lie on the meta device.

    Args:
        folder: folder to make.
        kind: name of the pipeline's class.
        components: networks and the scheduler of diffusers, configs of transformers; a tokenizer is named beside them.
    """
    index: dict[str, Any] = {"_class_name": kind, "tokenizer": ["transformers", "AutoTokenizer"]}
    for name, part in components.items():
        write = getattr(part, "save_config", None) or part.save_pretrained
        write(folder / name)
        index[name] = ["diffusers" if hasattr(part, "save_config") else "transformers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
