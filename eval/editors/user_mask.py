"""The user's mask, for editors that need one."""

import torch.nn.functional as F
from torch import Tensor

from eval.editors.editor import EditRequest


def required_mask(request: EditRequest, name: str) -> Tensor:
    """The mask [B, 1, H, W] of a request to the editor `name`, float32, 1 where the picture may change.

    Raises ValueError if the request has none.
    """
    if request.mask is None:
        raise ValueError(f"{name} edits inside a mask only; give EditRequest.mask, [B, 1, H, W] with 1 inside the edit")
    return request.mask.float()


def latent_mask(mask: Tensor, like: Tensor) -> Tensor:
    """`mask` [B, 1, H, W] on latents `like` [B, C, h, w]: 1 where the mask covers at least a half of the place."""
    return (F.interpolate(mask, like.shape[-2:], mode="area") >= 0.5).to(like)
