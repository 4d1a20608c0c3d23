"""Captioners on a real (tiny, random) LLaVA: in this process, and over HTTP through servers that fail."""

import asyncio
import base64
import io
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.caption import main
from data.captioning.interface import Generation, NoAnswer, Request
from data.captioning.local import LocalCaptioner, folder_digest, load_processor
from data.captioning.server import ServerCaptioner, served_models
from data.captioning.tasks import DEFAULT_PROMPT, condense_prompt, rewrite_prompt
from data.jobs.errors import CaptionerError
from data.shards.dataset import ShardDataset
from data.world.captions import describe_at_length, long_caption
from data.world.render import render
from data.world.splits import sample_scene
from eval.photo_edits.writer import captioner_config
from tests.caption_servers import Fault, FaultProxy, ServedModel, free_port
from tests.tiny_llava import save_tiny_llava, save_tiny_llava_next

MINIATURE = Path("models/miniature/llava")
SHORT = Generation(max_new_tokens=12)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(count)]


def mixed_requests() -> list[Request]:
    """Pictures with long and short prompts among texts alone."""
    first, second, third = pictures(3)
    return [
        Request("describe", first),
        Request("a text alone"),
        Request("please describe the image as detailed as possible", second),
        Request("another text, which is far longer than the first one is"),
        Request("describe", third),
    ]


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture(scope="session")
def captioner(tiny_llava: str) -> LocalCaptioner:
    return LocalCaptioner(tiny_llava, SHORT, batch=4)


@pytest.fixture(scope="session")
def server(tiny_llava: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    with ServedModel(tiny_llava, tmp_path_factory.mktemp("server")) as running:
        yield running


# --- in this process ---------------------------------------------------------------------------------------------


def test_a_batch_answers_as_single_requests_do(captioner):
    requests = mixed_requests()
    together = captioner.answer(requests)
    assert together == [captioner.answer([request])[0] for request in requests]
    assert len(set(together)) == len(requests), "answers ignore what was asked"
    assert captioner.answer(requests[::-1]) == together[::-1]
    assert captioner.answer([]) == []


def test_pictures_in_tiles_make_no_difference_to_their_neighbours(tmp_path):
    """LLaVA 1.6 gives pictures of other shapes other numbers of tokens."""
    captioner = LocalCaptioner(save_tiny_llava_next(tmp_path), SHORT)
    shapes = [(48, 48), (80, 40), (40, 90)]
    requests = [Request("describe", picture.resize(shape)) for picture, shape in zip(pictures(3), shapes)]
    together = captioner.answer([*requests, Request("a text alone")])
    assert together[:3] == [captioner.answer([request])[0] for request in requests]
    assert len(set(together)) == 4


def test_a_picture_is_seen(captioner):
    answers = captioner.answer([Request("describe", picture) for picture in pictures(4)])
    assert len(set(answers)) == 4


def test_words_that_are_control_tokens_do_no_harm(captioner):
    plain, marked = captioner.answer([Request("a b c"), Request("a<image>b</s>c")])
    assert plain == marked


def test_sampling_is_repeated_by_its_seed(tiny_llava):
    def answers(seed: int) -> list[str]:
        sampling = LocalCaptioner(tiny_llava, Generation(12, temperature=1.5, seed=seed))
        return sampling.answer(mixed_requests()[:1])

    assert answers(1) == answers(1) != answers(2)


def test_what_is_asked_decides_the_draws_beside_the_seed():
    first, second = mixed_requests()[:2]
    settings = Generation(temperature=1.0, seed=3)
    seeds = [settings.seed_of(requests) for requests in ([first], [second], [first, second], [second, first])]
    assert len({*seeds, Generation(temperature=1.0, seed=4).seed_of([first])}) == 5
    assert settings.seed_of([Request("a")]) != settings.seed_of([Request("a", Image.new("RGB", (2, 2)))])
    assert settings.seed_of([first]) == seeds[0] and all(0 <= seed < 2**31 for seed in seeds)


def test_the_identity_follows_model_and_settings(tiny_llava, captioner, tmp_path):
    other = save_tiny_llava(tmp_path / Path(tiny_llava).name, seed=1)
    identities = [
        captioner.identity(),
        LocalCaptioner(tiny_llava, Generation(13)).identity(),
        LocalCaptioner(other, SHORT).identity(),
        LocalCaptioner(tiny_llava, SHORT, dtype="bfloat16").identity(),
    ]
    texts = {json.dumps(identity, sort_keys=True) for identity in identities}
    assert len(texts) == len(identities)
    assert LocalCaptioner(tiny_llava, SHORT, batch=1).identity() == captioner.identity()
    assert folder_digest(Path(other)) != folder_digest(Path(tiny_llava))


def test_a_model_that_cannot_be_asked_is_refused(tmp_path, tiny_backbone):
    with pytest.raises(CaptionerError, match=r"no chat template.*chat_template\.jinja"):
        LocalCaptioner(save_tiny_llava(tmp_path / "mute", chat_template=None))
    with pytest.raises(CaptionerError, match=r"cannot load .*nowhere.*--model"):
        LocalCaptioner(str(tmp_path / "nowhere"))
    with pytest.raises(CaptionerError, match=r"--model"):
        LocalCaptioner(f"{tiny_backbone}/tokenizer")
    with pytest.raises(ValueError, match=r"--device is 'gpu'"):
        LocalCaptioner("unused", device="gpu")


@pytest.fixture
def incomplete(tiny_llava: str, tmp_path: Path) -> Path:
    """A copy of the model's folder, from which a test takes something away."""
    return Path(shutil.copytree(tiny_llava, tmp_path / "model"))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("processor_config.json", r"cannot load .*model.*; it lacks preprocessor_config\.json; --model is a folder"),
        ("tokenizer.json", r"cannot load .*it lacks tokenizer\.json or tokenizer\.model or vocab\.json; --model"),
        ("tokenizer_config.json", r"cannot prepare a picture with a text \(.*\); it lacks tokenizer_config\.json; "),
        ("config.json", r"cannot load .*it lacks config\.json; --model"),
        ("chat_template.jinja", r"has no chat template.*chat_template\.jinja into its folder"),
    ],
)
def test_a_folder_that_lacks_a_file_is_told_at_the_start(incomplete, tmp_path, file, told):
    """In one sentence, before the first picture is read."""
    (incomplete / file).unlink()
    (tmp_path / "in").mkdir()
    pictures(1)[0].save(tmp_path / "in/a.png")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--resolution", "40", "--engine", "transformers"]
    with pytest.raises(SystemExit, match=told) as ended:
        main([*words, "--model", str(incomplete)])
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "out").exists()


def test_a_processor_without_a_setting_is_told_at_the_start(incomplete):
    """LLaVA's counts a picture's tokens by the size of its patches, and fails at the first picture without it."""
    path = incomplete / "processor_config.json"
    settings = json.loads(path.read_text())
    del settings["patch_size"]
    path.write_text(json.dumps(settings))
    with pytest.raises(
        CaptionerError, match=r"the processor of .*model cannot prepare a picture with a text \(TypeError"
    ):
        load_processor(str(incomplete))
    (incomplete / "tokenizer.json").write_text("{}")
    with pytest.raises(CaptionerError, match="--model"):
        load_processor(str(incomplete))


# --- over HTTP ---------------------------------------------------------------------------------------------------


def ask(url: str, model: str, **options: float) -> ServerCaptioner:
    settings = {"in_flight": 3, "timeout_sec": 60.0, "give_up_min": 2.0} | options
    return ServerCaptioner(url, model, SHORT, **settings)


def test_a_server_answers_like_the_model_in_this_process(server, tiny_llava, captioner):
    requests = mixed_requests()
    with FaultProxy(server.port, lambda body, attempt: None, gather=3) as proxy:
        assert ask(proxy.url, tiny_llava).answer(requests) == captioner.answer(requests)
        assert proxy.most_in_flight == 3
        bodies = [json.loads(body) for body in proxy.attempts]
    assert all(body["model"] == tiny_llava and body["max_tokens"] == 12 and not body["temperature"] for body in bodies)
    contents = [body["messages"][0]["content"] for body in bodies]
    sent = [part["image_url"]["url"] for content in contents if isinstance(content, list) for part in content[:1]]
    assert len(sent) == 3
    assert all(base64.b64decode(url.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG") for url in sent)


def test_a_server_can_be_asked_inside_of_an_event_loop(server, tiny_llava, captioner):
    """A notebook runs its cells in one."""

    async def cell() -> list[str]:
        return ask(server.url, tiny_llava).answer(mixed_requests()[:2])

    assert asyncio.run(cell()) == captioner.answer(mixed_requests()[:2])


def test_large_pictures_are_sent_as_jpeg(server, tiny_llava):
    large = pictures(1)[0].resize((300, 300))
    with FaultProxy(server.port, lambda body, attempt: None) as proxy:
        (answer,) = ask(proxy.url, tiny_llava).answer([Request("describe", large)])
        (body,) = proxy.attempts
    assert answer and not isinstance(answer, NoAnswer)
    url = json.loads(body)["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) as sent:
        assert (sent.format, sent.size) == ("JPEG", (300, 300))


def test_faults_that_pass_change_nothing(server, tiny_llava, captioner):
    """Every request fails twice, in one of three ways each time, before it is let through."""
    kinds: list[Fault] = [500, "cut", "silence", 503, 429, "cut", 500]
    order: dict[str, int] = {}

    def fault(body: str, attempt: int) -> Fault:
        place = order.setdefault(body, len(order))
        return kinds[(place + 3 * attempt) % len(kinds)] if attempt < 2 else None

    requests = [*mixed_requests(), *(Request("again", picture) for picture in pictures(3))]
    with FaultProxy(server.port, fault) as proxy:
        assert ask(proxy.url, tiny_llava, timeout_sec=5.0).answer(requests) == captioner.answer(requests)
        failed = sum(proxy.attempts.values()) - proxy.answered
    assert failed >= 2 * len(requests)


def test_a_request_that_always_fails_is_given_up_alone(server, tiny_llava, captioner):
    """One is refused, one ends in an error again and again; the server answers the others."""

    def fault(body: str, attempt: int) -> Fault:
        return 400 if "refuse me" in body else 500 if "break" in body else None

    texts = ["a", "refuse me", "b", "break", "c"]
    with FaultProxy(server.port, fault) as proxy:
        answers = ask(proxy.url, tiny_llava).answer([Request(text) for text in texts])
    expected = captioner.answer([Request(text) for text in ("a", "b", "c")])
    assert [answers[0], answers[2], answers[4]] == expected
    refused, broken = answers[1], answers[3]
    assert isinstance(refused, NoAnswer) and isinstance(broken, NoAnswer)
    assert (refused, refused.reason, refused.detail) == ("", "refused by the server", "400: told to fail")
    assert (broken, broken.reason, broken.detail) == ("", "server error", "500: told to fail")


def test_errors_that_concern_all_requests_stop_at_once(server, tiny_llava):
    requests = [Request(f"text {number}") for number in range(20)]
    with pytest.raises(CaptionerError, match=r"refused the first 8 requests.*pinned to.*--model"):
        ask(server.url, "another-model").answer(requests)
    with pytest.raises(CaptionerError, match=r"answered 404.*--server ends in /v1.*it does not say"):
        ask(server.url + "/v2", tiny_llava).answer(requests)
    with FaultProxy(server.port, lambda body, attempt: 401) as proxy:
        with pytest.raises(CaptionerError, match=r"answered 401: told to fail; a key is wanted.*--api_key_env"):
            ask(proxy.url, tiny_llava).answer(requests)
        assert sum(proxy.attempts.values()) <= 3
    with pytest.raises(CaptionerError, match=r"--server is 'localhost:1'.*http://HOST"):
        ask("localhost:1", tiny_llava).answer(requests[:1])


def test_the_command_captions_a_folder_over_http(server, tiny_llava, captioner, tmp_path):
    (tmp_path / "in").mkdir()
    for number, picture in enumerate(pictures(4)):
        picture.save(tmp_path / f"in/{number}.png")

    def fault(body: str, attempt: int) -> Fault:
        return None if attempt else "cut"

    words = [
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--resolution",
        "40",
        "--engine",
        "server",
        "--clean",
        "false",
    ]
    with FaultProxy(server.port, fault) as proxy:
        main([*words, "--server", proxy.url, "--model", tiny_llava, "--max_new_tokens", "12"])
        # Again, by another address: all is there already, and nobody is asked.
        main([*words, "--server", "http://127.0.0.1:1/v1", "--model", tiny_llava, "--max_new_tokens", "12"])
    dataset = ShardDataset(tmp_path / "out", ("info",))
    found = {info["source"]: info["caption_raw"] for info in (dataset[row]["info"] for row in range(len(dataset)))}
    expected = captioner.answer([Request(DEFAULT_PROMPT, picture) for picture in pictures(4)])
    assert found == {f"{number}.png": text for number, text in enumerate(expected)}


def test_the_key_is_read_from_the_environment(server, tiny_llava, monkeypatch):
    with pytest.raises(CaptionerError, match=r"--api_key_env is OUR_KEY"):
        ServerCaptioner(server.url, tiny_llava, api_key_env="OUR_KEY")
    monkeypatch.setenv("OUR_KEY", "secret")
    asking = ServerCaptioner(server.url, tiny_llava, SHORT, api_key_env="OUR_KEY")
    assert len(asking.answer([Request("hello")])) == 1
    assert "secret" not in json.dumps(asking.identity())


def test_a_server_that_stays_away_is_given_up(tiny_llava, caplog):
    asking = ask(f"http://127.0.0.1:{free_port()}/v1", tiny_llava, give_up_min=0.02)
    with caplog.at_level(logging.WARNING), pytest.raises(CaptionerError, match=r"answered nothing.*--give_up_min"):
        asking.answer([Request("hello"), Request("again")])
    assert sum("trying again" in message for message in caplog.messages) == 1


@pytest.mark.long
def test_a_server_may_be_killed_and_started_again(tiny_llava, captioner, tmp_path):
    requests = [Request(f"describe {number}", picture) for number, picture in enumerate(pictures(16))]
    let_through = threading.Semaphore(4)

    def fault(body: str, attempt: int) -> Fault:
        # Four answers from the first server; what comes then waits, unanswered, until its end.
        return None if restarted.is_set() or let_through.acquire(blocking=False) else "cut"

    restarted = threading.Event()
    with (
        ServedModel(tiny_llava, tmp_path) as running,
        FaultProxy(running.port, fault) as proxy,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(ask(proxy.url, tiny_llava).answer, requests)
        while proxy.answered < 4:
            assert not asking.done(), asking.result()
            time.sleep(0.05)
        running.kill()
        running.start()
        restarted.set()
        assert asking.result() == captioner.answer(requests)


def test_edits_ask_a_server_as_they_ask_the_model(server, tiny_llava):
    served, here = captioner_config(server.url, tiny_llava), captioner_config(tiny_llava, device="cpu")
    request = [Request("describe", pictures(1)[0])]
    assert served.load().answer(request) == here.load().answer(request)
    assert isinstance(served_models(server.url), list)  # of the hub's cache, which is empty here
    with pytest.raises(ValueError, match="the server names none; give --captioner_model"):
        captioner_config(server.url)


@pytest.mark.long
def test_the_miniature_answers_alike_here_and_over_http(tmp_path):
    scenes = [sample_scene("test", 1, index) for index in range(6)]
    requests = [Request(DEFAULT_PROMPT, Image.fromarray(render(scene))) for scene in scenes]
    requests += [Request(condense_prompt(describe_at_length(scene), 34)) for scene in scenes]
    requests += [Request(rewrite_prompt(long_caption(scene), "make the picture night")) for scene in scenes]
    with ServedModel(str(MINIATURE.resolve()), tmp_path) as running:
        over_http = ServerCaptioner(running.url, running.model).answer(requests)
    assert over_http == LocalCaptioner(str(MINIATURE)).answer(requests)
    assert len(set(over_http)) > len(scenes)


def test_the_offline_switch_is_named(tmp_path, monkeypatch):
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        pytest.skip("HF_HUB_OFFLINE is read when huggingface_hub is imported; `make test` sets it")
    with pytest.raises(CaptionerError, match=r"cannot load 'nobody/nothing'.*HF_HUB_OFFLINE is set"):
        LocalCaptioner("nobody/nothing")
