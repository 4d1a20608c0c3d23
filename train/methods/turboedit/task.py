"""TurboEdit: train a noise encoder F on a frozen few-step generator G with MSE + lambda KL."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.shards.dataset import ShardDataset
from data.shards.origins import check_latents, check_prompts
from eval.metrics.noise import MOMENTS, noise_moments, noise_summary
from models.backbone import PARTS, Backbone, dtype_of
from models.fingerprints import read_text_fingerprint
from models.generator import FewStepGenerator
from models.noise_encoder import NoiseEncoder, NoisePosterior
from models.options import Quantization
from models.quantized import quantize
from models.schedule import NoiseSchedule
from models.shapes import Cutout, SizeConditioning, Sizes
from models.text import Prompt, concatenate, micro_conditioning
from models.turboedit_steps import inversion_step, inversion_steps
from train.methods.lora import add_lora, check_shared_dtype
from train.methods.memory_options import apply_memory_options
from train.methods.network_files import apply_files
from train.methods.turboedit.adversary import Adversary
from train.methods.turboedit.config import EncoderConfig, GeneratorConfig, TurboEditConfig
from train.methods.turboedit.heldout import HeldOutInversions
from train.methods.turboedit.known_noise import KnownNoise, draw_known_noise
from train.methods.turboedit.terms import Made, TermNetworks, build_terms, load_term_networks
from train.methods.turboedit.weighting import TimestepWeights, own_share_at
from train.rng import SampleRandom, StepRandom
from train.run.weights import is_sharded
from train.task import Batch, Critic, StepLoss, Task

logger = logging.getLogger(__name__)


def load_generator(
    config: GeneratorConfig, device: torch.device | str, backbone: Backbone | None = None
) -> FewStepGenerator:
    """G on `device`, frozen; `backbone` if it is there already.

    Raises:
        ValueError: timesteps that do not fall from noisy to clean, or that the generator's schedule does not have.
    """
    if backbone is None:
        backbone = Backbone.load(
            config.path,
            device=device,
            dtype=dtype_of(config.dtype),
            vae_dtype=dtype_of(config.vae_dtype),
            parts=[part for part in PARTS if part != "text" or not config.cached_prompts],
            variant=config.variant,
            prediction_type=config.prediction_type,
        )
        backbone.network = apply_files(backbone.network, config.unet, config.lora)
    timesteps = backbone.schedule.read_timesteps(config.timesteps, "generator.timesteps")
    apply_memory_options(backbone.network, config)
    return FewStepGenerator(backbone, timesteps)


def build_encoder(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: EncoderConfig,
    seed: int,
    quantization: Quantization | None = None,
) -> NoiseEncoder:
    """F as it starts from G's `network`: with weights of its own, or with adapters over G's.

    With a `quantization` G's layers then lie in 8 bits, in place, and so do those that F shares; weights of its own
    start from what G held before.
    """
    if config.lora.rank == 0:
        encoder = NoiseEncoder.from_generator(network, schedule, config.initial_logvar, blocks=config.blocks)
    if quantization:
        quantize(network, quantization)
    if config.lora.rank > 0:
        encoder = NoiseEncoder.from_generator(
            network, schedule, config.initial_logvar, shared=True, blocks=config.blocks
        )
        add_lora(encoder.unet, config.lora, seed)
    return encoder


class TurboEditTask:
    """F on G: the objective of the paper's section 3.3.

    Args:
        config: Config of the training.
        device: Device of G.
        generator: G itself, if it is there already; else `config.generator` says what to load.
        networks: Frozen networks of the objective's further terms, likewise.
    """

    def __init__(
        self,
        config: TurboEditConfig,
        device: torch.device | str,
        generator: FewStepGenerator | None = None,
        networks: TermNetworks | None = None,
    ) -> None:
        self.objective, self.steps = config.objective, config.run.steps
        self.generator = generator or load_generator(config.generator, device)
        self.backbone = self.generator.backbone
        self.schedule = self.generator.schedule
        self.timesteps = self.schedule.times(self.generator.timesteps, device)
        self.weighted = TimestepWeights(self.objective.timestep_weights, device)
        networks = networks or load_term_networks(config, device)
        self.terms = build_terms(self.objective, self.generator, networks)
        self.trainable: nn.Module = build_encoder(
            self.backbone.network, self.schedule, config.encoder, config.run.seed, config.generator.quantize
        )
        apply_memory_options(self.trainable.unet, config.encoder)
        self.adversary: Adversary | None = None
        if config.objective.adversary.weight > 0:
            self.adversary = Adversary(config.objective.adversary, self.backbone, device, config.run.seed)
        self.critic: Critic | None = self.adversary.critic if self.adversary else None
        self.cached_prompts = config.generator.cached_prompts
        self.tries_edits = not self.cached_prompts
        self.own_sizes = self.backbone.takes_sizes and config.generator.size_conditioning == "original"
        captions = ["caption"] if networks.teacher and self.cached_prompts else []  # which the teacher reads itself
        self.fields = ("latent", *self._prompt_fields(), *captions, *(["info"] if self.own_sizes else []))
        self.groups = tuple(f"t{t}" for t in self.generator.timesteps)
        self.heldout = HeldOutInversions(self.generator, config.data.attributes)
        self.backbone.assert_frozen()

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """One random timestep a sample; report values are per sample (docs/loss.md walks through it)."""
        # c, t: the sample's text and one of the generator's timesteps
        x0, sizes = batch["latent"], self._sizes(batch)
        prompt = self._prompt(batch, sizes)
        index = rng.integers("timestep", len(self.timesteps))
        group = index.to(x0.device, non_blocking=True)
        t = self.timesteps[group]

        # x_{0,t+1}: the reconstruction at the timestep before, the noisier one
        x0_prev = self.previous_reconstruction(model, x0, prompt, index, rng)

        # z: pictures that G makes of known noise, for some of the samples (objective.known_noise_weight)
        known = self._known_noise(x0_prev, prompt, t, rng)

        # eps: a draw from F's Gaussian, by the reparameterisation trick
        posterior, of_known = self._posteriors(model, x0, x0_prev, prompt, t, known)
        noise = posterior.sample(rng.normal("posterior", x0.shape[1:]))

        # eq. 6: xhat_t = sqrt(abar_t) x_{0,t+1} + sqrt(1 - abar_t) eps, L_MSE = E ||x0 - G(xhat_t, c, t)||^2
        x0_hat = self.generator.predict_x0(self.schedule.add_noise(x0_prev, noise, t), prompt, t)
        mse = self._squared_error(x0_hat, x0)

        # eq. 7: L_KL = E[KL(N(mu, var) || N(0, 1))]
        kl = posterior.kl()

        # Further terms: each off by default (docs/terms.md)
        captions = batch.get("caption", ())
        further, figures = self._further_terms(
            Made(x0, x0_hat, noise, posterior, prompt, captions, sizes, known, of_known, rng)
        )

        # What is logged and not trained on
        sigma = torch.exp(0.5 * posterior.logvar.detach()).flatten(1).mean(1)
        report = {"latent_mse": mse, "kl": kl, "posterior_sigma": sigma} | _prefixed(noise_moments(noise)) | figures

        # eq. 8: L = L_MSE + lambda L_KL
        terms = {"mse": self.weighted(mse, group).mean(), "weighted_kl": self.objective.kl_weight * kl.mean()} | further
        return self._judged(
            StepLoss(terms, {name: value.detach() for name, value in report.items()}, group), x0, x0_hat, prompt, rng
        )

    def _judged(self, step: StepLoss, x0: Tensor, x0_hat: Tensor, prompt: Prompt, rng: StepRandom) -> StepLoss:
        """The step with the adversary's losses, where there is one."""
        return self.adversary.judged(step, x0, x0_hat, prompt, rng) if self.adversary else step

    @torch.no_grad()
    def previous_reconstruction(
        self, model: nn.Module, x0: Tensor, prompt: Prompt, index: Tensor, rng: StepRandom
    ) -> Tensor:
        """x_{0,t+1} [B, 4, h, w] for each sample's timestep number `index` [B] (CPU): zeros at the first timestep.

        Simulated as in the paper by one-step SDEdit from x0; for `own_share` of the samples by F and G themselves.
        """
        share = own_share_at(rng.step, self.objective.own_share, self.objective.own_share_ramp, self.steps)
        own = (rng.uniform("own") < share) & (index > 0)
        previous = torch.zeros_like(x0)
        rows = torch.nonzero((index > 0) & ~own).squeeze(1)
        noise = rng.normal("sdedit", x0.shape[1:])
        if len(rows):
            t = self.timesteps[(index[rows] - 1).to(x0.device, non_blocking=True)]
            there = rows.to(x0.device, non_blocking=True)
            noisy = self.schedule.add_noise(x0[there], noise[there], t)
            previous[there] = self.generator.predict_x0(noisy, prompt[rows], t)
        together = self.objective.own_share > 0 and is_sharded(model)
        for step in range(len(self.timesteps) - 1):
            rows = torch.nonzero(own & (index > step)).squeeze(1)
            # A process without such a row still takes part where F lies in pieces, with a row that it throws away.
            taken = rows if len(rows) or not together else torch.zeros(1, dtype=torch.long)
            if len(taken):
                there = taken.to(x0.device, non_blocking=True)
                made = inversion_step(model, self.generator, x0[there], previous[there], prompt[taken], step)
                previous[there[: len(rows)]] = made.reconstruction[: len(rows)]
        return previous

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """The image where the shards hold it, the VAE's round trip, the reconstruction after each step, and the edit.

        The noise is the encoder's mean. Edits are tried on held-out pictures.
        """
        x0: Tensor = batch["latent"]
        prompt = self._prompt(batch, self._sizes(batch))
        columns = {"image": batch["image"]} if "image" in batch else {}
        columns["VAE round trip"] = self.backbone.decode(x0)
        steps = list(inversion_steps(model, self.generator, x0, prompt))
        for number, step in enumerate(steps, 1):
            columns[f"{number} step" + "s" * (number > 1)] = self.backbone.decode(step.reconstruction)
        if any(probes := batch.get("probe", [])):
            inversion = self.heldout.inversion(x0, prompt, steps)
            columns["edit"] = self.heldout.edit_column(inversion, probes, columns["VAE round trip"])
        return columns

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch, rng: SampleRandom) -> dict[str, Tensor]:
        """Figures of each held-out sample (train/methods/turboedit/heldout.py)."""
        return self.heldout.figures(
            model, batch["latent"], self._prompt(batch, self._sizes(batch)), batch["probe"], rng
        )

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Noise moments become mean, deviation, kurtosis ... for each timestep; everything else stays."""
        moments_of = ("noise", "mean_noise")
        hidden = (*(f"{noise}_" for noise in moments_of), "known_")
        logged = {name: value for name, value in means.items() if not name.startswith(hidden)}
        suffixes = ("", *(f"/{group}" for group in self.groups))
        for suffix in suffixes:
            if rows := means.get(f"known_rows{suffix}"):
                logged[f"known_noise{suffix}"] = means[f"known_noise{suffix}"] / rows
        for noise, suffix in itertools.product(moments_of, suffixes):
            moments = {name: means[key] for name in MOMENTS if (key := f"{noise}_{name}{suffix}") in means}
            if len(moments) == len(MOMENTS):
                logged |= {f"{noise}_{name}{suffix}": value for name, value in noise_summary(moments).items()}
        return logged

    def _known_noise(self, x0_prev: Tensor, prompt: Prompt, t: Tensor, rng: StepRandom) -> KnownNoise | None:
        if not self.objective.known_noise_weight:
            return None
        return draw_known_noise(self.generator, x0_prev, prompt, t, self.objective.known_noise_share, rng)

    def _posteriors(
        self, model: nn.Module, x0: Tensor, x0_prev: Tensor, prompt: Prompt, t: Tensor, known: KnownNoise | None
    ) -> tuple[NoisePosterior, NoisePosterior | None]:
        """F's Gaussians for the samples and for pictures of known noise, in one pass: DDP and ZeRO count them."""
        if known is None:
            return NoisePosterior(*model(x0, x0_prev, prompt, t)), None
        rows = known.rows
        pictures, previous = torch.cat([x0, known.picture]), torch.cat([x0_prev, x0_prev[rows]])
        both = model(pictures, previous, concatenate([prompt, known.prompt]), torch.cat([t, t[rows]]))
        return NoisePosterior(*(x[: len(x0)] for x in both)), NoisePosterior(*(x[len(x0) :] for x in both))

    def _further_terms(self, made: Made) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms beside the paper's, and figures [B]; a term without weight is a figure alone."""
        weighted: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            with torch.set_grad_enabled(term.weight > 0 and torch.is_grad_enabled()):
                found = term(made)
            if term.weight > 0:
                weighted[f"weighted_{name}"] = term.weight * found[name].mean()
            figures |= found
        return weighted, figures

    def _squared_error(self, x0_hat: Tensor, x0: Tensor) -> Tensor:
        """[B]: mean over the elements of a latent, or of the decoded picture."""
        if self.objective.space == "pixel":
            x0_hat = self.backbone.decode(x0_hat)
            with torch.no_grad():
                x0 = self.backbone.decode(x0)
        return F.mse_loss(x0_hat.float(), x0.float(), reduction="none").flatten(1).mean(1)

    def _prompt_fields(self) -> Sequence[str]:
        return self.backbone.prompt_fields if self.cached_prompts else ("caption",)

    def _prompt(self, batch: Batch, sizes: Sizes) -> Prompt:
        if not self.cached_prompts:
            return self.backbone.encode_text(batch["caption"], sizes)
        pooled = batch.get("pooled")
        time_ids = micro_conditioning(batch["pooled"], sizes) if self.backbone.takes_sizes else None
        mask = batch["mask"] > 0.5 if "mask" in batch else None
        return Prompt(batch["prompt"], pooled, time_ids, mask)

    def _sizes(self, batch: Batch) -> Sizes:
        """Sizes of the pictures, of which SDXL is told: their own, or that of what the networks see."""
        height, width = seen = self.backbone.pixels(batch["latent"].shape[-2:])
        if not self.own_sizes:
            return SizeConditioning.uncropped(height, width)
        return [_cutout(info, seen).conditioning for info in batch["info"]]


def _cutout(info: Mapping[str, Any], seen: tuple[int, int]) -> Cutout:
    """What a sample's picture, `seen` at a height and a width, shows of its photograph."""
    width, height = info["original_size"]
    left, top, cut_width, cut_height = info["crop"]
    return Cutout((height, width), (left, top, cut_width, cut_height), seen)


def _prefixed(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"noise_{name}": value for name, value in moments.items()}


def load(config: TurboEditConfig, device: torch.device) -> tuple[Task, ShardDataset]:
    """The task on `device` and its data.

    Raises:
        ValueError: another VAE made the shards' latents, other text encoders their prompts, they lack what the task
            reads, or F shares weights that a CPU's autocast cannot take.
    """
    if config.encoder.lora.rank:
        check_shared_dtype(config.generator.dtype, config.run.mixed_precision, device, "generator.dtype")
    task = TurboEditTask(config, device)
    dataset = ShardDataset(config.data.shards, task.fields)
    check_latents(dataset, task.backbone)
    if config.generator.cached_prompts:
        check_prompts(dataset, read_text_fingerprint(config.generator.path, config.generator.variant))
    return task, dataset
