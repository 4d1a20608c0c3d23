"""Engines that write texts for the stages: a model in this process or behind a server, and how it writes."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from data.captioning.interface import Captioner, Generation


@dataclass(frozen=True)
class EngineConfig:
    """Options of the engine.

    Args:
        engine: the writer. "existing" takes what is there; "transformers" runs --model in this process; "server" asks
            --model of an OpenAI-compatible server (vLLM, SGLang, `transformers serve`).
        model: folder or hub id of an image-and-text model, such as llava-hf/llava-1.5-7b-hf; with the server, the name
            under which it serves the model.
        max_new_tokens: length at which the engine's answer is cut off, in the model's own tokens.
        temperature: 0 always takes the likeliest token, so that the same request gives the same answer.
        top_p: share of the likeliest tokens to draw from, where the temperature is above 0.
        sampling_seed: decides what is drawn, where the temperature is above 0.
        batch: requests in one forward pass (transformers); lower it when memory runs out.
        dtype: precision of the model's weights (transformers); "auto" is bfloat16 on CUDA and float32 elsewhere.
        device: place where the model runs (transformers); "auto" takes each process's own GPU if there is one.
        server: base URL of the server.
        in_flight: requests that the server has at once.
        timeout_sec: seconds that the server may take for one answer.
        give_up_min: minutes without any answer of the server after which the stage stops; until then it waits, so that
            a server can be restarted.
        api_key_env: name of the environment variable that holds the server's key.
    """

    engine: Literal["existing", "transformers", "server"] = "existing"
    model: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    sampling_seed: int = 0
    batch: int = 16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    server: str = "http://127.0.0.1:8000/v1"
    in_flight: int = 32
    timeout_sec: float = 120.0
    give_up_min: float = 15.0
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        if self.writes and not self.model:
            wanted = "its folder or hub id" if self.engine == "transformers" else "the name under which it is served"
            raise ValueError(f"--engine {self.engine} needs --model: {wanted}")
        if not self.writes and self.model:
            raise ValueError(f"--model is {self.model}, but --engine existing asks no model; give another --engine")
        for name in ("batch", "in_flight", "timeout_sec", "give_up_min"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} is {getattr(self, name)}, expected more than 0")
        if self.engine == "server" and not self.server.startswith(("http://", "https://")):
            raise ValueError(f"--server is {self.server!r}, expected a URL such as http://127.0.0.1:8000/v1")
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise ValueError(f"--api_key_env is {self.api_key_env}, an environment variable that is missing or empty")
        self.generation()

    @property
    def writes(self) -> bool:
        """Whether a model is asked."""
        return self.engine != "existing"

    @property
    def requests_at_once(self) -> int:
        """Number of requests that suits an engine in one call: enough that few wait for the slowest."""
        return 4 * {"existing": 16, "transformers": self.batch, "server": self.in_flight}[self.engine]

    @property
    def packages(self) -> tuple[str, ...]:
        """The libraries that take part, for the record of versions."""
        engines = {"existing": (), "transformers": ("torch", "transformers"), "server": ("httpx",)}
        return engines[self.engine]

    def generation(self) -> Generation:
        """Settings with which the engine writes its answers."""
        return Generation(self.max_new_tokens, self.temperature, self.top_p, self.sampling_seed)

    def identity(self) -> dict[str, Any]:
        """All of the engine that decides its answers, as flat plain JSON; of a model it loads the processor alone.

        Raises:
            ValueError: for a device that is not there.
            CaptionerError: for a model that is missing or lacks what its processor needs.
        """
        if self.engine == "transformers":
            from data.captioning import local
            from data.jobs.device import choose_device

            dtype = local.choose_dtype(self.dtype, choose_device(self.device))
            local.load_processor(self.model or "")  # told at the start, before pictures are read and captions paid for
            return local.identity(self.model or "", self.generation(), dtype)
        if self.engine == "server":
            from data.captioning import server

            return server.identity(self.model or "", self.generation())
        return {"engine": self.engine}

    def load(self) -> Captioner:
        """The engine, ready for requests.

        Raises:
            ValueError: for the engine "existing", which writes nothing.
            CaptionerError: for a model that cannot be loaded.
        """
        if self.engine == "transformers":
            # Here, because it takes seconds and the other engines do not need it.
            from data.captioning.local import LocalCaptioner

            return LocalCaptioner(
                self.model or "", self.generation(), batch=self.batch, dtype=self.dtype, device=self.device
            )
        if self.engine == "server":
            from data.captioning.server import ServerCaptioner

            return ServerCaptioner(
                self.server,
                self.model or "",
                self.generation(),
                in_flight=self.in_flight,
                timeout_sec=self.timeout_sec,
                give_up_min=self.give_up_min,
                api_key_env=self.api_key_env,
            )
        raise ValueError("--engine existing writes nothing; give --engine transformers or server")
