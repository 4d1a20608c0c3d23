"""What StyleDiffusion's paper claims; its figures 13 and 15 are the ablation of eval.many_step."""

from eval.claims.judging import Claim

_CLIP = "its part among --parts, and a CLIP: give it with --clip"
_LPIPS = "the part closeness, and AlexNet's weights for LPIPS: give them with --lpips"

CLAIMS = (
    Claim(
        "keys_where",
        "Keys decide where things are (here: layout, size and pose follow the keys' prompt, not the values').",
        "section 1, fig. 4",
    ),
    Claim(
        "values_what",
        "Values decide what is there (here: colour, fill, material, background and style follow the values' prompt).",
        "section 1, fig. 4",
    ),
    Claim(
        "one_word",
        "The prompt need not name all that is there: with one word edits happen, and keep more than null-text's.",
        "section 1 (II), fig. 3",
        _CLIP,
    ),
    Claim(
        "attention_map",
        "With L_attn the attention map of a word lies on its object more than without it, and than DDIM inversion's.",
        "section 5, fig. 14",
        _CLIP,
    ),
    Claim(
        "structure_kept",
        "Edits keep more structure than those of null-text inversion, SDEdit and DDIM inversion with swapped words.",
        "table 2",
        _CLIP,
    ),
    Claim("region_kept", "… and more of the regions that were not selected, by NS-LPIPS.", "table 2", _LPIPS),
    Claim("fits_text", "They fit the text better than those of null-text inversion (Clipscore).", "table 2", _CLIP),
    Claim("swap_fits_text", "DDIM inversion with swapped words fits the text best (Clipscore).", "table 2", _CLIP),
    Claim(
        "reconstructs",
        "It reconstructs better than null-text inversion, by PSNR and by SSIM.",
        "table 3",
        _CLIP,
    ),
    Claim(
        "users_prefer",
        "People prefer its edits.",
        "section 5, fig. 10",
        "people: the paper asked 18 about 30 edits each",
    ),
    Claim(
        "step_seconds",
        "A timestep's fit takes about as long as null-text inversion's: 0.30 s and 0.28 s.",
        "table 3",
        "Stable Diffusion at 512 pixels on an RTX 3090: scripts.bench_stylediffusion measures it",
    ),
)
