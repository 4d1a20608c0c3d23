"""Figures of the miniature: every part measured on test scenes, written as figures.json and as the model card."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from data.shards.dataset import ShardDataset
from eval.metrics.attributes import AttributeReader
from eval.metrics.pixels import psnr
from models.backbone import Backbone
from models.generator import FewStepGenerator
from models.options import TURBO_TIMESTEPS
from models.schedule import NoiseSchedule
from models.text import tokenize
from scripts.miniature.flow import sigmas_of
from scripts.miniature.measure_captioner import captioner_figures
from scripts.miniature.measure_proposer import proposer_figures, true_edit_scores
from scripts.miniature.parts import SIDE, student_scheduler
from scripts.miniature.readers import reader_agreement, round_trip
from train.methods.network_files import apply_files

logger = logging.getLogger(__name__)

BATCH = 250


def measure_parts(folder: Path, work: Path, guidance: float, device: str) -> dict[str, Any]:
    """All figures of the miniature in `folder`: on the test scenes, and on those of held-out combinations apart."""
    figures = {name: measure_on(folder, work / name, guidance, device) for name in ("test", "heldout")}
    return {**figures["test"], "heldout": figures["heldout"], "guidance": guidance}


@torch.no_grad()
def measure_on(folder: Path, shards: Path, guidance: float, device: str) -> dict[str, Any]:
    """The figures of the miniature in `folder` on the scenes in `shards`."""
    dataset = ShardDataset(shards, ("image", "caption", "info"))
    batch = dataset.read_batch(range(len(dataset)))
    images = batch["image"].to(device)
    reader = AttributeReader.load(folder / "attributes", device)
    backbone = Backbone.load(str(folder / "student"), device=device)
    epsilon = Backbone.load(str(folder / "student_epsilon"), device=device)
    flow = Backbone.load(str(folder / "student_flow"), device=device)
    over_teacher = teacher_with_lora(folder, device)
    decoded = torch.cat([round_trip(backbone.vae, chunk) for chunk in images.split(BATCH)])
    pictures = {
        "attributes_on_renders": images,
        "attributes_on_round_trips": decoded,
        "teacher_20_steps": teacher_images(folder / "teacher", batch["caption"], guidance, device),
        "student_4_step": student_images(backbone, batch["caption"], 4),
        "student_1_step": student_images(backbone, batch["caption"], 1),
        "student_epsilon_4_step": student_images(epsilon, batch["caption"], 4),
        "student_epsilon_1_step": student_images(epsilon, batch["caption"], 1),
        "student_flow_4_step": student_images(flow, batch["caption"], 4),
        "student_flow_1_step": student_images(flow, batch["caption"], 1),
        "teacher_lora_4_step": student_images(over_teacher, batch["caption"], 4),
    }
    return {
        "scenes": len(dataset),
        "vae_psnr": psnr(decoded, images).mean().item(),
        "clip": clip_figures(folder / "clip", images, batch["caption"], device),
        **{name: reader_agreement(reader, shown, batch) for name, shown in pictures.items()},
    }


def teacher_with_lora(folder: Path, device: str) -> Backbone:
    """The teacher with the LoRA over it fused."""
    backbone = Backbone.load(str(folder / "teacher"), device=device)
    backbone.network = apply_files(backbone.network, None, str(folder / "teacher_lora"))
    return backbone


@torch.no_grad()
def student_images(backbone: Backbone, captions: list[str], steps: int) -> Tensor:
    """Pictures of the student from fresh noise, one for each caption."""
    generator = FewStepGenerator(backbone, student_timesteps(backbone.schedule))
    draw = torch.Generator(backbone.network.device).manual_seed(0)
    pictures = []
    for start in range(0, len(captions), BATCH):
        chunk = captions[start : start + BATCH]
        shape = (len(chunk), 4, SIDE // 4, SIDE // 4)
        noises = [torch.randn(shape, generator=draw, device=draw.device) for _ in range(steps)]
        latent = generator.sample(noises, backbone.encode_text(chunk))[-1]
        pictures.append(backbone.decode(latent).clamp(-1, 1))
    return torch.cat(pictures)


def student_timesteps(schedule: NoiseSchedule) -> tuple[float, ...]:
    """The four timesteps of a student, in the numbers of its own schedule."""
    if schedule.kind == "variance_preserving":
        return TURBO_TIMESTEPS
    return tuple(sigmas_of(NoiseSchedule.from_scheduler(student_scheduler())))


def teacher_images(folder: Path, captions: list[str], guidance: float, device: str) -> Tensor:
    """Pictures of the teacher: 20 DDIM steps with classifier-free guidance, by the stock pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator("cpu").manual_seed(0)
    pictures = []
    for start in range(0, len(captions), BATCH):
        chunk = captions[start : start + BATCH]
        output = pipeline(chunk, num_inference_steps=20, guidance_scale=guidance, generator=draw, output_type="pt")
        pictures.append(output.images * 2 - 1)
    return torch.cat(pictures)


@torch.no_grad()
def clip_figures(folder: Path, images: Tensor, captions: list[str], device: str) -> dict[str, float]:
    """Share of pictures whose own caption is the nearest among all test captions, and the mean similarity."""
    clip = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
    ids = tokenize(CLIPTokenizer.from_pretrained(folder), captions, torch.device(device))
    logits = clip(input_ids=ids, pixel_values=images).logits_per_image / clip.logit_scale.exp()
    right = logits.argmax(1) == torch.arange(len(images), device=device)
    return {"retrieval": right.float().mean().item(), "similarity": logits.diagonal().mean().item()}


CARD = """\
# The miniature

A whole text-to-image world in {megabytes:.1f} MB: 64-pixel scenes with known truth, and stock diffusers and transformers models that \
learned them. Made by `python -m scripts.miniature.make`, each part a task on the project's own training engine.

| folder | class | made how |
|---|---|---|
| `clip` | CLIPModel and its tokenizer | contrastive, a hard negative caption for each picture |
| `attributes` | the attribute reader of `eval/metrics/attributes.py`, judge of edits | cross entropy on renders and VAE round trips, every combination seen |
| `teacher`, `student`: `vae` | AutoencoderKL, latents 4 x 16 x 16 | mean squared error on renders |
| `teacher` | Stable Diffusion pipeline, v prediction, DDIM | diffusion loss, text encoder trained with it, captions dropped for guidance |
| `llava` | LlavaForConditionalGeneration and its processor | cross entropy of descriptions, rewritten and condensed captions; vision tower from CLIP, which learned on the way to outline and name objects |
| `proposer` | as `llava`, without pictures | LLaVA taught to propose an edit of a caption: instruction and result, drawn by chance |
| `student` | SDXL pipeline, timesteps 999, 749, 499, 249 | aligned with the guided teacher, then distribution matching over its own four steps |
| `student_epsilon` | the same, but its UNet predicts epsilon as SDXL-Turbo's does; all else is linked | begins as the student with x_t led past its layers, then learns the student's x0 |
| `student_flow` | Stable Diffusion 3 pipeline without T5, a rectified flow, sigmas 1, 0.803, 0.617, 0.409; VAE and second text encoder linked | a transformer from nothing learns the student's x0 |
| `teacher_lora` | a LoRA over the teacher's UNet, which makes four steps without guidance do | begins as what the student's weights differ by, cut to rank 16, then learns the student's x0 |

Figures on {scenes} test scenes (`figures.json`); VAE round trip {vae_psnr:.1f} dB, CLIP finds the right one of all test captions \
for {retrieval:.1f} % of the pictures. Share of attributes that the reader finds as the caption says, in percent:

| picture | {attributes} |
|---|{rules}|
{rows}

The same on {heldout_scenes} scenes of combinations of shape and colour that no generator has seen in training:

| picture | {attributes} |
|---|{rules}|
{heldout_rows}

LLaVA on {captioner_scenes} test scenes and as many test edits, its answers read back: attributes that are said rightly, in percent. {uncut:.1f} % of its captions fit the student's 46 tokens without being cut; {rewritten_exactly:.1f} % of the rewritten captions are the true ones word for word.

| text | all | {attributes} |
|---|---|{rules}|
{captioner_rows}

The proposer on the captions of as many test scenes, at temperature 1 and top_p 0.9: {usable:.1f} % of its answers are an edit, which says what its instruction asks in {proposed_right:.1f} % of them, of {num_instructions} different instructions.

Of true edits 99 in 100 have a cosine of at least {same:.2f} between their two pictures in CLIP's space, and {said:.2f} between picture and caption: no less is asked of generated ones.

The teacher is sampled in 20 DDIM steps at guidance {guidance:g}, the students and the teacher with its LoRA without guidance by re-noising their estimates.
"""

TEXTS = {
    "described": "described, a picture's raw answer",
    "captions": "the same, condensed to a caption",
    "condensed": "a true description, condensed",
    "rewritten": "a true caption, rewritten",
}

PICTURES = {
    "attributes_on_renders": "render",
    "attributes_on_round_trips": "VAE round trip",
    "teacher_20_steps": "teacher, 20 steps",
    "student_4_step": "student, 4 steps",
    "student_1_step": "student, 1 step",
    "student_epsilon_4_step": "epsilon student, 4 steps",
    "student_epsilon_1_step": "epsilon student, 1 step",
    "student_flow_4_step": "flow student, 4 steps",
    "student_flow_1_step": "flow student, 1 step",
    "teacher_lora_4_step": "teacher with its LoRA, 4 steps",
}


def measure_all(folder: Path, work: Path, guidance: float, test_scenes: int, device: str) -> None:
    """Measure every part of the miniature in `folder` and write its figures and its card.

    Args:
        folder: Folder of the miniature.
        work: Folder with the shards `test` and `heldout`.
        guidance: Classifier-free guidance of the teacher.
        test_scenes: Number of scenes and of edits on which the captioner and the proposer are measured.
        device: Device of the networks.
    """
    figures = measure_parts(folder, work, guidance, device)
    texts = {
        "captioner": captioner_figures(folder, test_scenes),
        "proposer": proposer_figures(folder, test_scenes),
        "true_edits": true_edit_scores(folder),
    }
    write_card(folder, figures | texts)


def write_card(folder: Path, figures: dict[str, Any]) -> None:
    """Write figures.json and README.md into `folder`."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    captioner = figures["captioner"]
    attributes = list(figures["attributes_on_renders"])
    card = CARD.format(
        **{name: figures[name] for name in ("scenes", "vae_psnr", "guidance")},
        megabytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        / 1e6,
        retrieval=100 * figures["clip"]["retrieval"],
        attributes=" | ".join(attributes),
        rules="---|" * (len(attributes) - 1) + "---",
        rows=_rows(figures, attributes),
        heldout_scenes=figures["heldout"]["scenes"],
        heldout_rows=_rows(figures["heldout"], attributes),
        captioner_scenes=captioner["scenes"],
        uncut=100 * captioner["uncut"],
        rewritten_exactly=100 * captioner["rewritten_exactly"],
        usable=100 * figures["proposer"]["usable"],
        proposed_right=100 * figures["proposer"]["right"],
        num_instructions=figures["proposer"]["instructions"],
        same=figures["true_edits"]["image_similarity"],
        said=min(figures["true_edits"][name] for name in ("source_similarity", "target_similarity")),
        captioner_rows="\n".join(_captioner_row(title, captioner[name], attributes) for name, title in TEXTS.items()),
    )
    (folder / "README.md").write_text(card)
    logger.info("%s", card)


def _rows(figures: dict[str, Any], attributes: list[str]) -> str:
    """Rows of a Markdown table: a kind of picture each, its attributes in percent."""
    return "\n".join(
        f"| {title} | " + " | ".join(f"{100 * figures[name][key]:.1f}" for key in attributes) + " |"
        for name, title in PICTURES.items()
    )


def _captioner_row(title: str, figures: dict[str, Any], attributes: list[str]) -> str:
    shares = [figures["right"], *(figures["by_attribute"][name] for name in attributes)]
    return f"| {title} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |"
