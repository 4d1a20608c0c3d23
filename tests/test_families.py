"""What holds for every family of models: how F starts and learns, what times are fed, what is read of a caption."""

import copy
import math
import re
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from data.captioning.maker import Caption, condensed
from data.captioning.tokens import TokenLimits
from models.backbone import Backbone
from models.noise_encoder import NoiseEncoder
from models.options import INITIAL_LOGVAR
from models.text import Prompt
from tests.test_caption_checks import Shortener
from train.methods.config import LoraConfig
from train.methods.lora import add_lora

CAPTIONS = ("a fox", "two red foxes on a small green hill, in the rain, seen from far away; nobody else is there")


@dataclass(frozen=True)
class Family:
    """A tiny pipeline of a family, and what is its own.

    Args:
        folder: Fixture of the pipeline.
        ends: First and last projection of its network.
        clock: Layer that embeds the time.
        times: Two timesteps.
        fed: Numbers that the layer is given for them.
        tokens: Tokens of a caption that count, by each tokenizer.
        idle: Layers of the attention whose output the network drops.
    """

    folder: str
    ends: tuple[str, str]
    clock: str
    times: tuple[float, float]
    fed: tuple[float, float]
    tokens: tuple[int, ...]
    idle: tuple[str, ...] = ()


def share(t: float) -> float:
    """The rectified flow's time of SANA's angle."""
    return math.sin(t) / (math.sin(t) + math.cos(t))


CLOCK = "time_text_embed.time_proj"
UNET = (("conv_in", "conv_out"), "time_proj", (999, 499), (999.0, 499.0))
FLOW = ((0.999, 0.3137), (999.0, 313.7))
FAMILIES = {
    "sd": Family("tiny_sd_backbone", *UNET, (75,)),
    "sdxl": Family("tiny_backbone", *UNET, (75, 75)),
    "sd3": Family(
        "tiny_sd3",
        ("pos_embed.proj", "proj_out"),
        CLOCK,
        *FLOW,
        (255,),
        idle=("unet.transformer_blocks.1.attn.add_q_proj",),
    ),
    "flux": Family("tiny_flux", ("x_embedder", "proj_out"), CLOCK, *FLOW, (255,)),
    "flux2": Family("tiny_flux2", ("x_embedder", "proj_out"), "time_guidance_embed.time_proj", *FLOW, (493,)),
    "z_image": Family(
        "tiny_z_image",
        ("all_x_embedder.2-1", "all_final_layer.2-1.linear"),
        "t_embedder",
        (0.999, 0.001),
        (1.0, 999.0),
        (493,),
    ),
    "sana": Family(
        "tiny_sana",
        ("patch_embed.proj", "proj_out"),
        "time_embed.time_proj",
        (1.5, 1.3),
        (share(1.5), share(1.3)),
        (298,),
    ),
}


@dataclass(frozen=True)
class Tiny:
    """A tiny backbone of a family with inputs: latents [2, C, h, w] of a width that is not the height, times [2]."""

    own: Family
    folder: str
    backbone: Backbone
    prompt: Prompt
    x0: Tensor
    x0_prev: Tensor
    t: Tensor

    def encoder(self, shared: bool = False) -> NoiseEncoder:
        """F as it starts."""
        return NoiseEncoder.from_generator(self.backbone.network, self.backbone.schedule, shared=shared)

    def posterior(self, encoder: NoiseEncoder, x0_prev: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What F gives for the inputs."""
        return encoder(self.x0, self.x0_prev if x0_prev is None else x0_prev, self.prompt, self.t)


@pytest.fixture(scope="module", params=list(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    own = FAMILIES[request.param]
    folder = request.getfixturevalue(own.folder)
    backbone, draw = Backbone.load(folder), torch.Generator().manual_seed(0)
    shape = (2, backbone.latent_channels, 64 // backbone.vae_factor, 96 // backbone.vae_factor)
    x0, x0_prev = (torch.randn(shape, generator=draw) for _ in range(2))
    return Tiny(
        own, folder, backbone, backbone.encode_text(CAPTIONS), x0, x0_prev, backbone.schedule.times(list(own.times))
    )


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_f_starts_as_g_at_the_clean_latent(tiny: Tiny, shared: bool):
    encoder, backbone = tiny.encoder(shared), tiny.backbone
    expected = backbone.schedule.predict_noise(tiny.x0, backbone.predict(tiny.x0, tiny.prompt, tiny.t), tiny.t)
    for previous in (torch.zeros_like(tiny.x0), 100 * tiny.x0_prev):
        mean, logvar = tiny.posterior(encoder, previous)
        assert (mean - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
        assert torch.equal(logvar, torch.full_like(tiny.x0, INITIAL_LOGVAR))
    theirs = {id(weight) for weight in (*backbone.network.parameters(), *backbone.network.buffers())}
    named = dict(encoder.unet.named_parameters())
    own = {name for name, weight in named.items() if id(weight) not in theirs}
    assert own == {name for name, weight in named.items() if weight.requires_grad}
    assert own == (set(named) if not shared else {name for name in named if name.rpartition(".")[0] in tiny.own.ends})
    backbone.assert_frozen()


@dataclass
class Passes:
    """Gradients of a pass by name, and the bytes that the forward pass kept for the backward pass."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    kept: int = 0


def passes(tiny: Tiny, encoder: NoiseEncoder) -> Passes:
    """Both passes of F for a loss of all that it gives."""
    found = Passes()

    def keep(tensor: Tensor) -> Tensor:
        found.kept += tensor.nbytes
        return tensor

    encoder.zero_grad()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        mean, logvar = tiny.posterior(encoder)
    (mean.square().mean() + logvar.square().mean()).backward()
    found.gradients = {name: w.grad.clone() for name, w in encoder.named_parameters() if w.grad is not None}
    return found


def assert_checkpointing_is_exact(tiny: Tiny, encoder: NoiseEncoder) -> Passes:
    """Checkpointing keeps less and gives the gradients of all that is trained, which come back."""
    plain = passes(tiny, encoder)
    encoder.unet.enable_gradient_checkpointing()
    again = passes(tiny, encoder)
    assert again.kept < 0.8 * plain.kept
    trained = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert plain.gradients.keys() == again.gradients.keys() == trained
    for name, gradient in plain.gradients.items():
        assert (again.gradients[name] - gradient).abs().max() <= 1e-6 * gradient.abs().max(), name
    return plain


def test_checkpointing_changes_no_gradient(tiny: Tiny):
    assert_checkpointing_is_exact(tiny, tiny.encoder().train())


def test_adapters_lie_on_all_of_the_attention(tiny: Tiny):
    encoder, targets = tiny.encoder(shared=True).train(), type(tiny.backbone).LORA_TARGETS
    with torch.no_grad():
        before = tiny.posterior(encoder)
        add_lora(encoder.unet, LoraConfig(rank=2), seed=0)
        for found, expected in zip(tiny.posterior(encoder), before, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    gradients = assert_checkpointing_is_exact(tiny, encoder).gradients
    adapted = {name.partition(".lora_B")[0] for name, found in gradients.items() if "lora_B" in name and found.any()}
    ends = {name: [target for target in targets if name.endswith(f".{target}")] for name, _ in encoder.named_modules()}
    assert adapted == {name for name, found in ends.items() if found} - set(tiny.own.idle)
    assert {target for found in ends.values() for target in found} == set(targets)
    tiny.backbone.assert_frozen()


def test_one_step_opens_what_is_new_in_f(tiny: Tiny):
    encoder, x0_prev = tiny.encoder(), tiny.x0_prev.clone().requires_grad_(True)
    tiny.posterior(encoder, x0_prev)[0].square().sum().backward()
    assert x0_prev.grad is not None and not x0_prev.grad.any()
    gradients = passes(tiny, encoder).gradients
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            weight -= 0.1 * gradients[name] / gradients[name].abs().max().clamp_min(1e-12)
    mean, logvar = tiny.posterior(encoder, x0_prev)
    mean.square().sum().backward()
    assert x0_prev.grad.abs().amax((0, 2, 3)).min() > 0 and logvar.std((0, 2, 3)).min() > 0


@torch.no_grad()
def test_f_may_be_the_first_blocks_alone(tiny: Tiny, tmp_path: Path):
    network, schedule, lists = tiny.backbone.network, tiny.backbone.schedule, type(tiny.backbone).BLOCKS
    have = [len(getattr(network, name)) for name in lists]
    said = f"expected how many F keeps of the {have[0]} " if have else r"as those of Sana.*Flux2\w+ are; leave it out"
    for wrong in ([], [1] * (len(have) + 1), [0] * len(have), [number + 1 for number in have]):
        with pytest.raises(ValueError, match=rf"encoder.blocks is {re.escape(str(wrong))}.*{said}"):
            NoiseEncoder.from_generator(network, schedule, blocks=wrong)
    if not have:
        return
    encoder = NoiseEncoder.from_generator(network, schedule, shared=True, blocks=[1] * len(have))
    first = copy.deepcopy(network)
    for name, number in zip(lists, have, strict=True):
        assert len(getattr(network, name)) == network.config[lists[name]] == number > encoder.unet.config[lists[name]]
        del getattr(first, name)[1:]
    expected = schedule.predict_noise(
        tiny.x0, tiny.backbone.evaluate(first, tiny.x0, tiny.prompt, tiny.t).float(), tiny.t
    )
    found = tiny.posterior(encoder)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
    encoder.unet.save_pretrained(tmp_path)
    again = NoiseEncoder(type(encoder.unet).from_pretrained(tmp_path), schedule)
    assert all(torch.equal(*pair) for pair in zip(found, tiny.posterior(again), strict=True))


@torch.no_grad()
def test_bfloat16_never_rounds_a_time(tiny: Tiny):
    coarse = Backbone.load(tiny.folder, dtype=torch.bfloat16, parts=("network",))
    encoder = NoiseEncoder.from_generator(coarse.network, coarse.schedule)
    adapted = NoiseEncoder.from_generator(coarse.network, coarse.schedule, shared=True)
    seen: list[Tensor] = []
    for network in (coarse.network, encoder.unet, adapted.unet):
        clock = network.get_submodule(tiny.own.clock)
        clock.register_forward_hook(lambda _, given, output: seen.append(given[0].double()))
    coarse.predict(tiny.x0, tiny.prompt, tiny.t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for f in (encoder, adapted):
            f(tiny.x0, tiny.x0_prev, tiny.prompt.to(torch.bfloat16), tiny.t)
    fed = torch.tensor(tiny.own.fed, dtype=torch.float64)
    assert ((fed.bfloat16() - fed).abs() > 5e-4 * fed).any()
    torch.testing.assert_close(torch.stack(seen), fed.expand(3, 2), rtol=1e-6, atol=1e-4)


def text_of(limits: TokenLimits, tokens: int) -> str:
    """Words of two letters, no two of them alike, and more letters: so many tokens by each tokenizer."""
    text = "xy"
    for word in map("".join, product(ascii_lowercase, repeat=2)):
        if max(limits.count(f"{text} {word}")) > tokens:
            break
        text = f"{text} {word}"
    while max(limits.count(f"{text}z")) <= tokens:
        text += "z"
    assert set(limits.count(text)) == {tokens}
    return text


def test_captions_are_condensed_where_the_family_does_not_read_them_to_the_end(tiny: Tiny):
    limits = TokenLimits.load(tiny.folder)
    assert limits.limits == tiny.own.tokens == tuple(reader.tokens for reader in tiny.backbone.readers)
    most = min(limits.limits)
    fitting, longer, far = (text_of(limits, tokens) for tokens in (most, most + 1, most + 40))
    shortener = Shortener(extra=-most // 2)
    kept, short = condensed(shortener, [Caption(text, text) for text in (fitting, longer)], limits)
    assert isinstance(kept, Caption) and kept.text == fitting and not kept.checks
    assert isinstance(short, Caption) and short.checks == {"condensed": 1} and limits.fits(short.text)
    assert len(shortener.asked) == len(shortener.asked[0]) == 1 and longer in shortener.asked[0][0]
    # What the text encoders themselves make of the last letter.
    found = tiny.backbone.encode_text([f"{text[:-1]}{end}" for text in (fitting, far) for end in "vw"]).embeds
    assert not torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
