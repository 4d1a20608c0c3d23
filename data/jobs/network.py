"""Whether an error comes from a hub that cannot be reached, whichever library met it."""

import os

_NO_NETWORK = {
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "gaierror",
}
"""Names of the errors of huggingface_hub, httpx, requests and the socket library; none of them is imported for it."""

_LONGEST = 160


def unreachable(error: BaseException) -> str | None:
    """The sentence that says so; None for an error of another kind."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    if not any(type(link).__name__ in _NO_NETWORK for link in chain):
        return None
    first = str(error).split("\n")[0]
    short = first if len(first) <= _LONGEST else first[:_LONGEST].rpartition(" ")[0] + " ..."
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    cause = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else "no network connection"
    return f"{short}\nthe hub was not reached: {cause}. Give a local folder, or {'unset it' if offline else 'connect'}."
