"""Ablation: captions that a model writes and rewrites by an instruction, against the scenes' own."""

from data.captioning.maker import CaptionMaker
from eval.ablations.bench import Bench, Part, above, edit_strips, strip_columns
from eval.editors.turboedit import TurboEdit
from eval.scene_edits.written_captions import write_captions

_SHOWN = (0, 3, 4, 5, 7)


def ablate_instructions(bench: Bench, maker: CaptionMaker) -> Part:
    """Edits with the scenes' own captions, and with captions that `maker` writes and rewrites."""
    edits = bench.edits
    written, captions = write_captions(edits, maker)
    found = []
    for name, given in (("true captions", edits), ("by instruction", written)):
        trial = bench.run(TurboEdit(bench.pipeline, name=name), given, bench.references)
        found.append(bench.setting(name, trial))
    source, target = (100 * captions[part]["right"]["mean"] for part in ("source", "target"))
    return Part(
        name="instructions",
        title="Instructions",
        words=(
            "The captioner describes the picture and rewrites its description by the instruction; edits are judged by "
            f"the scenes' own words. {source:.1f} % of the attributes in its descriptions are right, and {target:.1f} "
            "% of those in the rewritten ones."
        ),
        measures=("changed", "kept", "psnr_outside", "psnr_inside", "clip", "structure"),
        settings=tuple(found),
        edits=edits.edits,
        evidence={"instructions": [above("changed", found[1], 0.5)]},
        columns=strip_columns(found),
        strips=edit_strips(edits, _SHOWN, found),
    )
