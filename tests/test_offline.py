"""Loaders whose hub id is neither here nor reached: the cause comes through, and is told in words."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from data.captioning.engines import EngineConfig
from data.captioning.tokens import TokenLimits
from data.jobs.network import unreachable
from eval.metrics.networks import MetricConfig, load_metric_models
from models.backbone import Backbone
from models.clip import ClipEmbeddings, ImageTokens

NOT_CACHED = "nobody/nothing"

LOADERS: dict[str, Callable[[], Any]] = {
    "backbone": lambda: Backbone.load(NOT_CACHED),
    "image tokens": lambda: ImageTokens.load(NOT_CACHED),
    "CLIP": lambda: ClipEmbeddings(NOT_CACHED),
    "tokenizers": lambda: TokenLimits.load(NOT_CACHED),
    "captioner": lambda: EngineConfig("transformers", model=NOT_CACHED).load(),
}


@pytest.fixture(autouse=True)
def offline() -> None:
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        pytest.skip("HF_HUB_OFFLINE is read when huggingface_hub is imported; `make test` sets it")


@pytest.mark.parametrize("name", LOADERS)
def test_a_hub_id_that_is_not_reached_says_so(name: str):
    with pytest.raises(Exception) as caught:
        LOADERS[name]()
    said = unreachable(caught.value)
    assert said is not None and NOT_CACHED in str(caught.value) + said
    assert "the hub was not reached: HF_HUB_OFFLINE is set" in said and said.count("\n") == 1


@pytest.mark.parametrize("network", ["structure", "clip"])
def test_a_metrics_network_that_is_asked_for_and_not_reached_says_so(network: str):
    with pytest.raises(ValueError, match=f"{NOT_CACHED} could not be loaded .*the hub was not reached: HF_HUB_OFFLINE"):
        load_metric_models(MetricConfig(**{network: NOT_CACHED}))
