"""Trained weights that a training starts from in the place of its usual ones: `init_from: RUN or EXPORT`.

What is wrong with a source is said before models load, but for weights that have other shapes. A run that has a
checkpoint goes on from that and reads no source, which may be gone by then.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from data.jobs.command import read_config
from eval.harness.exports import export_folder, read_index
from eval.harness.options import folder_or_hub_id
from models.backbone import Backbone
from models.clip import ImageTokens
from models.fingerprints import fingerprint, same_weights, text_fingerprint, unet_fingerprint, vae_fingerprint
from models.weight_files import files_by_variant, only_variant
from train.exports.weights import StoredTensors, trained_weights
from train.method import Method, TrainedWeights
from train.methods.config import LoraConfig
from train.methods.lora import ADAPTER_FILE, with_targets
from train.methods.network_files import apply_files
from train.run.checkpoint import Checkpoints
from train.run.config import option_of
from train.run.weights import load_trained

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
"""File by which a run folder is known."""

_CHUNK = 2**24

_FINGERPRINTS = {"network": unet_fingerprint, "vae": vae_fingerprint, "text": text_fingerprint}


@dataclass(frozen=True)
class InitialWeights:
    """Weights of another training.

    Args:
        words: The option and its value, for errors.
        weights: Tensors by name, as the task's trainable has them; each is read when it is asked for.
        record: What they are, as JSON, for environment.json and the model card.
    """

    words: str
    weights: Mapping[str, Tensor]
    record: Mapping[str, Any]

    def give(self, module: nn.Module) -> None:
        """Copy the weights into a task's trainable, in the dtype that it has.

        Raises:
            ValueError: A name is missing or unknown, or a shape differs.
        """
        try:
            load_trained(module, self.weights)
        except ValueError as error:
            raise ValueError(f"{self.words} does not fit the network that is trained: {error}") from error


def initial_weights(method: Method, config: Any) -> InitialWeights | None:
    """Find the weights that a run begins with; None where it names none, or has a checkpoint already.

    Raises:
        ValueError: The source is neither a run nor an export of the method, has no weights yet, is of another backbone,
            or holds adapters where full weights are trained, or the other way round.
        OSError: It is not in the hub's cache and cannot be fetched.
    """
    option = config.init_option
    begun = Checkpoints(Path(config.run.folder) / "checkpoints", keep=1).steps()
    if method.initial is None or option_of(config, option) is None or begun:
        return None
    name = folder_or_hub_id(option_of(config, option), option, "run folder, nor an export")
    words = f"{option} {name}"
    if (Path(name) / CONFIG_FILE).is_file():
        found = _of_run(method, config, words, Path(name))
    else:
        found = _of_export(method, config, words, name)
    log.info("starting from %s, %s", name, ", ".join(f"{key} {value}" for key, value in found.record.items()))
    return found


def _of_run(method: Method, config: Any, words: str, run: Path) -> InitialWeights:
    """The averages of a run's newest checkpoint."""
    assert method.initial is not None
    trained = _read_run(method, words, run)
    if method.adapters(trained.config) and not method.adapters(config):
        raise ValueError(
            f"{words} is a run of adapters, and this one trains all weights: merge them by train.export "
            f"{run} OUT --dtype float32 and give OUT to {config.init_option}, or set {_rank(config)} as there"
        )
    if method.adapters(config) and not method.adapters(trained.config):
        raise ValueError(_full_under_adapters(words, config))
    for option in method.initial.same:
        mine, theirs = (_chosen(method, one, option) for one in (config, trained.config))
        _same_option(words, option, mine, theirs)
    _check_base(method, config, words, _Base.of(method, trained.config))
    assert isinstance(trained.weights, StoredTensors)
    record = {
        "init_from": str(run),
        "kind": "run",
        "step": trained.step,
        "averaged": trained.averaged,
        "sha256": _digest([trained.weights.path]),
    }
    return InitialWeights(words, trained.weights, record)


def _of_export(method: Method, config: Any, words: str, name: str) -> InitialWeights:
    """The trained component of an export, a folder or hub id."""
    parts = method.initial
    assert parts is not None
    folder = export_folder(name)
    if (folder / ADAPTER_FILE).is_file():
        raise ValueError(f"{words} holds adapters without the weights under them: give the run that they come from")
    try:
        index = read_index(folder, parts.pipeline)
    except ValueError as error:
        raise ValueError(f"{words} is neither a run of {method.name} nor its export: {error}") from error
    if method.adapters(config):
        raise ValueError(_full_under_adapters(words, config))
    about = json.loads((folder / parts.component / "config.json").read_text(encoding="utf-8"))
    for option in parts.same:
        last = option.rpartition(".")[2]
        if last in about:
            _same_option(words, option, option_of(config, option), about[last])
    pipeline, variant = index.get("base") or str(folder), index.get("base_variant")
    clip = None if parts.clip(config) is None else str(folder / "image_encoder")
    component = folder / parts.component
    files = files_by_variant(component)[only_variant(component)]
    stored = {parts.prefix + key: file for file in map(StoredTensors, files) for key in file}
    weights = _Renamed(stored, parts.prefix)
    dtype = next(iter(weights.values())).dtype  # the export fused files over its base in it
    _check_base(method, config, words, _Base(pipeline, variant, clip), dtype)
    record = {"init_from": name, "kind": "export", "sha256": _digest(files)}
    return InitialWeights(words, weights, record)


def _read_run(method: Method, words: str, run: Path) -> TrainedWeights:
    """The averages of a run's newest checkpoint with its config. Raises ValueError where there are none."""
    path = run / CONFIG_FILE
    parts = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = parts.get("method", method.name if method.section in parts else "another method")
    if own != method.name:
        raise ValueError(f"{words} is a run of {own}, expected one of {method.name}")
    try:
        return trained_weights(run, read_config(method.config, path))
    except ValueError as error:
        raise ValueError(f"{words}: {error}") from error


class _Renamed(Mapping[str, Tensor]):
    """Tensors of several files under names with a prefix; each is read when it is asked for."""

    def __init__(self, stored: Mapping[str, StoredTensors], prefix: str) -> None:
        self._stored, self._prefix = stored, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name][name.removeprefix(self._prefix)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _rank(config: Any) -> str:
    return f"{config.init_option.partition('.')[0]}.lora.rank"


def _full_under_adapters(words: str, config: Any) -> str:
    return (
        f"{words} holds full weights, and this run trains adapters over its backbone's own: set {_rank(config)} 0, or "
        "start from a run of adapters"
    )


def _chosen(method: Method, config: Any, option: str) -> Any:
    """The value of an option; of adapters with the layers that they lie on where none are named."""
    value = option_of(config, option)
    return with_targets(value, method.backbone(config)) if isinstance(value, LoraConfig) else value


def _same_option(words: str, option: str, mine: Any, theirs: Any) -> None:
    """Raises ValueError if an option that decides the network has another value in the source."""
    if is_dataclass(mine):
        for part in fields(mine):
            _same_option(words, f"{option}.{part.name}", getattr(mine, part.name), getattr(theirs, part.name))
    elif mine != theirs:
        raise ValueError(f"{words} has {option} {theirs}, and this run {mine}: set {option} as there")


@dataclass(frozen=True)
class _Base:
    """Where the frozen networks of a training lie: a pipeline, its files' variant, a CLIP or none, files over it."""

    path: str
    variant: str | None
    clip: str | None
    files: Mapping[str, str | None] = field(default_factory=dict)
    predicts: str | None = None

    @classmethod
    def of(cls, method: Method, config: Any) -> "_Base":
        """The frozen networks of a config."""
        assert method.initial is not None
        clip = method.initial.clip(config)
        files, predicts = method.files(config), method.prediction(config)
        return cls(method.backbone(config), method.variant(config), clip, files, predicts)

    def __str__(self) -> str:
        """The pipeline and the files over it, for errors."""
        return " with ".join([self.path, *(f"{option} {place}" for option, place in self.files.items() if place)])

    @property
    def prediction(self) -> str:
        """What its UNet predicts."""
        return Backbone.load(self.path, parts=(), prediction_type=self.predicts).schedule.prediction_type

    def fingerprints(self, parts: Sequence[str], fused: torch.dtype) -> dict[str, str]:
        """Fingerprints of parts of the pipeline and of the CLIP, by name; the weights are read and let go again.

        Args:
            parts: Names of the parts.
            fused: Dtype of the weights over which files are laid, whose roundings tell.
        """
        dtype = fused if any(self.files.values()) else torch.bfloat16
        backbone = Backbone.load(self.path, dtype=dtype, parts=parts, variant=self.variant)
        if "network" in parts:
            unet, lora = (self.files.get(option) for option in ("generator.unet", "generator.lora"))
            backbone.network = apply_files(backbone.network, unet, lora)
        found = {part: _FINGERPRINTS[part](backbone) for part in parts}
        return found | ({"CLIP": fingerprint(ImageTokens.load(self.clip).model)} if self.clip else {})


def _check_base(method: Method, config: Any, words: str, theirs: _Base, fused: torch.dtype = torch.float32) -> None:
    """Refuse weights that were trained on other frozen networks.

    Raises:
        ValueError: They are others, or those of the source are no longer there to be compared.
    """
    assert method.initial is not None
    mine = _Base.of(method, config)
    if mine == theirs:
        return
    frozen = method.initial.frozen
    if method.adapters(config) and "network" not in frozen:
        frozen = (*frozen, "network")  # adapters mean changes of that very network
    try:
        kind, there = theirs.prediction, theirs.fingerprints(frozen, fused)
    except (OSError, ValueError) as error:
        raise ValueError(f"{words} cannot be compared with this run: {theirs} cannot be read ({error})") from error
    other = f"{words} was trained on another backbone, {theirs}, than this run's, {mine}"
    if kind != mine.prediction:
        raise ValueError(f"{other}: it predicts {kind}, this one {mine.prediction}; start from one of this backbone")
    here = mine.fingerprints(frozen, fused)
    if differing := [part for part in there if not same_weights(there[part], here[part])]:
        raise ValueError(f"{other}: not the same are {', '.join(differing)}; start from one that was trained on these")


def _digest(files: Sequence[Path]) -> str:
    """sha256, hexadecimal, of the content of files one after the other."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                found.update(part)
    return found.hexdigest()
