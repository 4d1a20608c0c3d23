"""Whether the networks that measure are those of PIE-Bench's tables: by their weights, wherever these lie."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from data.jobs.files import file_digest
from models.fingerprints import same_weights

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in the order in which transformers looks for them."""

DIGESTS = frozenset(
    {
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "f1a17cdbe0f36fec524f5cafb1c261ea3bbbc13e346e0f74fc9eb0460dedd0d3",
    }
)
"""SHA-256 of the hub's files of openai/clip-vit-large-patch14; those of facebook/dino-vitb8 are not at hand."""


def unlike(
    path: str, published: str, found: Callable[[], str], fingerprint_of: Callable[[str], str | None]
) -> str | None:
    """How a network differs from the published one, in words; None if it has its weights.

    It has them if it came from the hub under the published name; if its file is the hub's; or if its fingerprint is
    that of the hub's copy, where this machine has one. A copy that was saved anew without one beside it is not known.

    Args:
        path: Folder or hub id of the network.
        published: Hub id of the published one.
        found: Gives the network's fingerprint.
        fingerprint_of: Gives the fingerprint of the network in a folder; None if it cannot be loaded.
    """
    if path == published and not Path(path).exists():
        return None
    file = next((Path(path) / name for name in _FILES if (Path(path) / name).is_file()), None)
    if file is not None and file_digest(file) in DIGESTS:
        return None
    cached = [place for name in _FILES if isinstance(place := try_to_load_from_cache(published, name), str)]
    copy = fingerprint_of(str(Path(cached[0]).parent)) if cached else None
    if copy is None:
        return f"{path}, which is not known to have the weights of {published}"
    return None if same_weights(found(), copy) else f"{path}, which has other weights than {published}"
