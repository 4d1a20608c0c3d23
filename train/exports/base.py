"""The frozen model that a run was trained on, as a card speaks of it: its name and its licence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

UNKNOWN_LICENCE = "unknown"

SDXL_TURBO = {
    "license": "other",
    "license_name": "sai-nc-community",
    "license_link": "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
}
LICENCES: dict[str, dict[str, str]] = {
    "stabilityai/sdxl-turbo": SDXL_TURBO,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"license": "creativeml-openrail-m"},
}
"""Licences of the configs' own bases, for where their cards cannot be read."""

HUB_LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
"""
"""Names that the hub takes for a licence (huggingface.co/docs/hub/repositories-licenses); all else is "other"."""

TERMS = """\
The weights derive from {base}, whose licence ({licence}) applies to them: what it forbids for the base, commercial \
use for instance, it forbids for them.

An editor of photographs can be misused for manipulated pictures, misinformation and spam; deliberate manipulation of \
pictures of people ("deep fakes") disproportionately affects women (TurboEdit, section 5). Do not use it to deceive, \
nor on pictures of people without their consent, and say of an edited picture that it is one.
"""
"""What cards say of licence and use."""


@dataclass(frozen=True)
class Base:
    """The frozen model that a run was trained on.

    Args:
        path: Folder or hub id from which the run has loaded it.
        hub_id: The hub's name of it; None for a folder of which none is known.
        variant: Variant of its files, such as fp16.
    """

    path: str
    hub_id: str | None
    variant: str | None = None

    @classmethod
    def of(cls, path: str, hub_id: str | None = None, variant: str | None = None) -> "Base":
        """The model at `path`, in files of a `variant`, which is `hub_id` on the hub.

        Raises:
            ValueError: The given `hub_id` cannot be one.
        """
        if hub_id is None:
            return cls(path, None if Path(path).exists() or not _may_be_hub_id(path) else path, variant)
        if Path(hub_id).exists() or not _may_be_hub_id(hub_id):
            raise ValueError(f"--base {hub_id!r} is no hub id: expected one such as stabilityai/sdxl-turbo")
        return cls(path, hub_id, variant)

    @property
    def name(self) -> str:
        """The hub id, or the folder's own name: where it lies on this machine is nobody's business."""
        return self.hub_id or Path(self.path).resolve().name

    @property
    def licence(self) -> str:
        """Name of its licence; "unknown" where there is none to read."""
        named = self.licence_entries()
        return named.get("license_name") or named["license"]

    @property
    def terms(self) -> str:
        """What a card says of the licence of weights that derive from it, and of their use; paragraphs of Markdown."""
        return TERMS.format(base=self.name, licence=self.licence)

    def licence_entries(self) -> dict[str, str]:
        """Entries of a card's header on the licence, in the form that the hub takes."""
        card = self._card()
        name = card.get("license")
        name = str(name[0] if isinstance(name, list) and name else name or UNKNOWN_LICENCE)
        if name not in HUB_LICENCES.split():
            card = {"license_name": name} | card
            name = "other"
        if name != "other":
            return {"license": name}
        entries = {"license": name}
        entries["license_name"] = str(card.get("license_name") or f"that of {self.name}")
        link = str(card.get("license_link") or "")
        if link and "://" not in link and self.hub_id:  # a file beside the base's card
            link = f"https://huggingface.co/{self.hub_id}/blob/main/{link}"
        return entries | ({"license_link": link} if "://" in link else {})

    def _card(self) -> dict[str, Any]:
        """Header of its card, read beside its weights, on the hub, or known here."""
        for place in (Path(self.path) / "README.md" if Path(self.path).is_dir() else None, self.hub_id):
            try:
                if place is not None:
                    return ModelCard.load(place).data.to_dict()
            except (OSError, ValueError, HfHubHTTPError):
                continue
        return dict(LICENCES.get(self.hub_id or "", {}))


def _may_be_hub_id(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return "/" in path
