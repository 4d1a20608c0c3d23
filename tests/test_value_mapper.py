"""Mapping networks: the per-image form against torch's own convolutions and batch norm, the amortised form's start."""

import pytest
import torch
from torch import Tensor, nn

from models.value_mapper import AmortisedMapper, DirectValues, Modulation, TokenMapper

TOKENS, TEXT = (5, 16), (7, 16)


def image_tokens(images: int = 3) -> Tensor:
    return torch.randn(images, *TOKENS, generator=torch.Generator().manual_seed(0))


def official(mapper: TokenMapper, image: int, tokens: Tensor) -> Tensor:
    """Conv1d -> Conv1d -> BatchNorm1d (training mode) -> LeakyReLU -> Conv1d with the weights of one image."""
    convs = []
    for weight, bias in zip(mapper.weights, mapper.biases, strict=True):
        conv = nn.Conv1d(weight.shape[2], weight.shape[1], 1)
        conv.weight.data, conv.bias.data = weight[image, :, :, None].data, bias[image, :, 0].data
        convs.append(conv)
    norm = nn.BatchNorm1d(mapper.norm_weight.shape[1])
    norm.weight.data, norm.bias.data = mapper.norm_weight[image, :, 0].data, mapper.norm_bias[image, :, 0].data
    return nn.Sequential(convs[0], convs[1], norm, nn.LeakyReLU(0.01), convs[2])(tokens[image : image + 1])[0]


@pytest.mark.parametrize(("form", "channels"), [("replace", 7), ("modulate", 14)])
def test_each_image_has_the_official_network(form, channels):
    torch.manual_seed(0)
    mapper = TokenMapper(TOKENS, TEXT, form, images=3)
    for parameter in mapper.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # images differ after their first step
    tokens = image_tokens()
    found = mapper(tokens)
    for image in range(3):
        expected = official(mapper, image, tokens)
        assert expected.shape == (channels, TEXT[1])
        if form == "replace":
            torch.testing.assert_close(found.shift[image], expected)
            assert not found.scale.any()
        else:
            torch.testing.assert_close(torch.cat([found.scale[image], found.shift[image]]), expected)


def test_sizes_of_the_paper_and_of_the_official_code():
    def count(form: str) -> int:
        return sum(parameter.numel() for parameter in TokenMapper((197, 768), (77, 768), form).parameters())

    assert count("replace") == 27_412
    assert count("modulate") == 78_540


def test_images_start_alike_and_do_not_know_each_other():
    torch.manual_seed(0)
    three = TokenMapper(TOKENS, TEXT, images=3)
    torch.manual_seed(0)
    one = TokenMapper(TOKENS, TEXT, images=1)
    tokens = image_tokens()
    torch.testing.assert_close(three(tokens).shift[1:2], one(tokens[1:2]).shift)


def test_other_widths_are_projected():
    found = TokenMapper((5, 24), TEXT, images=2)(torch.randn(2, 5, 24))
    assert found.scale.shape == found.shift.shape == (2, 7, 16)


def test_at_zero_adds_nothing_and_still_learns():
    mapper = TokenMapper(TOKENS, TEXT, images=2, at_zero=True)
    found = mapper(image_tokens(2))
    assert not found.scale.any() and not found.shift.any()
    found.shift.sum().backward()
    assert mapper.biases[2].grad.any()


def test_modulation():
    text = torch.randn(2, 7, 16)
    scale, shift = torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(Modulation(scale, shift)(text), scale * text + shift)
    doubled = Modulation(scale, shift) + Modulation(scale, shift)
    torch.testing.assert_close(doubled(text), 2 * (scale * text + shift))
    assert torch.equal(DirectValues(text)(image_tokens(2))(torch.zeros_like(text)), text)


@pytest.mark.parametrize("form", ["modulate", "replace"])
def test_amortised_network_starts_as_the_text_itself(form):
    mapper = AmortisedMapper(TOKENS, TEXT, form, width=8, depth=1, heads=2)
    text = torch.randn(3, *TEXT)
    torch.testing.assert_close(Modulation(*mapper(image_tokens(), torch.tensor([1, 500, 958]), text))(text), text)


def moved(mapper: AmortisedMapper) -> AmortisedMapper:
    """The network with weights that are not zero anywhere."""
    for parameter in mapper.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return mapper


def test_amortised_rows_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    mapper = moved(AmortisedMapper(TOKENS, TEXT, width=8, depth=2, heads=2))
    text, t = torch.randn(3, *TEXT), torch.tensor([1, 500, 958])
    whole, alone = mapper(image_tokens(), t, text), mapper(image_tokens()[1:2], t[1:2], text[1:2])
    torch.testing.assert_close(whole[1][1:2], alone[1])


def test_amortised_network_uses_image_time_and_text():
    torch.manual_seed(0)
    mapper = moved(AmortisedMapper(TOKENS, TEXT, width=8, depth=2, heads=2))
    tokens, text, t = image_tokens(1), torch.randn(1, *TEXT), torch.tensor([500])
    found = mapper(tokens, t, text)[1]
    for other in (
        mapper(tokens + 1 + tokens.square(), t, text),
        mapper(tokens, t - 400, text),
        mapper(tokens, t, text.flip(1)),
    ):
        assert (other[1] - found).abs().max() > 1e-4


def test_amortised_network_is_saved_and_loaded(tmp_path):
    mapper = moved(AmortisedMapper(TOKENS, TEXT, width=8, depth=1, heads=2))
    mapper.save_pretrained(tmp_path)
    loaded = AmortisedMapper.from_pretrained(tmp_path)
    text, t = torch.randn(1, *TEXT), torch.tensor([3])
    assert torch.equal(loaded(image_tokens(1), t, text)[1], mapper(image_tokens(1), t, text)[1])
