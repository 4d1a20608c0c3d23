"""The steps that make the miniature, each a run folder or files under its work folder."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from data.jobs.device import choose_device
from data.jobs.forked import start_command
from data.shards.dataset import ShardDataset
from data.world.captions import long_caption, short_caption
from data.world.splits import sample_scene
from eval.metrics.attributes import AttributeReader
from models.backbone import Backbone, freeze
from models.text import DualClipText
from scripts.miniature import measure, parts
from scripts.miniature.epsilon import EpsilonTask, build_epsilon_unet
from scripts.miniature.flow import FlowTask, build_text, build_transformer, save_flow
from scripts.miniature.llava import LlavaTask, build_llava, build_processor, sample_exchanges
from scripts.miniature.lora import LoraTask, add_student_lora, save_student_lora
from scripts.miniature.proposer import ProposerTask
from scripts.miniature.readers import ClipTask, ReaderTask, VaeTask
from scripts.miniature.sight import SightTask
from scripts.miniature.student import AlignTask, DistilTask, GuidedTeacher, StudentAndFake
from scripts.miniature.teacher import CaptionedUnet, TeacherTask
from train.engine import fit
from train.exports.pipeline import forget_paths
from train.run.checkpoint import EMA, Checkpoints, read_part
from train.run.config import DataConfig, EmaConfig, FitConfig, LogConfig, OptimConfig, RunConfig
from train.run.launch import Launch
from train.run.weights import load_trained
from train.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Length:
    """Length of one part's training: steps, samples of a step, learning rate."""

    steps: int
    batch: int
    lr: float


@dataclass(frozen=True)
class Recipe:
    """Sizes of the world and of every training.

    Args:
        scenes: Training scenes.
        test_scenes: Scenes on which the figures are measured.
        guidance: Classifier-free guidance of the teacher, in distillation and in its figures.
    """

    scenes: int = 90_000
    test_scenes: int = 1_000
    vae: Length = Length(7_000, 128, 1e-3)
    clip: Length = Length(4_000, 256, 1e-3)
    attributes: Length = Length(2_600, 256, 2e-3)
    teacher: Length = Length(1_940, 512, 1e-3)
    align: Length = Length(190, 512, 6e-4)
    distil: Length = Length(400, 512, 2e-4)
    epsilon: Length = Length(400, 64, 1e-3)
    flow: Length = Length(6_000, 8, 1.2e-3)
    lora: Length = Length(320, 8, 1e-3)
    llava_frozen: Length = Length(2_000, 32, 1.5e-3)
    llava: Length = Length(2_400, 32, 6e-4)
    sight: Length = Length(1_500, 64, 1e-3)
    llava_seeing: Length = Length(1_000, 32, 5e-4)
    proposer: Length = Length(1_500, 48, 8e-4)
    guidance: float = 3.0


QUICK = Recipe(
    scenes=90,
    test_scenes=6,
    vae=Length(2, 4, 1e-3),
    clip=Length(2, 4, 1e-3),
    attributes=Length(2, 4, 2e-3),
    teacher=Length(2, 4, 1e-3),
    align=Length(2, 4, 6e-4),
    distil=Length(3, 4, 2e-4),
    epsilon=Length(2, 4, 1e-3),
    flow=Length(2, 4, 1e-3),
    lora=Length(2, 4, 2e-3),
    llava_frozen=Length(2, 4, 1.5e-3),
    llava=Length(2, 4, 6e-4),
    sight=Length(2, 4, 1e-3),
    llava_seeing=Length(2, 4, 5e-4),
    proposer=Length(2, 4, 6e-4),
)


@dataclass(frozen=True)
class MiniatureSteps:
    """The steps that make the miniature, and where everything lies.

    Args:
        out: Folder of the miniature.
        work: Folder for scenes, shards and runs.
        recipe: Sizes of the world and of every training.
        processes: Processes of the data stages and of the loader.
        precision: Precision of the forward passes.
    """

    out: Path
    work: Path
    recipe: Recipe
    processes: int
    precision: Literal["no", "bf16"]

    def scenes(self) -> None:
        """The tokenizer, and shards: `train`, `test`, `heldout`, and `reader`, where every combination occurs."""
        number = self.recipe.scenes
        self._scenes("train", "mixed", {"train": (0, number)})
        self._scenes("reader", "long", {"train": (1, number // 3), "heldout": (1, number // 9)})
        for split in ("test", "heldout"):
            self._scenes(split, "long", {split: (0, self.recipe.test_scenes)})
        scenes = [sample_scene("train", 0, index) for index in range(500)]
        captions = [describe(scene) for scene in scenes for describe in (long_caption, short_caption)]
        parts.build_tokenizer(captions).save_pretrained(self.out / "clip")

    def _scenes(self, name: str, captions: str, splits: dict[str, tuple[int, int]]) -> None:
        """Render (seed, number) scenes of each split and make one folder of captioned shards of them."""
        if (self.work / name / "manifest.json").is_file():
            return
        folder = self.work / f"{name}-scenes"
        for split, (seed, number) in splits.items():
            options = (f"--num={number}", f"--split={split}", f"--seed={seed}", f"--captions={captions}")
            self._call(1, "data.scenes", folder / split, *options, f"--workers={self.processes}")
        copies = min(self.processes, 1 + sum(number for _, number in splits.values()) // 5_000)
        size = f"--resolution={parts.SIDE}"
        self._call(copies, "data.caption", folder, self.work / name, "--engine=existing", size)

    def vae(self) -> None:
        """The VAE, its latents scaled to unit deviation."""
        torch.manual_seed(1)
        task = VaeTask(parts.build_vae())
        self._fit("vae", task, self.recipe.vae, "train")
        vae: AutoencoderKL = task.trainable.vae.cpu()
        vae.register_to_config(scaling_factor=parts.latent_scale(vae, ShardDataset(self.work / "train", ("image",))))
        parts.save_half(vae, self.work / "vae")

    def encode(self) -> None:
        """Latents of the training scenes."""
        torch.manual_seed(1)
        text = CLIPTextModel(parts.build_clip(self._tokenizer()).config.text_config)
        self._save_teacher(parts.build_teacher_unet(), text, self.work / "untrained")
        copies, backbone = max(1, self.processes // 2), f"--backbone={self.work / 'untrained'}"
        self._call(copies, "data.encode", self.work / "train", self.work / "latents", backbone, "--batch=256")

    def clip(self) -> None:
        """CLIP: text encoder of the student, and a metric."""
        torch.manual_seed(2)
        task = ClipTask(parts.build_clip(self._tokenizer()), self._tokenizer())
        self._fit("clip", task, self.recipe.clip, "train")
        parts.save_half(task.trainable.clip.cpu(), self.out / "clip")

    def attributes(self) -> None:
        """The attribute reader, on renders and on round trips of the VAE.

        It judges held-out combinations too, so it has to have seen them: one that has not takes shortcuts there.
        """
        torch.manual_seed(3)
        task = ReaderTask(AttributeReader(), freeze(self._vae()))
        self._fit("attributes", task, self.recipe.attributes, "reader")
        task.reader.cpu().save(self.out / "attributes")

    def teacher(self) -> None:
        """The teacher and, jointly, its text encoder, which starts as CLIP's."""
        torch.manual_seed(4)
        text = CLIPTextModel.from_pretrained(self.out / "clip", torch_dtype=torch.float32)
        model = CaptionedUnet(parts.build_teacher_unet(), text)
        self._fit("teacher", TeacherTask(model, self._tokenizer()), self.recipe.teacher, "latents")
        self._save_teacher(model.unet.cpu(), model.text_encoder.cpu(), self.out / "teacher")

    def student(self) -> None:
        """The student: aligned with the guided teacher, then distilled to four steps."""
        torch.manual_seed(5)
        device = _device()
        teacher = GuidedTeacher(Backbone.load(str(self.out / "teacher"), device=device), self.recipe.guidance)
        text = self._student_text(device)
        student = parts.build_student_unet(teacher.backbone.unet).to(device)
        self._fit("align", AlignTask(student, teacher, text), self.recipe.align, "latents")
        fake = UNet2DConditionModel.from_config(teacher.backbone.unet.config).to(device)
        fake.load_state_dict(teacher.backbone.unet.state_dict())
        both = StudentAndFake(student, fake)
        self._fit("distil", DistilTask(both, teacher, text), self.recipe.distil, "latents")
        self._save_student(both.networks["student"].cpu(), text)

    def student_epsilon(self) -> None:
        """The epsilon student, aligned with the student; all but its UNet and its scheduler is the student's."""
        torch.manual_seed(8)
        student = Backbone.load(str(self.out / "student"), device=_device())
        task = EpsilonTask(build_epsilon_unet(student.unet), student)
        self._fit("epsilon", task, self.recipe.epsilon, "latents")
        folder = self.out / "student_epsilon"
        parts.save_half(task.trainable.cpu(), folder / "unet")
        parts.student_scheduler("epsilon").save_pretrained(folder / "scheduler")
        forget_paths(folder)
        shutil.copy(self.out / "student" / "model_index.json", folder)
        for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(Path("..") / "student" / name)

    def student_flow(self) -> None:
        """The flow student, aligned with the student, whose VAE and second text encoder it has."""
        torch.manual_seed(9)
        student = Backbone.load(str(self.out / "student"), device=_device())
        task = FlowTask(build_transformer(), student, build_text(student))
        self._fit("flow", task, self.recipe.flow, "latents")
        save_flow(self.out / "student_flow", task.transformer.cpu(), task.text, self.out / "student")

    def teacher_lora(self) -> None:
        """The LoRA over the teacher, which learns from the student."""
        torch.manual_seed(9)
        teacher, student = (Backbone.load(str(self.out / name), device=_device()) for name in ("teacher", "student"))
        add_student_lora(teacher.network, student.network)
        self._fit("teacher_lora", LoraTask(teacher, student), self.recipe.lora, "latents")
        save_student_lora(teacher.network, self.out / "teacher_lora")

    def llava(self) -> None:
        """The captioner: with CLIP's eyes as they are, with all weights, and again once its eyes know shapes.

        Like the reader it has seen every combination.
        """
        torch.manual_seed(6)
        clip = CLIPModel.from_pretrained(self.out / "clip", torch_dtype=torch.float32)
        processor = build_processor(sample_exchanges(500))
        task = LlavaTask(build_llava(processor, clip), processor)
        task.llava.model.vision_tower.requires_grad_(False)
        self._fit("llava_frozen", task, self.recipe.llava_frozen, "reader")
        task.llava.requires_grad_(True)
        self._fit("llava", task, self.recipe.llava, "reader")
        self._fit("sight", SightTask(task.llava.model.vision_tower), self.recipe.sight, "reader")
        self._fit("llava_seeing", task, self.recipe.llava_seeing, "reader")
        parts.save_half(task.llava.cpu(), self.out / "llava")
        processor.save_pretrained(self.out / "llava")

    def proposer(self) -> None:
        """The language model that proposes edits of captions: LLaVA, which already carries them out."""
        torch.manual_seed(7)
        processor = LlavaProcessor.from_pretrained(self.out / "llava")
        llava = LlavaForConditionalGeneration.from_pretrained(self.out / "llava", dtype=torch.float32)
        task = ProposerTask(llava, processor)
        task.llava.model.vision_tower.requires_grad_(False)
        self._fit("proposer", task, self.recipe.proposer, "train")
        parts.save_half(task.llava.cpu(), self.out / "proposer")
        processor.save_pretrained(self.out / "proposer")

    def card(self) -> None:
        """Measures every part on test scenes and writes the model card."""
        measure.measure_all(self.out, self.work, self.recipe.guidance, self.recipe.test_scenes, _device())

    def _tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.out / "clip")

    def _vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.work / "vae", torch_dtype=torch.float32).to(_device())

    def _student_text(self, device: str) -> DualClipText:
        first = CLIPTextModel.from_pretrained(self.out / "teacher" / "text_encoder", torch_dtype=torch.float32)
        second = CLIPTextModelWithProjection.from_pretrained(self.out / "clip", torch_dtype=torch.float32)
        encoders = [freeze(encoder.to(device)) for encoder in (first, second)]
        return DualClipText([self._tokenizer()] * 2, encoders)

    def _save_teacher(self, unet: UNet2DConditionModel, text: CLIPTextModel, folder: Path) -> None:
        pipeline = StableDiffusionPipeline(
            vae=self._vae().cpu(),
            text_encoder=text,
            tokenizer=self._tokenizer(),
            unet=unet,
            scheduler=parts.teacher_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(torch.float16).save_pretrained(folder)
        forget_paths(folder)

    def _save_student(self, unet: UNet2DConditionModel, text: DualClipText) -> None:
        first, second = (encoder.cpu() for encoder in text.encoders)
        pipeline = StableDiffusionXLPipeline(
            vae=self._vae().cpu(),
            text_encoder=first,
            text_encoder_2=second,
            tokenizer=text.tokenizers[0],
            tokenizer_2=text.tokenizers[1],
            unet=unet,
            scheduler=parts.student_scheduler(),
            add_watermarker=False,
        )
        pipeline.to(torch.float16).save_pretrained(self.out / "student")
        forget_paths(self.out / "student")

    def _config(self, name: str, length: Length, shards: str) -> FitConfig:
        return FitConfig(
            run=RunConfig(
                folder=str(self.work / "runs" / name),
                steps=length.steps,
                global_batch=length.batch,
                micro_batch=length.batch,
                mixed_precision=self.precision,
            ),
            data=DataConfig(str(self.work / shards), workers=0 if self.processes == 1 else self.processes),
            optim=OptimConfig(lr=length.lr, warmup_steps=length.steps // 50, decay="cosine", final_lr_share=0.02),
            ema=EmaConfig(decay=0.999),
            log=LogConfig(log_every=100, preview_every=2_000, checkpoint_every=500),
        )

    def _fit(self, name: str, task: Task, length: Length, shards: str) -> None:
        """Train a task in its run folder, or find it finished; its trainable then holds the averaged weights."""
        config = self._config(name, length, shards)
        fit(task, ShardDataset(config.data.shards, task.fields), config, Launch(config.run))
        newest = Checkpoints(Path(config.run.folder) / "checkpoints", config.log.keep_checkpoints).newest()
        assert newest is not None, f"the run of {name} left no checkpoint"
        load_trained(task.trainable, read_part(newest, EMA))
        task.trainable.eval()

    def _call(self, copies: int, module: str, *words: object) -> None:
        """Run a data stage as its users do, several copies of the same command at once where it shares the work."""
        logger.info("%d x %s", copies, " ".join([module, *map(str, words)]))
        running = [start_command(module, *words) for _ in range(copies)]
        for process in running:  # all of them end before a failure is reported
            process.join()
        if any(process.exitcode for process in running):
            raise RuntimeError(f"{module} failed; its message stands above")


def _device() -> str:
    return choose_device().type


def take_steps(
    names: Sequence[str], out: Path, work: Path, quick: bool, processes: int, precision: Literal["no", "bf16"]
) -> None:
    """Take the named steps, which are methods of MiniatureSteps, one after another."""
    steps = MiniatureSteps(out, work, QUICK if quick else Recipe(), processes, precision)
    for name in names:
        action: Callable[[], None] = getattr(steps, name)
        logger.info("step %s", name)
        action()
