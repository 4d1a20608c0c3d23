"""A stand-in for ComfyUI, by its documented contract (docs.comfy.org/custom-nodes): what its server does to nodes.

It finds a pack in a folder of `custom_nodes`, turns a saved workflow into a prompt, checks the prompt's types, limits
and VALIDATE_INPUTS, and executes it in a thread in inference mode; outputs are kept for as long as a node's class, its
constants, its IS_CHANGED and those of all nodes before it stay the same. Four core nodes read and write pictures as
ComfyUI's do. Nothing of this project is imported, so that it also runs where the project is not to be seen.
"""

import importlib.util
import inspect
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

Prompt = dict[str, dict[str, Any]]
"""Nodes by their ids: class_type and inputs, of which [id, slot] is another node's output."""

WIDGETS = ("STRING", "INT", "FLOAT", "BOOLEAN")


class Refused(Exception):
    """A prompt that ComfyUI would not execute, with what it would say."""


class LoadImage:
    """Reads a picture; its mask is where it is transparent, and 64 x 64 zeros where it has no transparency."""

    folder: ClassVar[Path]
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (sorted(path.name for path in cls.folder.iterdir()), {"image_upload": True})}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> int:
        return hash((cls.folder / image).read_bytes())

    def load(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        picture = Image.open(self.folder / image)
        pixels = torch.from_numpy(np.array(picture.convert("RGB")).astype(np.float32) / 255.0)
        mask = torch.zeros((64, 64))
        if "A" in picture.getbands():
            mask = 1.0 - torch.from_numpy(np.array(picture.getchannel("A")).astype(np.float32) / 255.0)
        return pixels[None], mask[None]


class MaskToImage:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "convert"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def convert(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        return (mask.reshape((-1, 1, *mask.shape[-2:])).movedim(1, -1).expand(-1, -1, -1, 3),)


class PreviewImage:
    """Shows pictures."""

    RETURN_TYPES = ()
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}

    def show(self, images: torch.Tensor, filename_prefix: str = "") -> dict[str, Any]:
        levels = [np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8) for image in images]
        return {"ui": {"images": [Image.fromarray(picture) for picture in levels]}}


class SaveImage(PreviewImage):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}


class Comfy:
    """The server: nodes of a pack and of the core, and what the nodes of the last prompt gave.

    Args:
        pack: Folder of the pack, as it lies in `custom_nodes`.
        pictures: Folder from which pictures are loaded.
    """

    def __init__(self, pack: Path, pictures: Path) -> None:
        LoadImage.folder = pictures
        self.pack = load_pack(pack)
        self.classes = {kind.__name__: kind for kind in (LoadImage, MaskToImage, PreviewImage, SaveImage)}
        self.classes |= self.pack.NODE_CLASS_MAPPINGS
        self.kept: dict[Any, tuple[Any, ...]] = {}
        self.ran: list[str] = []
        """Ids of the nodes that the last prompt has run, in their order."""

    def prompt_of(self, workflow: dict[str, Any]) -> Prompt:
        """What the browser sends of a saved workflow: linked inputs, and the widgets' values in their order."""
        links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        prompt: Prompt = {}
        for node in workflow["nodes"]:
            kind = self.classes[node["type"]]
            widgets = [
                name for name, (type_, *_) in declared(kind).items() if isinstance(type_, list) or type_ in WIDGETS
            ]
            values = node.get("widgets_values", [])
            uploads = node["type"] == "LoadImage"  # its button counts as a widget
            assert len(values) == len(widgets) + uploads, f"{node['type']} has the widgets {widgets}"
            given = {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
            prompt[str(node["id"])] = {"class_type": node["type"], "inputs": dict(zip(widgets, values)) | given}
        return prompt

    def run(self, prompt: Prompt) -> dict[str, list[Image.Image]]:
        """The pictures that output nodes show, by the nodes' ids.

        Raises:
            Refused: The prompt is not valid.
        """
        for name in prompt:
            self._check(prompt, name)
        self.ran = []
        with ThreadPoolExecutor(1) as worker:
            return worker.submit(self._execute, prompt).result()

    def _check(self, prompt: Prompt, name: str) -> None:
        kind, inputs = self.classes[prompt[name]["class_type"]], prompt[name]["inputs"]
        validate = getattr(kind, "VALIDATE_INPUTS", None)
        own = inspect.getfullargspec(validate).args if validate else []
        if missing := kind.INPUT_TYPES()["required"].keys() - inputs.keys():
            raise Refused(f"Required input is missing: {sorted(missing)}")
        for key, (type_, *options) in declared(kind).items():
            value, limits = inputs.get(key), options[0] if options else {}
            if isinstance(value, list):
                given = self.classes[prompt[value[0]]["class_type"]].RETURN_TYPES[value[1]]
                if given != type_:
                    raise Refused(f"Return type mismatch between linked nodes: {key}, {given} != {type_}")
            elif key in inputs and key not in own:
                if isinstance(type_, list) and value not in type_:
                    raise Refused(f"Value not in list: {key}: {value!r} not in {type_}")
                if type_ in ("INT", "FLOAT") and not limits.get("min", value) <= value <= limits.get("max", value):
                    raise Refused(f"Value {value} outside of {limits['min']} to {limits['max']}: {key}")
        if validate:
            said = validate(**{key: None if isinstance(inputs[key], list) else inputs[key] for key in own[1:]})
            if said is not True:
                raise Refused(f"Custom validation failed for node: {said}")

    def _execute(self, prompt: Prompt) -> dict[str, list[Image.Image]]:
        with torch.inference_mode():
            signatures: dict[str, Any] = {}
            for name in prompt:
                self._sign(prompt, name, signatures)
            self.kept = {signature: self.kept[signature] for signature in signatures.values() if signature in self.kept}
            shown: dict[str, list[Image.Image]] = {}
            for name, node in prompt.items():
                if getattr(self.classes[node["class_type"]], "OUTPUT_NODE", False):
                    shown[name] = self._output(prompt, name, signatures)
            return shown

    def _sign(self, prompt: Prompt, name: str, signatures: dict[str, Any]) -> Any:
        if name not in signatures:
            kind, inputs = self.classes[prompt[name]["class_type"]], prompt[name]["inputs"]
            constants = {key: None if isinstance(value, list) else value for key, value in inputs.items()}
            changed = kind.IS_CHANGED(**constants) if hasattr(kind, "IS_CHANGED") else False
            given = tuple(
                (key, (self._sign(prompt, value[0], signatures), value[1]) if isinstance(value, list) else value)
                for key, value in sorted(inputs.items())
            )
            signatures[name] = (kind.__name__, changed, given)
        return signatures[name]

    def _output(self, prompt: Prompt, name: str, signatures: dict[str, Any]) -> Any:
        """What a node gives; nodes before it run first, unless what they gave is kept."""
        if signatures[name] not in self.kept:
            kind, inputs = self.classes[prompt[name]["class_type"]], prompt[name]["inputs"]
            given = {
                key: self._output(prompt, value[0], signatures)[value[1]] if isinstance(value, list) else value
                for key, value in inputs.items()
            }
            found = getattr(kind(), kind.FUNCTION)(**given)
            self.ran.append(name)
            if isinstance(found, dict):
                found = found["ui"]["images"]
            else:
                assert isinstance(found, tuple) and len(found) == len(kind.RETURN_TYPES)
            self.kept[signatures[name]] = found
        return self.kept[signatures[name]]


def load_pack(folder: Path) -> ModuleType:
    """The module of a pack, loaded from its folder under a name of its own, as ComfyUI does at its start."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def declared(kind: type) -> dict[str, tuple[Any, ...]]:
    """Inputs of a node by their names, the required ones first: the order of its widgets."""
    types = kind.INPUT_TYPES()
    return types["required"] | types.get("optional", {})
