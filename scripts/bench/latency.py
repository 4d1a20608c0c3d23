"""Seconds to invert and to edit a picture: by the exported pipeline, and by its networks compiled or graphed.

A CUDA graph replays all evaluations of an inversion or an edit without the host. It holds no attention maps, so that
what it makes can be edited without a mask only. Text encoders and VAE run as they are in all of them.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone import freeze
from models.generator import FewStepGenerator
from models.noise_encoder import NoiseEncoder
from models.text import Prompt
from models.turboedit_pipeline import TurboEditPipeline
from scripts.bench.random_backbones import CAPTION
from scripts.miniature import parts

TARGET = CAPTION.replace("red", "green")

Walk = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From a latent or noises and a prompt's three tensors to noises or a latent."""


@dataclass(frozen=True)
class Latency:
    """Seconds of an inversion and an edit (medians), and the share by which the noises differ from the pipeline's."""

    invert: float
    edit: float
    difference: float


class Graphed:
    """A function of tensors as a CUDA graph; its result is overwritten by the next call.

    Args:
        walk: Function that works on the device alone, and always in the same way.
        examples: Inputs of the shapes that it will have.
    """

    def __init__(self, walk: Walk, *examples: Tensor) -> None:
        self.inputs = [example.clone() for example in examples]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # caches are filled and kernels chosen outside of the graph
            for _ in range(3):
                walk(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = walk(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay the graph on other inputs of the same shapes."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.output


class Networks:
    """The two algorithms on latents, as `TurboEditPipeline` runs them, but for the attention maps.

    Args:
        pipeline: Pipeline that holds the networks.
    """

    def __init__(self, pipeline: TurboEditPipeline) -> None:
        self.backbone = pipeline.backbone
        self.generator = FewStepGenerator(self.backbone, pipeline.timesteps)
        self.encoder = NoiseEncoder(pipeline.encoder, self.backbone.schedule)

    @torch.no_grad()
    def invert(self, x0: Tensor, embeds: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        """Algorithm 1: noises [S, B, 4, h, w] of x0 [B, 4, h, w]."""
        prompt, x, noises = Prompt(embeds, pooled, time_ids), torch.zeros_like(x0), []
        for step in self.generator.timesteps:
            t = torch.full((len(x0),), step, device=x0.device)
            noise, _ = self.encoder(x0, x, prompt, t)
            x = self.generator.predict_x0(self.backbone.schedule.add_noise(x, noise, t), prompt, t)
            noises.append(noise)
        return torch.stack(noises)

    @torch.no_grad()
    def edit(self, noises: Tensor, embeds: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        """Algorithm 2: the edited latent [B, 4, h, w]."""
        return self.generator.sample(list(noises), Prompt(embeds, pooled, time_ids))[-1]


def measure_latency(generator: FewStepGenerator, calls: int) -> dict[str, Latency]:
    """Latency of each way to run the networks of an encoder that starts from `generator`, by name."""
    pipeline = untrained_pipeline(generator)
    device = generator.backbone.unet.device
    side = generator.backbone.image_size
    image = (2 * torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) - 1).to(device)
    networks = Networks(pipeline)
    inversion = pipeline.invert(image, CAPTION)
    expected = torch.stack(inversion.noises)
    found = {
        "pipeline": Latency(
            _seconds(lambda: pipeline.invert(image, CAPTION), calls, device),
            _seconds(lambda: pipeline.edit(inversion, TARGET), calls, device),
            0.0,
        )
    }
    for compiled in (False, True):
        if compiled:
            for unet in (pipeline.unet, pipeline.encoder):
                unet.compile_repeated_blocks(dynamic=False)
        for graphed in (False, True)[: 1 + (device.type == "cuda")]:
            name = " + ".join(["networks", *["compile"] * compiled, *["CUDA graph"] * graphed])
            found[name] = _of_networks(networks, pipeline, image, expected, graphed, calls)
    return found


def _of_networks(
    networks: Networks, pipeline: TurboEditPipeline, image: Tensor, expected: Tensor, graphed: bool, calls: int
) -> Latency:
    backbone = networks.backbone
    walks: tuple[Walk, Walk] = (networks.invert, networks.edit)
    if graphed:
        prompt = _tensors(backbone.encode_text([CAPTION]))
        walks = (Graphed(networks.invert, expected[0], *prompt), Graphed(networks.edit, expected, *prompt))

    def invert() -> Tensor:
        return walks[0](backbone.encode_image(image), *_tensors(backbone.encode_text([CAPTION])))

    def edit() -> object:
        return pipeline.decode(walks[1](expected, *_tensors(backbone.encode_text([TARGET]))))

    difference = (invert() - expected).norm() / expected.norm()
    seconds = [_seconds(call, calls, image.device) for call in (invert, edit)]
    return Latency(seconds[0], seconds[1], float(difference))


def untrained_pipeline(generator: FewStepGenerator) -> TurboEditPipeline:
    """The exported pipeline of an encoder as it starts from `generator`, in the generator's dtype."""
    backbone = generator.backbone
    encoder = NoiseEncoder.from_generator(backbone.unet, backbone.schedule).unet.to(backbone.unet.dtype)
    assert backbone.text is not None, "the generator has no text encoders"
    pipeline = TurboEditPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text.encoders[0],
        tokenizer=backbone.text.tokenizers[0],
        unet=backbone.unet,
        scheduler=parts.student_scheduler(),
        encoder=freeze(encoder),
        text_encoder_2=backbone.text.encoders[1],
        tokenizer_2=backbone.text.tokenizers[1],
        attention_resolution=max(8, backbone.unet.config.sample_size // 4),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tensors(prompt: Prompt) -> tuple[Tensor, Tensor, Tensor]:
    assert prompt.pooled is not None and prompt.time_ids is not None, "the generator is no SDXL"
    return prompt.embeds, prompt.pooled, prompt.time_ids


@torch.no_grad()
def _seconds(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Median of some calls after one that warms up."""
    found = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])
