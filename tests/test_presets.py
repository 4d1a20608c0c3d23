"""Every launch preset, on two processes of a CPU, trains as one process does, and takes up what another has saved."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import DeepSpeedPlugin
from safetensors.torch import load_file
from torch import nn

from data.captioning.config import CaptionConfig
from data.captioning.stage import caption_folder
from data.encode import EncodeConfig, encode_shards
from data.jobs.command import parse
from data.scenes import write_scenes
from tests.processes import TORCHRUN, finish, run, start_ranks
from tests.tiny_training import SIZES, write_latents
from tests.turboedit_runs import command, heldout_figures, losses, write_shards
from train.export import export
from train.methods.turboedit.config import TurboEditConfig
from train.run.checkpoint import CRITIC, MODEL, OPTIMIZER
from train.run.launch import accumulation_steps
from train.run.zero import check_fit
from train.run.zero_settings import resolve_zero_settings

PRESETS = sorted(path.stem for path in Path("configs/accelerate").glob("*.yaml"))
STEPS = 4
OPTIONS = (
    *(
        f"--run.steps={STEPS}",
        "--optim.lr=1e-4",
        "--log.checkpoint_every=2",
        f"--log.preview_every={STEPS}",
        "--log.log_every=1",
    ),
    *("--generator.gradient_checkpointing=true", "--encoder.gradient_checkpointing=true"),
)

Train = Callable[..., str]


def launch(preset: str | None, module: list[str], processes: int = 2) -> str:
    """Output of a training on the CPU, by a preset or without a launcher."""
    words = ["-m", *module]
    if preset:
        single = preset == "one_gpu"
        launcher = ["-m", "accelerate.commands.launch", f"--config_file=configs/accelerate/{preset}.yaml"]
        launcher += [f"--num_processes={1 if single else processes}", "--num_machines=1"]
        words = [*launcher, *([] if single else ["--main_process_port=0"]), *words]
    return run(*words, fresh=preset is not None, ACCELERATE_USE_CPU=None).stderr  # a variable that DeepSpeed refuses


@pytest.fixture(scope="module")
def train(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains TurboEdit in a folder, by a preset."""
    shards = write_shards(tmp_path_factory.mktemp("turboedit"), tiny_backbone)

    # Five held-out samples are three batches, so that one of two ranks has none left.
    looks = (f"--data.validation={shards}", "--log.validation_samples=5", f"--log.validate_every={STEPS}")

    def train_by(preset: str | None, folder: Path, *options: str, processes: int = 2) -> str:
        return launch(preset, command(folder, shards, tiny_backbone, *OPTIONS, *looks, *options), processes)

    return train_by


@pytest.fixture(scope="module")
def alone(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process without a launcher."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(None, folder)
    return folder


def assert_same_end(folder: Path, alone: Path) -> None:
    """Weights, averages and moments of the last step."""
    one, other = (path / "checkpoints" / f"step-{STEPS:06d}" for path in (folder, alone))
    for name in (MODEL, "ema.safetensors"):
        expected = load_file(other / name)
        torch.testing.assert_close(load_file(one / name), expected, rtol=1e-4, atol=2e-5)
    moments, expected = (torch.load(path / OPTIMIZER) for path in (one, other))
    assert moments["param_groups"][0].keys() == expected["param_groups"][0].keys()
    assert moments["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        mine = moments["state"][number]
        assert mine["step"] == state["step"] == STEPS
        for moment in ("exp_avg", "exp_avg_sq"):
            distance = (mine[moment] - state[moment]).norm() / state[moment].norm().clamp_min(1e-12)
            assert distance < 1e-2, f"{moment} of parameter {number} is {distance:.1e} away"


def test_zero_3_gives_the_losses_of_one_process(train: Train, alone: Path, tmp_path: Path):
    """With the variables of which `accelerate launch` makes the preset, in forked ranks."""
    variables = {"ACCELERATE_USE_CPU": None, "ACCELERATE_USE_DEEPSPEED": "true"}
    variables |= {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "configs/deepspeed/zero3.json"}
    words = [f"--config={alone / 'config.yaml'}", f"--run.folder={tmp_path / 'run'}"]
    output = finish(start_ranks(2, "-m", "train.turboedit", *words, **variables))[0]
    assert "2 process(es) on cpu: global batch 8 = 2 x 2 accumulated" in output and "ZeRO-3" in output
    assert_trained_alike(tmp_path / "run", alone)


def assert_trained_alike(folder: Path, alone: Path) -> None:
    """Losses, the end and the figures of held-out samples."""
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
    assert_same_end(folder, alone)
    for found, expected in zip(heldout_figures(folder), heldout_figures(alone), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_the_losses_of_one_process(preset: str, train: Train, alone: Path, tmp_path: Path):
    output = train(preset, tmp_path / "run")
    stage = f"ZeRO-{preset[4]}" if preset.startswith("zero") else "precision no"
    processes = 1 if preset == "one_gpu" else 2
    assert f"{processes} process(es) on cpu: global batch 8 = {processes} x {4 // processes} accumulated" in output
    assert stage in output
    assert_trained_alike(tmp_path / "run", alone)
    export(tmp_path / "run", tmp_path / "exported", dtype="float32")
    stored = load_file(tmp_path / "exported" / "encoder" / "diffusion_pytorch_model.safetensors")
    averages = load_file(tmp_path / "run" / f"checkpoints/step-{STEPS:06d}" / "ema.safetensors")
    assert all(torch.equal(stored[name.removeprefix("unet.")], value) for name, value in averages.items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second"),
    [("zero1", "zero1"), ("zero2", "zero2"), ("zero3", "zero3"), ("zero3_offload", None), ("ddp", "zero2")],
)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["2 to 1", "1 to 2"])
def test_a_run_goes_on_under_another_launch(
    first: str, second: str | None, before: int, after: int, train: Train, alone: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    if second is None and after == 2:
        second = "cpu"
    train(first, folder, "--run.steps=2", processes=before)
    assert "resuming from" in train(second, folder, processes=after)
    assert losses(folder)[-1] == pytest.approx(losses(alone)[-1], rel=1e-5)
    assert_same_end(folder, alone)


@pytest.mark.long
@pytest.mark.parametrize("preset", ["zero2", "zero3_offload"])
def test_bf16_keeps_fp32_masters(preset: str, train: Train, tmp_path: Path):
    for name in ("cpu", preset):
        train(name, tmp_path / name, "--run.mixed_precision=bf16")
    assert losses(tmp_path / preset) == pytest.approx(losses(tmp_path / "cpu"), rel=0.02)
    weights = load_file(tmp_path / preset / f"checkpoints/step-{STEPS:06d}" / MODEL)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert any((value != value.bfloat16()).any() for value in weights.values())


@pytest.mark.long
@pytest.mark.parametrize("preset", ["cpu", "zero1", "zero2", "zero3", "zero2_offload"])
def test_a_step_without_finite_gradient_is_left_out_everywhere(preset: str, tmp_path: Path):
    shards = write_latents(tmp_path / "shards")
    options = [*SIZES, "--run.micro_batch=2", "--broken_key=sample0003", f"--data.shards={shards}", "--optim.lr=1e-2"]
    module = ["tests.tiny_training", *options, "--log.log_every=1", "--log.preview_every=0"]
    launch(None, [*module, f"--run.folder={tmp_path / 'alone'}"])
    output = launch(preset, [*module, f"--run.folder={tmp_path / 'run'}"])
    assert output.count("the gradient is not finite, the step was not applied") in (3, 4)
    lines, expected = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert [line is None for line in lines] == [line is None for line in expected] and None in lines
    finite = [pair for pair in zip(lines, expected, strict=True) if pair[1] is not None]
    assert [line for line, _ in finite] == pytest.approx([line for _, line in finite], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("preset", ["zero1", "zero2", "zero3"])
def test_a_critic_trains_beside_pieces_and_steps_only_with_them(preset: str, tmp_path: Path):
    shards = write_latents(tmp_path / "shards")
    options = [*SIZES, "--run.steps=8", "--run.micro_batch=2", f"--data.shards={shards}", "--log.log_every=1"]
    options += ["--optim.lr=1e-2", "--critic_weight=0.1", "--critic_broken_key=sample0003", "--log.preview_every=0"]
    module = ["tests.tiny_training", *options]
    launch(None, [*module, f"--run.folder={tmp_path / 'alone'}"])
    launch(preset, [*module, f"--run.folder={tmp_path / 'run'}"])
    lines, expected = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert [line is None for line in lines] == [line is None for line in expected] and None in lines
    finite = [pair for pair in zip(lines, expected, strict=True) if pair[1] is not None]
    assert [line for line, _ in finite] == pytest.approx([line for _, line in finite], rel=1e-5)
    one, other = (load_file(tmp_path / name / "checkpoints/step-000008" / CRITIC) for name in ("run", "alone"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_adapters_train_on_two_processes_as_on_one(train: Train, tmp_path: Path):
    for preset in (None, "ddp"):
        train(preset, tmp_path / str(preset), "--encoder.lora.rank=4", "--log.preview_every=0")
    assert losses(tmp_path / "ddp") == pytest.approx(losses(tmp_path / "None"), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("preset", ["zero2", "zero3"])
def test_stylediffusion_trains_in_pieces_as_one(preset: str, tiny_sd_backbone: str, tmp_path: Path):
    write_scenes(tmp_path / "scenes", num=12)
    caption_folder(tmp_path / "scenes", tmp_path / "captioned", CaptionConfig(resolution=64))
    clip = "models/miniature/clip"
    wanted = EncodeConfig(backbone=tiny_sd_backbone, pivots=True, pivot_steps=4, clip=clip)
    encode_shards(tmp_path / "captioned", tmp_path / "pivots", wanted)
    words = {"run.steps": STEPS, "run.global_batch": 8, "run.micro_batch": 2, "data.workers": 0, "log.log_every": 2}
    words |= {"data.shards": str(tmp_path / "pivots"), "backbone.path": tiny_sd_backbone, "backbone.dtype": "float32"}
    words |= {"backbone.num_steps": 4, "mapper.clip": clip, "mapper.width": 8, "mapper.depth": 1, "mapper.heads": 2}
    words |= {"objective.guidance": 3, "objective.attention_side": 8, "log.preview_every": STEPS}
    module = ["train.stylediffusion", *(f"--{name}={value}" for name, value in words.items())]
    launch(None, [*module, f"--run.folder={tmp_path / 'alone'}"])
    launch(preset, [*module, f"--run.folder={tmp_path / 'run'}"])
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_document_and_leaves_precision_to_the_run(preset: str):
    path = Path(f"configs/accelerate/{preset}.yaml")
    text, values = path.read_text(), yaml.safe_load(path.read_text())
    assert text.startswith("# ") and f"--config_file configs/accelerate/{preset}.yaml" in text and "Choose it" in text
    assert values.get("mixed_precision", "no") == "no"
    if "deepspeed_config" in values:
        assert Path(values["deepspeed_config"]["deepspeed_config_file"]).is_file()


def settings(**changes: object) -> DeepSpeedPlugin:
    return DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": 2}, **changes})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"gradient_clipping": 0.5}, r"gradient_clipping 0\.5, the run's config has 1\.0"),
        ({"train_micro_batch_size_per_gpu": 7}, "train_micro_batch_size_per_gpu 7, the run's config has 2"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps 3, the run's config has 4"),
        ({"bf16": {"enabled": False}}, r"bf16\.enabled False, the run has run\.mixed_precision bf16"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled True, the run has run\.mixed_precision bf16"),
    ],
)
def test_settings_that_contradict_the_run_are_refused(changes: dict, complaint: str):
    given = {"gradient_accumulation_steps": "auto", **changes}
    with pytest.raises(ValueError, match=complaint):
        resolve_zero_settings(settings(**given), 2, 4, 1.0, "bf16")


def test_what_zero_cannot_cut_up_is_refused():
    module = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"SGD keeps its moments in blocks.*optim\.kind adamw"):
        check_fit(module, torch.optim.SGD(module.parameters()))
    module.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1 weights of the trained module are frozen \(bias"):
        check_fit(module, torch.optim.AdamW([module.weight]))


def torchrun(zero: dict, folder: Path, *options: str, status: int = 0, use_cpu: str | None = None) -> str:
    """Output of the tiny training on two processes, DeepSpeed's settings by the environment, without accelerate."""
    (folder / "zero.json").write_text(json.dumps({"gradient_accumulation_steps": "auto", "zero_optimization": zero}))
    shards = folder / "shards" if (folder / "shards").exists() else write_latents(folder / "shards")
    words = [*TORCHRUN, "-m", "tests.tiny_training", *SIZES, "--run.micro_batch=2", f"--data.shards={shards}", *options]
    variables = {"ACCELERATE_USE_CPU": use_cpu, "ACCELERATE_USE_DEEPSPEED": "true"}
    variables |= {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "zero.json")}
    return run(*words, f"--run.folder={folder / 'run'}", status=status, fresh=True, **variables).stderr


@pytest.mark.long
def test_stage_0_runs_as_ddp(tmp_path: Path):
    said = torchrun({"stage": 0}, tmp_path)
    assert "the run goes on without DeepSpeed, as DDP" in said and "2 process(es)" in said


@pytest.mark.long
def test_each_piece_of_zero_3_counts_its_own_steps_after_a_resume(tmp_path: Path):
    for steps in (4, 8):
        torchrun({"stage": 3, "sub_group_size": 100}, tmp_path, f"--run.steps={steps}")
    state = torch.load(tmp_path / "run/checkpoints/step-000008" / OPTIMIZER)["state"]
    assert len(state) == 4 and all(values["step"] == 8 for values in state.values())


@pytest.mark.long
def test_the_variable_that_deepspeed_does_not_know_is_refused(tmp_path: Path):
    said = torchrun({"stage": 2}, tmp_path, status=1, use_cpu="true")
    assert "set CUDA_VISIBLE_DEVICES= instead" in said


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_of_a_preset_divides(preset: str):
    path = Path(f"configs/accelerate/{preset}.yaml")
    comment = path.read_text().split("compute_environment")[0].replace("\\\n#", "")
    [command] = [line for line in comment.splitlines() if "-m train.turboedit" in line]
    words = command.split()
    config = parse(TurboEditConfig, words[words.index("train.turboedit") + 1 :])
    processes = yaml.safe_load(path.read_text())["num_processes"]
    if "--num_processes" in words:
        processes = int(words[words.index("--num_processes") + 1])
    assert config.run.processes in (None, processes)
    assert accumulation_steps(config.run.global_batch, config.run.micro_batch, processes) >= 1
