"""Features of the frozen generator's own encoder: what the down blocks of its UNet see in a noised latent."""

from torch import Tensor

from models.backbone import Backbone
from models.own_dtype import GradientScale
from models.precision import without_autocast
from models.text import Prompt


def encoder_features(backbone: Backbone, x_t: Tensor, prompt: Prompt, t: Tensor, middle: bool = False) -> list[Tensor]:
    """The last feature map of each down block before it is sampled down, [B, C_i, h_i, w_i] in float32; differentiable.

    Up blocks are not evaluated.

    Args:
        backbone: A backbone with its UNet, of Stable Diffusion's or SDXL's kind.
        x_t: Latent with the noise of t, [B, C, h, w].
        prompt: Prompts of the B samples.
        t: Timesteps [B].
        middle: Evaluate the middle block too, whose map comes last.
    """
    unet, scale = backbone.unet, GradientScale(backbone.network_dtype)
    hidden = scale.enter(x_t).to(backbone.network_dtype)
    inputs = prompt.to(dtype=backbone.network_dtype).unet_inputs()
    text, added = inputs["encoder_hidden_states"], inputs.get("added_cond_kwargs", {})
    found = []
    with without_autocast(x_t.device):
        emb = unet.time_embedding(unet.get_time_embed(hidden, t))
        if (own := unet.get_aug_embed(emb, text, added)) is not None:
            emb = emb + own
        hidden = unet.conv_in(hidden)
        for block in unet.down_blocks:
            crossed = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            hidden, maps = block(hidden, emb, **crossed)
            found.append(maps[-1 if block.downsamplers is None else -2].float())
        if middle:
            found.append(unet.mid_block(hidden, emb, encoder_hidden_states=text).float())
    return list(scale.leave(*found))
