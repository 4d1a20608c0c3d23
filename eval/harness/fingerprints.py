"""Fingerprints of networks, by which finished work of other weights is told apart."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from models.backbone import Backbone
from models.fingerprints import weights_digest

_fingerprints: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Fingerprints of networks that several editors share: reading billions of weights takes a while."""


def network_fingerprint(network: nn.Module) -> str:
    """Return `models.fingerprints.weights_digest` of a network, read once in a process."""
    if network not in _fingerprints:
        _fingerprints[network] = weights_digest(network)
    return _fingerprints[network]


def backbone_settings(backbone: Backbone) -> dict[str, Any]:
    """Say which networks a backbone has and what they predict, as JSON."""
    return {
        "networks": [network_fingerprint(network) for network in backbone.modules()],
        "prediction_type": backbone.schedule.prediction_type,
    }
