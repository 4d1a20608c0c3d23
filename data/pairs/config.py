"""Options of data.edit_pairs: how pairs are proposed, drawn and chosen."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from data.captioning.engines import EngineConfig
from data.captioning.tasks import CAPTION, DEFAULT_EDIT_PROMPT

Range = tuple[float, float]
"""The least and the most that is drawn."""


@dataclass(frozen=True)
class SamplingConfig:
    """Options of drawing candidates.

    Args:
        candidates: pairs that are sampled of each triplet.
        num_steps: number of DDIM steps.
        guidance: scale of the classifier-free guidance, drawn uniformly for each pair.
        self_share: share of the steps for which the edited picture takes its self-attention maps from the source,
            drawn uniformly for each pair, each of the candidates from a part of the range of its own.
        cross_share: share of the steps for which words that both captions have keep their cross-attention maps; the
            original shares self-attention alone.
    """

    candidates: int = 100
    num_steps: int = 100
    guidance: Range = (7.5, 15.0)
    self_share: Range = (0.1, 0.9)
    cross_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("candidates", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--sampling.{name} is {getattr(self, name)}, expected at least 1")
        low, high = self.self_share
        if not 0 <= low <= high <= 1:
            raise ValueError(f"--sampling.self_share is {self.self_share}, expected two shares of the steps that rise")
        if not 0 <= self.cross_share <= 1:
            raise ValueError(f"--sampling.cross_share is {self.cross_share}, expected a share of the steps, 0 to 1")
        low, high = self.guidance
        if not 1 <= low <= high:
            raise ValueError(f"--sampling.guidance is {self.guidance}, expected two numbers from 1 on that rise")


@dataclass(frozen=True)
class PairScores:
    """Cosines in CLIP's space.

    Args:
        image_similarity: cosine of the two pictures.
        source_similarity: cosine of the source picture and its caption.
        target_similarity: cosine of the edited picture and its caption.
        direction: cosine of the change between the pictures and that between the captions (Gal et al. 2022, eq. 2).
    """

    image_similarity: float
    source_similarity: float
    target_similarity: float
    direction: float


@dataclass(frozen=True)
class FilterConfig:
    """Options of keeping pairs; the thresholds are those of InstructPix2Pix's code.

    Args:
        min_image_similarity: least cosine of the two pictures.
        min_caption_similarity: least cosine of each picture and its caption.
        min_direction: least cosine of the change between the pictures and that between the captions.
        keep: most pairs of a triplet, those of the best direction.
    """

    min_image_similarity: float = 0.7
    min_caption_similarity: float = 0.2
    min_direction: float = 0.2
    keep: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "keep" and not -1 <= value <= 1:
                raise ValueError(f"--filter.{name} is {value}, expected a cosine between -1 and 1")
        if self.keep < 1:
            raise ValueError(f"--filter.keep is {self.keep}, expected at least 1")

    def failure(self, scores: PairScores) -> str:
        """Reason to drop a pair with these scores, "" if it is good enough."""
        if scores.image_similarity < self.min_image_similarity:
            return "pictures too different"
        if min(scores.source_similarity, scores.target_similarity) < self.min_caption_similarity:
            return "a picture unlike its caption"
        return "" if scores.direction >= self.min_direction else "another change than the captions'"


@dataclass(frozen=True)
class EditProbeConfig(EngineConfig):
    """Options of the edits that are tried while an encoder trains, beside those of the engine.

    Args:
        prompt: words that the engine is asked; {caption} stands for the caption, and an answer has the lines
            "Instruction: ..." and "Result: ...".
        num: number of captions, the first in the order of their keys.
        backbone: diffusers folder or hub id whose text encoders have to read both captions to their ends.
    """

    engine: Literal["existing", "transformers", "server"] = "transformers"
    prompt: str = DEFAULT_EDIT_PROMPT
    num: int = 64
    backbone: str = "stabilityai/sdxl-turbo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.writes:
            raise ValueError("--engine existing writes nothing; give --engine transformers or server")
        if CAPTION not in self.prompt:
            raise ValueError(f"--prompt does not hold {CAPTION}, where the caption goes")
        if self.num < 1:
            raise ValueError(f"--num is {self.num}, expected at least 1")


@dataclass(frozen=True)
class EditPairsConfig(EngineConfig):
    """Options of the stage, beside those of the engine.

    The engine "existing" takes edits that a list holds ("caption", "instruction", "target").

    Args:
        prompt: words that the engine is asked; {caption} stands for the caption, and an answer has the lines
            "Instruction: ..." and "Result: ...".
        captions: number of captions that are used, the first in the order of their names; by default all.
        backbone: diffusers folder or hub id of the Stable Diffusion that draws the pictures.
        variant: file variant on the hub, such as fp16.
        backbone_dtype: precision of its UNet and text encoder; its VAE runs in float32.
        device: place of the engine (transformers), the backbone and the CLIP; "auto" takes each process's own GPU if
            there is one.
        clip: folder or hub id of the CLIP that judges the pairs.
        sampling: options of drawing pairs.
        filter: options of keeping pairs.
        pairs_at_once: pairs in one forward pass, four rows of the UNet each; lower it when memory runs out.
        seed: decides all draws.
        max_damage: share of captions that cannot be read over which the stage stops.
        pictures: format of the stored pictures: jpg (quality 95, no chroma subsampling) or png, which loses nothing.
        unit_size: captions a shard, and what a killed process loses at most; one takes minutes on a GPU.
    """

    temperature: float = 0.7
    prompt: str = DEFAULT_EDIT_PROMPT
    captions: int | None = None
    backbone: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    variant: str | None = None
    backbone_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    clip: str = "openai/clip-vit-large-patch14"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    pairs_at_once: int = 8
    seed: int = 0
    max_damage: float = 0.05
    pictures: Literal["jpg", "png"] = "jpg"
    unit_size: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if CAPTION not in self.prompt:
            raise ValueError(f"--prompt does not hold {CAPTION}, where the caption goes")
        for name in ("captions", "pairs_at_once", "unit_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}, expected at least 0")
