"""The whole way of an image on the miniature, in ten minutes on two cores.

    python -m scripts.demo                      # scenes -> LLaVA -> shards -> encoder -> export -> report, in runs/demo
    python -m scripts.demo --images FOLDER      # the same with your captioned pictures, in runs/demo-FOLDER

Every step is the command that anybody would type; the demo prints each one before it runs it. A demo that was killed
goes on where it was.
"""

import json
import logging
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from data.jobs.command import read_config, run
from data.jobs.forked import start_command
from train.methods.turboedit.config import TurboEditConfig

logger = logging.getLogger(__name__)

CONFIG = "configs/turboedit/miniature.yaml"
BACKBONE = "models/miniature/student"
CAPTIONER = "models/miniature/llava"
SIDE = 64


def demo(images: Path | None = None, out: Path | None = None, minutes: float = 6.0, scenes: int = 2_000) -> None:
    """Train, export and measure a TurboEdit encoder on the miniature SDXL-Turbo.

    Args:
        images: Folder of pictures with captions (.txt beside each, or metadata.jsonl); scenes are rendered without it.
        out: Folder of all that the demo makes; runs/demo, or with images runs/demo- and the name of their folder.
        minutes: Limit of the training.
        scenes: Training scenes to render.
    """
    started = time.time()
    if not Path(BACKBONE, "model_index.json").is_file():
        raise ValueError(f"{BACKBONE} is not there; run the demo from the root of the clone")
    root = out or Path("runs/demo" if images is None else f"runs/demo-{images.resolve().name}")
    if images is None:
        if not (root / "scenes" / "metadata.jsonl").is_file():
            step("data.scenes", root / "scenes", f"--num={scenes}", "--split=train", "--workers=2")
        source = root / "scenes"
        # As of any folder of pictures, only the pictures are taken: LLaVA writes what they show.
        captions = ["--engine=transformers", f"--model={CAPTIONER}", f"--backbone={BACKBONE}", "--batch=64"]
    else:
        source, captions = images, ["--engine=existing", "--shapes=buckets"]
    shards, latents = root / "shards", root / "latents"
    # Scenes are 64 pixels already; small photographs are welcome too.
    step("data.caption", source, shards, *captions, f"--resolution={SIDE}", f"--min-size={SIDE}")
    step("data.inspect", shards, f"--backbone={BACKBONE}")
    step("data.encode", shards, latents, f"--backbone={BACKBONE}", "--keep-images=true")
    train_encoder(latents, root / "run", minutes)
    shutil.rmtree(root / "export", ignore_errors=True)  # a few seconds of work, and perhaps of an older checkpoint
    step("train.export", root / "run", root / "export")
    if images is None:
        options = ("--num_validation=4", f"--captioner={CAPTIONER}")
        step("eval.scenes", "--encoder", root / "export", "--out", root / "report", *options)
    else:
        logger.info("a small folder cannot spare pictures: these are the ones that the encoder was trained on")
        step(
            "eval.reconstruction", "--encoder", root / "export", "--data", shards, "--out", root / "report", "--num=64"
        )
    spent = (time.time() - started) / 60
    print(f"\nThe demo took {spent:.1f} min. Look at {root / 'report' / 'index.html'}")


def train_encoder(latents: Path, folder: Path, minutes: float) -> None:
    """Train an encoder, with a batch that a small folder of pictures can fill."""
    samples = json.loads((latents / "manifest.json").read_text())["count"]
    options = [f"--run.folder={folder}", f"--data.shards={latents}", f"--run.time_limit_min={minutes}"]
    batch = usual = read_config(TurboEditConfig, Path(CONFIG)).run.global_batch
    while batch > samples:
        batch //= 2
    if batch < usual:
        logger.info("only %d samples: training in batches of %d", samples, batch)
        options += [f"--run.global_batch={batch}", f"--run.micro_batch={batch}"]
    step("train.turboedit", "--config", CONFIG, *options)


def step(module: str, *words: object) -> None:
    """Run one command of the project and stop the demo if it fails."""
    print(f"\n$ python -m {shlex.join([module, *map(str, words)])}", flush=True)
    process = start_command(module, *words)
    process.join()
    if status := process.exitcode:
        raise ValueError(
            f"{module} ended with status {status}; its message stands above. If it speaks of another config or "
            "input, remove the demo's folder, or choose another with --out"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("scripts.demo", demo, argv)


if __name__ == "__main__":
    main()
