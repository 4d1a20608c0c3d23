"""Ablation: the strength of an edit by interpolated prompts, and by reweighted words."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eval.ablations.bench import Ablation, Bench, Setting, Work, edit_strips
from eval.ablations.strength import directions, distances, rising
from eval.claims.judging import Comparison
from eval.editors.editor import EditRequest, InvertedImages, Settings, settings_of
from eval.editors.few_steps import decode_latents, generator_of
from eval.editors.turboedit import TurboEdit, in_papers_form
from models.turboedit_pipeline import TurboEditPipeline
from models.words import changed_tokens

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
WITH_NEW_WORDS = (
    "change_object",
    "add_object",
    "change_content",
    "change_pose",
    "change_colour",
    "change_material",
    "change_background",
    "change_style",
)
"""Kinds of edits whose target has words that the source lacks."""

_SHOWN = (0, 3, 5, 6)


class ReweightedWords(TurboEdit):
    """`strength` is the factor of the embeddings of those words of the target that the source lacks."""

    def __init__(self, pipeline: TurboEditPipeline) -> None:
        super().__init__(pipeline, name="reweighted words", outside="reconstruction")

    @property
    def settings(self) -> Settings:
        """Everything that decides the edits, but the backbone."""
        return {**super().settings, "reweighted": True}

    def edit(self, inversion: InvertedImages, request: EditRequest) -> Tensor:
        """Algorithm 2 with the target's prompt and the words' embeddings multiplied; the pooled one is the target's."""
        assert request.strength is not None, "the strength is the weight"
        generator, state = generator_of(self.pipeline), inversion.state
        backbone = generator.backbone
        prompt = backbone.encode_text(request.prompt, backbone.size_of(state.latent))
        scale = torch.ones((*prompt.embeds.shape[:2], 1))
        for row, tokens in enumerate(changed_tokens(self.pipeline.tokenizer, request.prompt, inversion.prompts)):
            scale[row, tokens] = request.strength
        weighted = replace(prompt, embeds=prompt.embeds * scale.to(prompt.embeds))
        return decode_latents(backbone, generator.sample(state.noises, weighted)[-1])


def ablate_reweighting(bench: Bench) -> Ablation:
    """Edits at strengths from 0 to 1, in both ways."""
    edits, references = bench.of_kinds(WITH_NEW_WORDS)

    def work(editor: TurboEdit, words: str) -> Work:
        def measure() -> list[Setting]:
            result = bench.run(editor, edits, references, WEIGHTS)
            way = directions(bench, edits, result)
            further = {
                weight: {
                    "moved": distances(result.images[weight], result.images[0.0]),
                    **({} if way is None else {"direction": way[weight]}),
                }
                for weight in WEIGHTS
            }
            return [bench.setting(f"{words} {weight:g}", result, weight, further[weight]) for weight in WEIGHTS]

        return Work(f"weights-{words}", [edits.digest, settings_of(editor)], len(WEIGHTS) * len(edits), measure)

    works = [
        work(in_papers_form(bench.pipeline), "interpolated"),
        work(ReweightedWords(bench.pipeline), "reweighted"),
    ]
    interpolated, reweighted = bench.measured("reweighting", works)
    settings = (*interpolated, *reweighted)
    return Ablation(
        name="reweighting",
        title="Interpolated prompts and reweighted words",
        words=(
            "Prompt embeddings are interpolated from the source's to the target's, or those of the target's new words "
            "are multiplied by a weight. Distance is from each way's own picture at 0."
        ),
        measures=("direction", "moved", "changed", "kept", "psnr_outside", "clip"),
        settings=settings,
        edits=edits.edits,
        evidence={} if bench.setup.judge.clip is None else reweighting_evidence(interpolated, reweighted),
        columns=("source", "true edit", *(setting.name for setting in settings)),
        strips=edit_strips(edits, _SHOWN, settings),
    )


def reweighting_evidence(interpolated: Sequence[Setting], reweighted: Sequence[Setting]) -> dict[str, list[Comparison]]:
    """Test that what is measured rises with the interpolation more steadily than with the weight, edit by edit."""
    words = {"direction": "CLIP, target minus source", "moved": "distance from 0"}
    return {
        "interpolation_smoother": [
            Comparison(
                f"rank correlation of strength and {words[measure]}: interpolated, less reweighted",
                "",
                list(_steadiness(interpolated, measure) - _steadiness(reweighted, measure)),
            )
            for measure in words
        ]
    }


def _steadiness(settings: Sequence[Setting], measure: str) -> np.ndarray:
    return rising(np.array([setting.values[measure] for setting in settings]))
