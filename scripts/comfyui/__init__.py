"""Nodes for ComfyUI that edit pictures with an export; this folder is copied or linked into its `custom_nodes`.

They need the export, diffusers and transformers, and nothing else of this project (docs/comfyui.md).
"""

from .nodes import TurboEditEdit, TurboEditInvert, TurboEditLoad

NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (TurboEditLoad, TurboEditInvert, TurboEditEdit)}
NODE_DISPLAY_NAME_MAPPINGS = {
    "TurboEditLoad": "Load TurboEdit export",
    "TurboEditInvert": "Invert picture (TurboEdit)",
    "TurboEditEdit": "Edit picture (TurboEdit)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
