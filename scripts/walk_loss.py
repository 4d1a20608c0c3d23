"""Write docs/loss.md, a walk through TurboEdit's loss: equation beside code beside shapes.

python -m scripts.walk_loss

The code is read from the source and cut at the comments that begin its sections. Shapes and types are those of the
variables at the end of one call on the miniature. A test fails while the page is not what the source says.
"""

import ast
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from data.jobs.command import run

logger = logging.getLogger(__name__)

TASK = "train/methods/turboedit/task.py"
KNOWN_NOISE = "train/methods/turboedit/known_noise.py"
GAUSSIANITY = "train/methods/turboedit/gaussianity.py"
CONFIG = "configs/turboedit/miniature.yaml"
ROWS, HEIGHT, WIDTH = 5, 16, 24
"""Size of the batch that is walked through; its sides differ, so that every length has a letter of its own."""


@dataclass(frozen=True)
class Note:
    """Text of the page about a section of the loss.

    Args:
        title: Heading.
        equation: LaTeX, the equation with the paper's number where it has one.
        words: Further text.
        calls: `file:Class.function` of the functions whose code stands below.
    """

    title: str
    equation: str
    words: str = ""
    calls: tuple[str, ...] = ()


NOTES = {
    "c, t": Note(
        "A text and a timestep for each sample",
        r"t \sim \mathrm{Uniform}\{t_1, \dots, t_S\}",
        "The generator's timesteps are 999, 749, 499, 249, which the paper counts as 1000, 750, 500, 250. Random "
        "numbers are functions of (seed, step, name), drawn for the whole global batch.",
    ),
    "x_{0,t+1}": Note(
        "The previous reconstruction",
        r"x_{0,t+1} = G(\sqrt{\bar\alpha_{t+1}}\,x_0 + \sqrt{1-\bar\alpha_{t+1}}\,\epsilon', c, t+1),"
        r" \quad \epsilon' \sim \mathcal{N}(0, 1), \qquad x_{0,T+1} = 0",
        "t + 1 is the timestep before t, the noisier one. The paper simulates what inversion will have there by "
        "one-step SDEdit; for a share `objective.own_share` of the samples F and G make it, as in inversion.",
        (f"{TASK}:TurboEditTask.previous_reconstruction",),
    ),
    "z": Note(
        "Pictures of known noise",
        r"z = G(\sqrt{\bar\alpha_t}\,x_{0,t+1} + \sqrt{1-\bar\alpha_t}\,\epsilon^*, c, t), \quad "
        r"\epsilon^* \sim \mathcal{N}(0, 1)",
        "None by default. With `objective.known_noise_weight` a share of the samples goes through F once more with "
        "what G makes of a noise in the place of the picture, and F is asked for that noise "
        "([terms.md](terms.md#known-noise)).",
        (f"{KNOWN_NOISE}:draw_known_noise", f"{KNOWN_NOISE}:known_noise_error"),
    ),
    "eps": Note(
        "The noise, drawn from what the encoder gives",
        r"(\mu, \log\sigma^2) = F(x_0, x_{0,t+1}, c, t), \qquad "
        r"\epsilon = \mu + \sigma n, \quad n \sim \mathcal{N}(0, 1)",
        "F is a UNet like the generator's with more channels; its mean converts from the prediction type like G's. "
        "Pictures of known noise go through it in the same pass.",
        ("models/noise_encoder.py:NoiseEncoder.forward", "models/noise_encoder.py:NoisePosterior.sample"),
    ),
    "eq. 6": Note(
        "The error of the reconstruction",
        r"\hat x_t = \sqrt{\bar\alpha_t}\,x_{0,t+1} + \sqrt{1-\bar\alpha_t}\,\epsilon, \qquad "
        r"L_{MSE} = \mathbb{E}\,\lVert x_0 - G(\hat x_t, c, t) \rVert^2 \tag{6}",
        "G predicts x0 from what its network gives, by equation 3 where that is noise. The squared error is a mean "
        "over the elements of a latent, or with `objective.space pixel` of the decoded picture.",
        (
            "models/schedule.py:NoiseSchedule.add_noise",
            "models/schedule.py:NoiseSchedule.predict_x0",
            f"{TASK}:TurboEditTask._squared_error",
        ),
    ),
    "eq. 7": Note(
        "The divergence from plain noise",
        r"L_{KL} = \mathbb{E}\,[KL(\mathcal{N}(\mu, \sigma^2), \mathcal{N}(0, 1))] = "
        r"\mathbb{E}\,\tfrac{1}{2} \textstyle\sum (\mu^2 + \sigma^2 - 1 - \log\sigma^2) \tag{7}",
        "The sum is over the elements of a latent: a mean would weigh nothing beside the error at the paper's lambda.",
        ("models/noise_encoder.py:NoisePosterior.kl",),
    ),
    "Further terms": Note(
        "Further terms, each off by default",
        r"L_{further} = \textstyle\sum_k \lambda_k\, \mathbb{E}\,L_k",
        "What later work has added: [terms.md](terms.md) has their equations, sources and options. Moments and "
        "spectrum of the mean noise are logged whatever they weigh.",
        (f"{TASK}:TurboEditTask._further_terms", f"{GAUSSIANITY}:moments", f"{GAUSSIANITY}:spectrum"),
    ),
    "What is logged and not trained on": Note(
        "What is logged and not trained on",
        r"\bar\sigma = \tfrac{1}{Chw} \textstyle\sum \sigma",
        "Moments of the noise become its mean, deviation and kurtosis once an interval is over.",
    ),
    "eq. 8": Note(
        "The loss",
        r"L = L_{MSE} + \lambda\, L_{KL} \;(+\, L_{further}) \tag{8}",
        "Lambda is `objective.kl_weight`, 1e-6 in the paper. `objective.timestep_weights` can weigh the errors; by "
        "default all count alike. The engine sums the terms and averages the reports for "
        "each timestep, which `group` says. With `objective.adversary.weight` a discriminator adds its term and its "
        "own loss ([adversary.md](adversary.md)).",
    ),
}
"""By the words with which a section's comment begins."""

SYMBOLS = {
    "x0": "x_0",
    "prompt": "c",
    "t": "t",
    "x0_prev": "x_{0,t+1}",
    "posterior.mean": r"\mu",
    "posterior.logvar": r"\log\sigma^2",
    "noise": r"\epsilon",
    "x0_hat": r"G(\hat x_t, c, t)",
    "sigma": r"\bar\sigma",
    'figures["moments"]': r"L_{moments}",
    'figures["spectrum"]': r"L_{spectrum}",
    'terms["mse"]': "L_{MSE}",
    'terms["weighted_kl"]': r"\lambda L_{KL}",
}


@dataclass(frozen=True)
class Section:
    """A piece of the loss.

    Args:
        label: Words with which its comment begins.
        code: Lines of the term without the comment.
        names: Variables that it sets, in order.
    """

    label: str
    code: str
    names: tuple[str, ...]


def walk_loss(out: Path = Path("docs/loss.md")) -> Path:
    """Write the page that walks through TurboEdit's loss.

    Args:
        out: File to write.
    """
    out.write_text(page(), encoding="utf-8")
    logger.info("wrote %s", out)
    return out


def page() -> str:
    """Markdown of the whole page."""
    pieces = sections(code_of(f"{TASK}:TurboEditTask.loss"))
    if [piece.label for piece in pieces] != list(NOTES):
        raise ValueError(
            f"{TASK}: the sections of the loss begin with {[piece.label for piece in pieces]}, "
            f"those of NOTES with {list(NOTES)}; change the one or the other"
        )
    variables, lengths = walked()
    known = {size: letter for letter, size in lengths.items()}
    legend = ", ".join(f"{letter} = {size}" for letter, size in lengths.items())
    intro = (
        f"`TurboEditTask.loss` in [{TASK}](../{TASK}), section by section; equations are numbered as in "
        "sections 3.1 and 3.3 of the paper ([arXiv 2408.08332](https://arxiv.org/abs/2408.08332)). "
        "`python -m scripts.walk_loss` makes this "
        f"page from the source; shapes and types are those of one call on the miniature, with {legend}: B counts "
        "samples, L tokens, and D and P are the widths of the prompt's embeddings."
    )
    parts = ["# TurboEdit's loss", "", *wrapped(intro)]
    for number, piece in enumerate(pieces, start=1):
        note = NOTES[piece.label]
        parts += ["", f"## {number}. {note.title}", "", "```math", note.equation, "```"]
        parts += ["", "```python", piece.code, "```"]
        rows = [row(name, value, known) for name in piece.names for name, value in tensors(name, variables[name])]
        if rows:
            parts += ["", "| variable | symbol | shape | type |", "|---|---|---|---|", *rows]
        if note.words:
            parts += ["", *wrapped(note.words)]
        for call in note.calls:
            path, _, name = call.partition(":")
            parts += [
                "",
                f"<details><summary><code>{name}</code> in {path}</summary>",
                "",
                "```python",
                code_of(call),
                "```",
            ]
            parts += ["", "</details>"]
    return "\n".join(parts) + "\n"


def wrapped(text: str) -> list[str]:
    """Lines of a paragraph."""
    return textwrap.wrap(text, 150, break_long_words=False, break_on_hyphens=False)


def code_of(place: str) -> str:
    """Source of `file:Class.function`, at the margin.

    Raises:
        ValueError: The file has no such function.
    """
    path, _, name = place.partition(":")
    source = Path(path).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for part in name.split("."):
        body = (child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part)
        if (found := next(body, None)) is None:
            raise ValueError(f"{path} has no {name}")
        node = found
    assert isinstance(node, ast.FunctionDef), f"{place} is no function"
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(source.splitlines()[first - 1 : node.end_lineno]))


def sections(code: str) -> list[Section]:
    """The pieces of a function, each of which a comment on a line of its own begins."""
    [function] = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    lines = code.splitlines()
    body = function.body[1:] if ast.get_docstring(function) else function.body
    starts = [
        number for number, line in enumerate(lines) if line.startswith("    # ") and number >= function.body[0].lineno
    ]
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        label = lines[start].removeprefix("    # ").split(":")[0]
        inside = [node for node in body if start < node.lineno <= end]
        names = dict.fromkeys(name for node in inside for name in assigned(node))
        found.append(Section(label, textwrap.dedent("\n".join(lines[start + 1 : end])).strip(), tuple(names)))
    return found


def assigned(statement: ast.stmt) -> Iterator[str]:
    """Names of the variables that a statement sets."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    for target in targets:
        for part in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(part, ast.Name):
                yield part.id


def walked() -> tuple[Mapping[str, Any], Mapping[str, int]]:
    """Variables at the end of one call of the loss, by name, and the lengths that occur in them, by letter."""
    import torch

    from data.jobs.command import parse
    from train.methods.turboedit.config import TurboEditConfig
    from train.methods.turboedit.task import TurboEditTask
    from train.rng import StepRandom

    task = TurboEditTask(parse(TurboEditConfig, ["--config", CONFIG]), "cpu")
    channels = task.backbone.unet.config.in_channels
    batch = {
        "latent": torch.randn(ROWS, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)),
        "caption": ["a small blue circle on grass"] * ROWS,
        "info": [{"original_size": (WIDTH, HEIGHT), "crop": (0, 0, WIDTH, HEIGHT)}] * ROWS,
    }
    rng = StepRandom(0, 0, ROWS, torch.arange(ROWS))
    found = variables_of(TurboEditTask.loss, task, task.trainable, batch, rng)
    embeds, pooled = found["prompt"].embeds, found["prompt"].pooled
    lengths = {"B": ROWS, "C": channels, "h": HEIGHT, "w": WIDTH}
    lengths |= {"L": embeds.shape[1], "D": embeds.shape[2], "P": pooled.shape[1]}
    assert len(set(lengths.values())) == len(lengths), f"two letters for one length: {lengths}"
    return found, lengths


def variables_of(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Call a function; its variables when it returns, by name."""
    found: dict[str, Any] = {}

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is function.__code__:
            found.update(frame.f_locals)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return found


def tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The tensors that a variable holds, with the expressions that give them."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors(f'{name}["{key}"]', part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(f"{name}.{field.name}", getattr(value, field.name))
    elif hasattr(value, "shape"):
        yield name, value


def row(name: str, value: Any, letters: Mapping[int, str]) -> str:
    """A line of the table of variables."""
    symbol = SYMBOLS.get(name) or SYMBOLS.get(name.partition(".")[0], "")
    shape = ", ".join(letters.get(size, str(size)) for size in value.shape)
    return f"| `{name}` | {f'$`{symbol}`$' if symbol else ''} | [{shape}] | {str(value.dtype).removeprefix('torch.')} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    run("scripts.walk_loss", walk_loss, argv)


if __name__ == "__main__":
    main()
