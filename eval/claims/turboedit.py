"""What TurboEdit's paper claims."""

from eval.claims.judging import Claim

_OWN_KL = "and this encoder's own kl_weight, from its card or by --kl_weight"
_WITHOUT_KL = f"an encoder trained with kl_weight 0 or next to nothing (--lambda_encoders), {_OWN_KL}"
_FREEZING = "the part prompts on a generator with a UNet, whose attention can be frozen"
_LARGER_KL = f"an encoder trained with a larger kl_weight (--lambda_encoders), {_OWN_KL}"
_ONE_STEP = "an encoder that inverts in one step, over a UNet"
_RENOISE = "a generator whose noisiest timestep keeps a part of the picture, as SDXL-Turbo's does"

CLAIMS = (
    Claim("steps_reconstruct", "More steps of inversion reconstruct better.", "section 4.4, table 2, fig. 11"),
    Claim(
        "near_perfect",
        "Four steps reconstruct almost perfectly (here: within 3 dB of the VAE).",
        "section 3.3, fig. 11",
    ),
    Claim("beats_ddim", "At every number of steps the encoder reconstructs better than DDIM inversion.", "table 2"),
    Claim(
        "beats_ddim_by_gap",
        "… and by at least the published distance: 3.7, 6.9 and 7.5 dB with one, two and four steps.",
        "table 2",
    ),
    Claim(
        "single_step_edits",
        "One step edits already, and keeps the picture better than one step of DDIM inversion.",
        "section 3.2, fig. 8",
    ),
    Claim("four_steps_edit", "Edits of four steps keep the picture better than those of one.", "section 4.3, fig. 8"),
    Claim(
        "beats_ddim_edits",
        "With four steps, edits keep more than those of DDIM inversion and fit the text better.",
        "section 4.2, table 1",
    ),
    Claim(
        "ddpm_resembles",
        "One step of DDPM inversion makes what the target says, and does not resemble the picture as ours does.",
        "section 4.3, fig. 8",
        _ONE_STEP,
    ),
    Claim(
        "ddpm_overfits",
        "DDPM inversion overfits (here: one step with its residual reconstructs better and edits worse).",
        "section 3.2, fig. 8",
        _ONE_STEP,
    ),
    Claim(
        "salt_and_pepper",
        "Edits of one step have salt-and-pepper noise, more than those of four and than true pictures.",
        "sections 3.2 and 4.3",
        _ONE_STEP,
    ),
    Claim(
        "renoise_evaluations",
        "Inversion takes 28 evaluations less than ReNoise's: 8 instead of 36.",
        "section 4.3",
        _RENOISE,
    ),
    Claim(
        "beats_renoise",
        "Edits keep more than ReNoise's, and have fewer artefacts (here: are nearer to the true edit).",
        "section 4.3, fig. 14",
        _RENOISE,
    ),
    Claim(
        "ddim_noise",
        "DDIM inversion's noise is further from a Gaussian than the encoder's, and carries more of the picture's "
        "structure (here: that of the noisiest timestep).",
        "section 1",
    ),
    Claim("evaluations", "Inversion takes 8 network evaluations, once; every edit takes 4.", "sections 1 and 3.3"),
    Claim(
        "kl_values",
        "Without the KL term the noise has many values above 10 (here: the largest of a picture is).",
        "section 3.3",
        _WITHOUT_KL,
    ),
    Claim(
        "kl_structure",
        "Without the KL term the noise carries more of the picture's structure.",
        "section 3.3",
        _WITHOUT_KL,
    ),
    Claim(
        "kl_prompts",
        "Without the KL term a changed prompt changes the picture less.",
        "section 3.3",
        _WITHOUT_KL,
    ),
    Claim(
        "lambda_reconstruction",
        "A larger lambda reconstructs worse.",
        "section 3.3",
        _LARGER_KL,
    ),
    Claim(
        "detailed_prompts",
        "Detailed prompts keep structure and background better than short ones, without frozen attention.",
        "sections 3.4 and 4.4, fig. 10",
    ),
    Claim(
        "detailed_disentangle",
        "From one noise an edited detailed caption changes what was edited, and less of the rest than a short one.",
        "section 3.4, fig. 3",
    ),
    Claim(
        "distillation_disentangles",
        "Distillation leads to this: the teacher's pictures of edited detailed captions differ in more.",
        "section 1 (second contribution)",
        "the model from which the generator was distilled: give it with --teacher.path",
    ),
    Claim(
        "short_prompts_freeze",
        "With short prompts, attention that is frozen in the first step keeps the picture better.",
        "section 4.2",
        _FREEZING,
    ),
    Claim(
        "detailed_beat_freezing",
        "Detailed prompts without frozen attention keep the picture better than short ones with the first step frozen.",
        "section 3.4, fig. 9",
        _FREEZING,
    ),
    Claim(
        "freezing_restricts",
        "Attention that is frozen in every step holds edits back.",
        "sections 1 and 3.4, fig. 9",
        _FREEZING,
    ),
    Claim(
        "freezing_one_step",
        "In a single step frozen attention (Prompt-to-Prompt) holds edits back.",
        "section 1, fig. 9",
        _ONE_STEP,
    ),
    Claim(
        "interpolation_smoother",
        "Interpolated prompts control the strength, where others reweight words (here: they do it more steadily).",
        "section 3.4",
        "a CLIP: give it with --clip",
    ),
    Claim(
        "strength_controls",
        "Interpolated prompt embeddings control how strong the edit is, smoothly.",
        "section 3.4, figs. 1 and 4",
        "a CLIP: give it with --clip",
    ),
    Claim(
        "strength_extrapolates",
        "A strength above 1 goes further, one below 0 the other way.",
        "fig. 1",
        "a CLIP: give it with --clip",
    ),
    Claim("mask_keeps", "The automatic mask keeps the background better than none.", "section 3.5, fig. 12"),
    Claim("mask_drawn", "A mask that the user draws keeps it better still.", "section 5, fig. 13"),
    Claim(
        "several_attributes",
        "Several attributes can be changed at once (here: both changes happen more often than not).",
        "fig. 7",
    ),
    Claim(
        "continued_edits",
        "Edits can be made on edits (here: both changes happen more often than not).",
        "fig. 7",
    ),
    Claim("pose_fails", "Moves fail (here: they happen less often than not).", "section 5, fig. 15"),
    Claim(
        "instructions",
        "Instructions edit, through a language model (here: the edits happen more often than not).",
        "section 3.6, fig. 6",
        "a captioner that can rewrite captions: give it with --captioner",
    ),
    Claim(
        "captioner_limits",
        "The captioner is the bottleneck (here: with true captions more edits happen, and keep more, than with its).",
        "section 5",
        "a captioner that can rewrite captions: give it with --captioner",
    ),
    Claim(
        "captioner_seconds",
        "The captioner takes more time than inversion and edit.",
        "section 5",
        "LLaVA and SDXL-Turbo of full size on one GPU: data.caption and scripts.bench_full_size measure their seconds",
    ),
    Claim(
        "beats_trained_instructions",
        "Instructions keep the background better than InstructPix2Pix, HQ-Edit and MagicBrush.",
        "table 3",
        "those models: eval.instructive compares with an InstructPix2Pix of scenes, eval.pie_bench with theirs",
    ),
    Claim(
        "beats_many_steps",
        "Edits keep more and fit the text better than those of methods with 50 steps.",
        "section 4.2, table 1",
        "a many-step model beside the few-step one: eval.pie_bench and eval.many_step compare with them",
    ),
    Claim(
        "seconds",
        "An inversion takes less than 0.7 s and an edit about 0.5 s.",
        "section 4.2, table 1",
        "SDXL-Turbo at 512 pixels on an H100: scripts.bench_full_size measures it",
    ),
    Claim(
        "training",
        "Training takes less than a day on eight A100.",
        "section 4.1",
        "those GPUs: train.plan estimates it",
    ),
)
