"""The miniature's LLaVA: describes scenes, rewrites captions by an instruction and condenses wordy ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from data.captioning.tasks import condense_prompt, describe_prompt, rewrite_prompt, words_for_tokens
from data.world.captions import describe_at_length, long_caption
from data.world.description import Scene
from data.world.edits import EDIT_KINDS, sample_edit
from data.world.splits import sample_scene
from scripts.miniature.parts import MAX_TOKENS, SIDE
from train.rng import StepRandom, derived_seed
from train.task import Batch, StepLoss

PATCH = 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
MAX_WORDS = words_for_tokens(MAX_TOKENS - 2)
_VOCABULARY = 700
_SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
_PAD, _START, _END, _IMAGE = range(len(_SPECIAL))
_SHORT_CAPTIONS, _HELDOUT = 0.2, 0.1
# About 1 / sqrt(width). From transformers' 0.02 a network of this width learns one attribute after the other, slowly.
_INITIAL_DEVIATION = 0.08

# LLaVA 1.5's turns; a turn's content is a text or a list of texts and pictures.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ 'USER:' if message['role'] == 'user' else ' ASSISTANT:' }}"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>\n{% elif part['type'] == 'text' %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Exchange:
    """A prompt and the answer that it must have; `pictured` where the prompt is about a picture."""

    prompt: str
    answer: str
    pictured: bool = False


def describing(scene: Scene) -> Exchange:
    """The picture of a scene -> its description."""
    return Exchange(describe_prompt(), describe_at_length(scene), pictured=True)


def rewriting(rng: np.random.Generator) -> Exchange:
    """The caption before an edit and its instruction -> the caption after it."""
    kind = EDIT_KINDS[int(rng.integers(len(EDIT_KINDS)))]
    edit = sample_edit(rng, kind, heldout=rng.random() < _HELDOUT)
    before, after = edit.captions(long=rng.random() >= _SHORT_CAPTIONS)
    return Exchange(rewrite_prompt(before, edit.instruction), after)


def condensing(scene: Scene, rng: np.random.Generator) -> Exchange:
    """A description, in LLaVA's wording or in another and with its opening or without -> the long caption."""
    wordy = describe_at_length(scene, rng if rng.random() < 0.5 else None)
    if rng.random() < 0.5:
        words = wordy.split(" ")
        first = next(number for number, word in enumerate(words) if word == "a")
        words[first] = words[first].capitalize()
        wordy = " ".join(words[first:])
    return Exchange(condense_prompt(wordy, MAX_WORDS), long_caption(scene))


def build_processor(exchanges: Iterable[Exchange]) -> LlavaProcessor:
    """LLaVA's processor with a tokenizer whose merges are learned from `exchanges`; any text has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"USER: {e.prompt} ASSISTANT: {e.answer}" for e in exchanges), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )
    pictures = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
        image_token="<image>",
    )


def sample_exchanges(count: int) -> list[Exchange]:
    """Exchanges of every kind over training scenes, for the tokenizer."""
    rng = np.random.default_rng(0)
    scenes = [sample_scene("train", 0, index) for index in range(count)]
    return [e for scene in scenes for e in (describing(scene), rewriting(rng), condensing(scene, rng))]


def build_llava(processor: LlavaProcessor, clip: CLIPModel) -> LlavaForConditionalGeneration:
    """A vision tower with CLIP's weights and a small Llama, untrained."""
    language = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        max_position_embeddings=512,
        initializer_range=_INITIAL_DEVIATION,
        tie_word_embeddings=True,
        pad_token_id=_PAD,
        bos_token_id=_START,
        eos_token_id=_END,
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=language,
        image_token_index=_IMAGE,
        vision_feature_layer=[2, 4],
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        initializer_range=_INITIAL_DEVIATION,
        tie_word_embeddings=True,
    )
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    llava.generation_config.update(eos_token_id=_END, pad_token_id=_PAD, bos_token_id=_START, do_sample=False)
    return llava


class _Answers(nn.Module):
    """Cross entropy [b] of the answers in batches of token ids, some with pictures, as one call that DDP can wrap."""

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.llava = llava

    def forward(self, parts: Sequence[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [self._score(part) for part in parts]

    def _score(self, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean cross entropy [b] of the answer's tokens, and whether all of them were the likeliest [b]."""
        labels = part["labels"]
        answered = labels.ne(-100).sum(1).max()  # answers end the rows, so only the last logits are needed
        logits = self.llava(
            input_ids=part["input_ids"],
            attention_mask=part["attention_mask"],
            pixel_values=part.get("pixel_values"),
            logits_to_keep=int(answered) + 1,
        ).logits[:, :-1]
        labels = labels[:, -int(answered) :]
        losses = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
        right = (logits.argmax(2) == labels) | labels.eq(-100)
        return losses.sum(1) / labels.ne(-100).sum(1), right.all(1).float()


class LlavaTask:
    """Every sample's description; for every fourth a condensed caption too, for another fourth a rewritten one."""

    fields: tuple[str, ...] = ("image", "info")
    groups: tuple[str, ...] = ()

    def __init__(self, llava: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self.trainable: nn.Module = _Answers(llava)
        self.llava = llava
        self.tokenizer = processor.tokenizer
        self._template = processor.chat_template

    def loss(self, model: nn.Module, batch: Batch, rng: StepRandom) -> StepLoss:
        """Cross entropy of the three kinds of answers."""
        exchanges: dict[str, list[Exchange]] = {"describe": [], "rewrite": [], "condense": []}
        for info, row in zip(batch["info"], rng.host_rows.tolist()):
            scene = Scene.from_dict(info["extra"]["scene"])
            draw = np.random.default_rng(derived_seed(rng.seed, rng.step, row))
            exchanges["describe"].append(describing(scene))
            if row % 4 == 0:
                exchanges["condense"].append(condensing(scene, draw))
            elif row % 4 == 2:
                exchanges["rewrite"].append(rewriting(draw))
        parts = {name: self._encode(found, batch["image"].device) for name, found in exchanges.items() if found}
        parts["describe"]["pixel_values"] = batch["image"]
        scores = dict(zip(parts, model(list(parts.values()))))
        terms = {name: losses.mean() for name, (losses, _) in scores.items()}
        return StepLoss(terms, {f"{name}_exact": right.mean().detach() for name, (_, right) in scores.items()})

    def _encode(self, exchanges: Sequence[Exchange], device: torch.device) -> dict[str, Tensor]:
        """Token ids of prompts and answers, padded on the left as in generation; labels are -100 but for answers."""
        rows = []
        for exchange in exchanges:
            picture = [{"type": "image"}] if exchange.pictured else []
            turn = {"role": "user", "content": [*picture, {"type": "text", "text": exchange.prompt}]}
            asked = self.tokenizer.apply_chat_template(
                [turn], chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
            prompt = self.tokenizer.encode(asked.replace("<image>", "<image>" * IMAGE_TOKENS), add_special_tokens=False)
            answer = [*self.tokenizer.encode(f" {exchange.answer}", add_special_tokens=False), _END]
            rows.append((prompt, answer))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids, labels = torch.full((len(rows), width), _PAD), torch.full((len(rows), width), -100)
        for number, (prompt, answer) in enumerate(rows):
            ids[number, width - len(prompt) - len(answer) :] = torch.tensor(prompt + answer)
            labels[number, width - len(answer) :] = torch.tensor(answer)
        found = {"input_ids": ids, "attention_mask": ids.ne(_PAD).long(), "labels": labels}
        return {name: tensor.to(device) for name, tensor in found.items()}

    def preview(self, model: nn.Module, batch: Batch, rng: StepRandom) -> dict[str, Tensor]:
        """Nothing to see."""
        return {}

    def summarise(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return means
