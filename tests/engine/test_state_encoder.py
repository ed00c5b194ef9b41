"""From observations to embeddings with the packaged captioner: order, cache, counts, gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from mmft.engine.observations import Observation, ObservationReader
from mmft.engine.prompt_encoder import process_row, process_texts
from mmft.engine.state_encoder import StateEncoder
from mmft.errors import ConfigError, DataError
from mmft.models.backbone import Backbone, load_backbone, make_backbone
from mmft.models.modalities import Modalities
from mmft.models.packaged import CAPTIONER_NAME
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import lora

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ALL = ("image", "text", "fused")
MISSIONS = ("go to the red circle", "go", "is there a blue square left of the circle?")
SPACE = spaces.Dict({
    "image": spaces.Box(0, 255, (64, 64, 3), np.uint8),
    "mission": spaces.Text(80),
    "place": spaces.Box(-1, 1, (2,)),
})  # fmt: skip


@functools.cache
def captioner() -> Backbone:
    """The packaged model, frozen; one per process."""
    return load_backbone(CAPTIONER_NAME, trainable=())


def observe(seed: int, mission: str, place: Sequence[float] = (0.0, 0.0)) -> Observation:
    """A picture of noise, a mission and two numbers."""
    reader = ObservationReader(SPACE, spaces.Discrete(4), environment="Toy-v0")
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return reader.read({"image": image, "mission": mission, "place": np.array(place)}, {})


def observations() -> list[Observation]:
    """Three pictures and three missions in four combinations, one of them twice."""
    return [
        observe(0, MISSIONS[0], (0.5, -0.5)),
        observe(1, MISSIONS[1]),
        observe(0, MISSIONS[2]),
        observe(0, MISSIONS[0], (1.0, 0.0)),
        observe(2, MISSIONS[0]),
    ]


def make_encoder(
    backbone: Backbone | None = None, modalities: Sequence[str] = ALL, **settings: Any
) -> StateEncoder:
    return StateEncoder(
        backbone or captioner(), modalities, **{"pooled": False, "cache_bytes": 2**24} | settings
    )


@contextmanager
def rows_through(backbone: Backbone, *, text_model: bool = True) -> Iterator[list[int]]:
    """The batch sizes of the calls into the text model, or the numbers of pictures in those of the tower."""
    sizes: list[int] = []
    module = backbone.text_model if text_model else backbone.base.model.vision_tower

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        sizes.append(len(output.last_hidden_state))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    yield sizes
    handle.remove()


def tokens(states: Modalities, name: str, row: int) -> Tensor:
    """(T, D) the real tokens of one row."""
    return states.embeddings[name][row][states.masks[name][row]]


@torch.no_grad()
def alone(observation: Observation) -> dict[str, Tensor]:
    """The embeddings of one observation by hand: two prompts, one forward each."""
    backbone = captioner()
    text = {"type": "text", "text": observation.text}
    with_picture = PromptRow(
        "row", "", [{"role": "user", "content": [{"type": "image"}, text]}], [*observation.images]
    )
    words = PromptRow("row", "", [{"role": "user", "content": [text]}], [])
    inputs = process_row(backbone.processor, with_picture)
    ids = inputs.input_ids[0]
    encoding = backbone.encode(inputs)
    hidden = backbone.base.model(**inputs.tensors).last_hidden_state[0]
    return {
        "image": encoding.embeds[ids == backbone.base.config.image_token_id],
        "fused": hidden[-1:],
        "text": backbone.base.model(**process_texts(backbone.processor, [words]).tensors).last_hidden_state[
            0
        ],
    }


@pytest.mark.parametrize("batch_size", [2, 64])
def test_each_observation_in_its_place_is_what_it_is_alone(batch_size: int) -> None:
    seen = observations()
    states = make_encoder(batch_size=batch_size).encode(seen)
    assert states.names == ALL
    assert len(states) == len(seen)
    for row, observation in enumerate(seen):
        for name, expected in alone(observation).items():
            torch.testing.assert_close(tokens(states, name, row), expected, atol=1e-4, rtol=0)


def test_pictures_change_image_and_fused_and_words_change_text_and_fused() -> None:
    states = make_encoder().encode([observe(0, "go"), observe(1, "go"), observe(0, "stop")])
    for name, by_picture, by_words in (("image", True, False), ("text", False, True), ("fused", True, True)):
        first, picture, words = (tokens(states, name, row) for row in range(3))
        assert torch.equal(first, picture) != by_picture
        assert torch.equal(first, words) != by_words


def test_what_was_seen_is_not_encoded_again() -> None:
    encoder, seen = make_encoder(), observations()
    with rows_through(captioner()) as read:
        first = encoder.encode(seen)
    # Four of the five are different; three texts are.
    assert sorted(read) == [3, 4]
    assert (encoder.num_asked, encoder.num_encoded) == (5, 4)
    # Each of 3 pictures, 3 texts and 4 of both is looked up once.
    assert (encoder.cache.hits, encoder.cache.misses) == (0, 10)
    with rows_through(captioner()) as read, rows_through(captioner(), text_model=False) as looked:
        again = encoder.encode([seen[4], seen[0]])
        assert (encoder.num_asked, encoder.num_encoded) == (7, 4)
        assert (encoder.cache.hits, encoder.cache.misses) == (5, 10)  # the two share their text
        assert read == looked == []
        encoder.encode([observe(9, MISSIONS[0]), seen[1], observe(9, MISSIONS[0])])
    assert (encoder.num_asked, encoder.num_encoded) == (10, 5)
    assert read == looked == [1]  # its words were known
    for name in ALL:
        assert torch.equal(tokens(again, name, 0), tokens(first, name, 4))
        assert torch.equal(tokens(again, name, 1), tokens(first, name, 0))


def test_pictures_alone_never_reach_the_text_model_and_words_alone_never_the_tower() -> None:
    seen = observations()
    with rows_through(captioner()) as read, rows_through(captioner(), text_model=False) as looked:
        image = make_encoder(modalities=["image"])
        image.encode(seen)
        assert (read, looked) == ([], [3])
        words = make_encoder(modalities=["text"])
        words.encode(seen)
        assert (read, looked) == ([3], [3])
    assert (image.num_encoded, words.num_encoded) == (3, 3)


@pytest.mark.parametrize("cache_bytes", [0, 600])
def test_without_room_in_the_cache_the_embeddings_are_the_same(cache_bytes: int) -> None:
    encoder, seen = make_encoder(cache_bytes=cache_bytes), observations()
    cached = make_encoder()
    for _ in range(2):
        states, expected = encoder.encode(seen), cached.encode(seen)
        for name in ALL:
            assert torch.equal(states.masks[name], expected.masks[name])
            torch.testing.assert_close(states.embeddings[name], expected.embeddings[name], atol=1e-5, rtol=0)
    assert (encoder.num_encoded, cached.num_encoded) == (8, 4)
    assert encoder.cache.num_bytes <= cache_bytes


@pytest.mark.parametrize("trainable", [(), ("head",)])
def test_pooled_embeddings_are_means_of_the_sequences(trainable: Sequence[str]) -> None:
    backbone = load_backbone(CAPTIONER_NAME, trainable=trainable)
    seen = observations()
    whole, pooled = make_encoder(backbone), make_encoder(backbone, pooled=True)
    sequences, means = whole.encode(seen), pooled.encode(seen)
    for name in ALL:
        assert means.embeddings[name].shape == (5, 1, backbone.hidden_size)
        assert means.masks[name].all()
        for row in range(5):
            expected = tokens(sequences, name, row).mean(0, keepdim=True)
            torch.testing.assert_close(tokens(means, name, row), expected, atol=1e-5, rtol=0)
    if pooled.frozen:
        # 3 pictures, 3 texts and 4 of both, one vector of float32 each.
        assert pooled.cache.num_bytes == 10 * backbone.hidden_size * 4
        assert whole.cache.num_bytes > 10 * pooled.cache.num_bytes


def test_what_is_kept_does_not_hold_its_batch() -> None:
    encoder = make_encoder()
    encoder.encode(observations())
    for entry in encoder.cache._entries.values():
        assert entry.tensor.untyped_storage().nbytes() == entry.num_bytes
        assert not entry.tensor.requires_grad


def test_numbers_lie_beside_what_the_model_says() -> None:
    encoder = make_encoder(modalities=["image"], num_numbers=2)
    assert encoder.widths == {"image": captioner().hidden_size, "numbers": 2}
    seen = observations()
    without = Observation(seen[1].images, "go", None, None, seen[1].image_key, b"")
    states = encoder.encode([seen[0], without, seen[3]])
    assert states.widths == encoder.widths
    assert states.embeddings["numbers"].tolist() == [[[0.5, -0.5]], [[0.0, 0.0]], [[1.0, 0.0]]]
    assert states.masks["numbers"].tolist() == [[True], [False], [True]]
    # The same picture and text with other numbers is nothing new.
    assert encoder.num_encoded == 2
    assert make_encoder(modalities=[], num_numbers=2).encode(seen).names == ("numbers",)


@pytest.mark.parametrize("pooled", [False, True])
def test_observations_without_a_picture_lack_the_image(pooled: bool) -> None:
    reader = ObservationReader(spaces.Text(80), spaces.Discrete(2), environment="Toy-v0")
    words = [reader.read(mission, {}) for mission in MISSIONS]
    encoder = make_encoder(pooled=pooled)
    states = encoder.encode(words)
    assert states.embeddings["image"].shape == (3, 1, captioner().hidden_size)
    assert not states.masks["image"].any()
    assert states.present("text").all()
    mixed = encoder.encode([words[0], observe(0, MISSIONS[0])])
    assert mixed.present("image").tolist() == [False, True]
    assert torch.equal(tokens(mixed, "text", 0), tokens(mixed, "text", 1))


def test_frozen_models_are_run_in_evaluation_mode_and_without_a_graph() -> None:
    backbone = load_backbone(CAPTIONER_NAME, trainable=())
    backbone.model.train()
    backbone.base.enable_input_require_grads()  # as the checkpointing of activations wants it
    modes: list[bool] = []
    handle = backbone.text_model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    states = make_encoder(backbone).encode(observations())
    handle.remove()
    assert modes == [False, False]
    assert backbone.text_model.training
    assert not any(embedding.requires_grad for embedding in states.embeddings.values())


def test_while_weights_train_gradients_reach_them_and_nothing_is_kept() -> None:
    torch.manual_seed(0)
    backbone = load_backbone(CAPTIONER_NAME, peft_config=lora())
    encoder, seen = make_encoder(backbone, batch_size=2), observations()
    assert not encoder.frozen
    with rows_through(backbone) as read:
        states = encoder.encode(seen)
    assert states.names == ALL
    assert read == [2, 2, 1, 2, 2, 1]  # in batches, once with pictures and once without
    assert (encoder.num_asked, encoder.num_encoded, len(encoder.cache)) == (5, 5, 0)
    weights = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    for name in ("fused", "text"):
        gradients = torch.autograd.grad(states.embeddings[name].square().sum(), weights, retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert not states.embeddings["image"].requires_grad
    with torch.no_grad():
        before = encoder.encode(seen)
        assert not before.embeddings["fused"].requires_grad
        weights[0].add_(1)
        after = encoder.encode(seen)
    assert (before.embeddings["fused"] - after.embeddings["fused"]).abs().max() > 1e-3
    assert torch.equal(before.embeddings["image"], after.embeddings["image"])


def test_what_other_weights_made_is_forgotten() -> None:
    backbone = load_backbone(CAPTIONER_NAME, trainable=())
    encoder, seen = make_encoder(backbone, ["fused"]), observations()
    before = encoder.encode(seen)
    weight = backbone.text_model.layers[0].self_attn.q_proj.weight
    weight.requires_grad_(True)
    with torch.no_grad():
        weight.mul_(-1)
        trained = encoder.encode(seen)
    weight.requires_grad_(False)
    again = encoder.encode(seen)
    torch.testing.assert_close(again.embeddings["fused"], trained.embeddings["fused"], atol=1e-5, rtol=0)
    assert (before.embeddings["fused"] - trained.embeddings["fused"]).abs().max() > 1e-3


def test_a_model_whose_processor_insists_on_pictures_still_reads_words() -> None:
    backbone = make_backbone(zoo.build_model("paligemma"), zoo.build_processor("paligemma"), trainable=())
    states = make_encoder(backbone).encode(observations())
    assert all(states.present(name).all() for name in ALL)
    reader = ObservationReader(spaces.Text(80), spaces.Discrete(2), environment="Toy-v0")
    words = reader.read("go", {})
    assert make_encoder(backbone, ["text"]).encode([words]).present("text").all()
    with pytest.raises(DataError, match="row 'go': the processor PaliGemmaProcessor refused the prompt"):
        make_encoder(backbone, ["fused"]).encode([words])


@pytest.mark.parametrize("name", ["video", "numbers", "speech"])
def test_a_modality_that_observations_do_not_have_is_refused(name: str) -> None:
    message = rf"`modalities` has '{name}', which this model does not make .* it makes text, fused, image\."
    with pytest.raises(ConfigError, match=message):
        make_encoder(modalities=["image", name])


def test_an_encoder_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="`modalities` is empty; give some of text, fused, image"):
        make_encoder(modalities=[])


def test_no_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="`observations` is empty"):
        make_encoder().encode([])


def test_numbers_of_another_length_are_refused() -> None:
    message = r"`num_numbers` is 3, but an observation has numbers of shape \(2,\)\. Give the reader's own"
    with pytest.raises(ValueError, match=message):
        make_encoder(modalities=["image"], num_numbers=3).encode(observations())
