"""MFU: the share of a GPU's peak that a training's own floating-point operations reach.

They are counted once for a method's config (train/planning/flop.py), without what gradient checkpointing computes
again.
"""

import logging
from collections.abc import Callable

import torch

from train.run.launch import Launch

log = logging.getLogger(__name__)

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Peaks of dense bf16 products with float32 sums (the vendor's data sheets), by a part of the name of the device."""


class FlopRate:
    """Turns samples a second into TFLOP a second of each GPU, and into MFU where its peak is known.

    Args:
        count: Counter of the FLOP of a sample's step; asked on the first rank, where there is a GPU or a peak is given.
        peak_tflops: Peak of a GPU; by default looked up by its name.
        launch: The processes.
    """

    def __init__(self, count: Callable[[], float] | None, peak_tflops: float | None, launch: Launch) -> None:
        on_gpu = launch.device.type == "cuda"
        wanted = launch.is_main and (on_gpu or peak_tflops is not None)
        self._tera = _tera(count) if count and wanted else None
        name = torch.cuda.get_device_name(launch.device) if on_gpu else ""
        self._peak = peak_tflops or next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
        if self._tera is not None:
            log.info("%.4g TFLOP a sample; peak of a device: %s TFLOP/s", self._tera, self._peak)
            self._tera /= launch.world_size

    def figures(self, samples_per_sec: float) -> dict[str, float]:
        """Figures for timing.jsonl."""
        if self._tera is None:
            return {}
        rate = self._tera * samples_per_sec
        mfu = {} if self._peak is None else {"mfu": round(rate / self._peak, 6)}
        return {"tflops_per_sec": round(rate, 4), **mfu}


def _tera(count: Callable[[], float]) -> float | None:
    try:
        return count() / 1e12
    except (ValueError, RuntimeError) as error:  # no figure of the log is worth a training
        log.warning("no MFU, as the operations could not be counted: %s", error)
        return None
