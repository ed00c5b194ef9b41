"""States as named tensors: what went in comes out, through buffers and files too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmft.data.replay import ReplayBuffer
from mmft.engine.observations import Observation, ObservationReader
from mmft.engine.stored_observations import StoredStates, TextTable
from mmft.models.modalities import Modalities
from tests.engine.agent_support import BY_ATTENTION, agent_on, backbone_of, observations, said


def embeddings(*lengths: tuple[int, int], seed: int = 0) -> Modalities:
    """Rows of (text tokens, pictures' tokens) and two numbers; padding holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    found, masks = {}, {}
    for place, (name, width) in enumerate((("text", 3), ("image", 4))):
        counts = torch.tensor([each[place] for each in lengths])
        masks[name] = torch.arange(max(1, int(counts.max()))) < counts[:, None]
        noise = torch.randn(*masks[name].shape, width, generator=generator)
        found[name] = torch.where(masks[name][..., None], noise, torch.nan)
    found["numbers"] = torch.randn(len(lengths), 1, 2, generator=generator)
    masks["numbers"] = torch.ones(len(lengths), 1, dtype=torch.bool)
    return Modalities(found, masks)


def real_tokens(states: Modalities, row: int) -> dict[str, Tensor]:
    return {name: states.embeddings[name][row][states.masks[name][row]] for name in states.names}


def restored(stored: StoredStates) -> Modalities:
    states = stored.restored("cpu")
    assert isinstance(states, Modalities)
    return states


def seen_again(stored: StoredStates) -> list[Observation]:
    states = stored.restored("cpu")
    assert not isinstance(states, Modalities)
    return list(states)


def assert_same(actual: list[Observation], expected: list[Observation]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.text == other.text
        assert [image.size for image in one.images] == [image.size for image in other.images]
        assert [image.mode for image in one.images] == [image.mode for image in other.images]
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
        assert (one.numbers is None) == (other.numbers is None)
        if one.numbers is not None and other.numbers is not None:
            assert torch.equal(one.numbers, other.numbers)
            assert one.numbers.dtype == other.numbers.dtype
        assert (one.image_key, one.text_key) == (other.image_key, other.text_key)


# Texts


def test_each_text_has_one_number_in_the_order_of_their_coming() -> None:
    texts = TextTable()
    assert [texts.number(text) for text in ("go", "stop", "go", "", "stop", "Go")] == [0, 1, 0, 2, 1, 3]
    assert texts.known == ["go", "stop", "", "Go"]


def test_a_table_goes_on_where_a_saved_one_ended() -> None:
    texts = TextTable()
    for text in ("go", "stop"):
        texts.number(text)
    again = TextTable(texts.known)
    assert [again.number(text) for text in ("stop", "turn", "go")] == [1, 2, 0]
    assert texts.known == ["go", "stop"]  # a copy


# Embeddings


def test_embeddings_come_out_as_they_went_in() -> None:
    states = embeddings((3, 2), (1, 4))
    stored = StoredStates.of(states, TextTable())
    assert len(stored) == 2
    again = restored(stored)
    assert again.names == states.names
    for name, tensor in states.tensors().items():
        torch.testing.assert_close(again.tensors()[name], tensor, atol=0, rtol=0, equal_nan=True)


def test_sequences_of_different_lengths_stand_one_after_the_other() -> None:
    parts = [embeddings((3, 2), (1, 4), seed=0), embeddings((5, 1), seed=1), embeddings((2, 0), seed=2)]
    texts = TextTable()
    together = StoredStates.cat([StoredStates.of(part, texts) for part in parts])
    assert len(together) == 4
    assert together.texts is texts
    places = [(0, 0), (0, 1), (1, 0), (2, 0)]
    for row, (part, place) in enumerate(places):
        expected = real_tokens(parts[part], place)
        for name, tokens in real_tokens(restored(together), row).items():
            assert torch.equal(tokens, expected[name])
    assert together.tensors["text"].shape == (4, 5, 3)
    assert together.tensors["text_mask"].sum(1).tolist() == [3, 1, 5, 2]
    assert together.tensors["image_mask"].sum(1).tolist() == [2, 4, 1, 0]


def test_rows_are_taken_in_the_order_asked_for() -> None:
    states = embeddings((3, 2), (1, 4), (2, 2))
    taken = StoredStates.of(states, TextTable()).take(torch.tensor([2, 0, 2]))
    assert len(taken) == 3
    for row, place in enumerate((2, 0, 2)):
        expected = real_tokens(states, place)
        for name, tokens in real_tokens(restored(taken), row).items():
            assert torch.equal(tokens, expected[name])
    assert len(taken.take(torch.tensor([], dtype=torch.long))) == 0


# Observations


def observe(*pictures: tuple[int, int], text: str = "go", numbers: bool = True, seed: int = 0) -> Observation:
    """Pictures of noise, of any (height, width), a text and three numbers."""
    generator = np.random.default_rng(seed)
    sizes = {f"picture{place}": size for place, size in enumerate(pictures)}
    keys = {name: spaces.Box(0, 255, (*size, 3), np.uint8) for name, size in sizes.items()}
    space = spaces.Dict(
        keys
        | {"text": spaces.Text(99, charset=text or "x")}
        | ({"place": spaces.Box(-np.inf, np.inf, (3,))} if numbers else {})
    )
    values = {n: generator.integers(0, 256, (*size, 3), dtype=np.uint8) for n, size in sizes.items()}
    reader = ObservationReader(space, spaces.Discrete(2), environment="Toy-v0")
    return reader.read(values | {"text": text, "place": generator.normal(size=3)}, {})


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("pictures", [(), ((5, 7),), ((5, 7), (3, 2), (8, 8))])
def test_observations_come_out_as_they_went_in(pictures: tuple[tuple[int, int], ...], numbers: bool) -> None:
    texts = ("go", "Où est-il?\n\t", "", "go")
    seen = [
        observe(*pictures, text=text, numbers=numbers, seed=seed)  # in every state something else
        for seed, text in enumerate(texts)
    ]
    stored = StoredStates.of(seen, TextTable())
    assert len(stored) == 4
    assert_same(seen_again(stored), seen)


def test_a_picture_takes_a_byte_a_channel_and_a_text_its_number() -> None:
    texts = TextTable(["before"])
    stored = StoredStates.of([observe((5, 7), text=text) for text in ("go", "stop", "go")], texts)
    kinds = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored.tensors.items()}
    assert kinds == {
        "words": ((3,), torch.int64),
        "picture_0": ((3, 5, 7, 3), torch.uint8),
        "numbers": ((3, 3), torch.float32),
    }
    assert stored.tensors["picture_0"].nbytes == 3 * 5 * 7 * 3
    assert stored.tensors["words"].tolist() == [1, 2, 1]
    assert texts.known == ["before", "go", "stop"]


def test_every_value_of_a_pixel_survives() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels[..., 1] = pixels[::-1, :, 0]
    seen = replace(observe((16, 16)), images=(Image.fromarray(pixels),))
    (again,) = seen_again(StoredStates.of([seen], TextTable()))
    assert (np.asarray(again.images[0]) == pixels).all()


def test_what_is_kept_is_a_copy() -> None:
    seen = [observe((4, 4))]
    stored = StoredStates.of(seen, TextTable())
    before = seen[0].images[0].tobytes()
    stored.tensors["picture_0"].zero_()
    assert seen[0].images[0].tobytes() == before


def test_observations_stand_one_after_the_other_and_are_taken() -> None:
    texts = TextTable()
    seen = [observe((5, 7), text=text, seed=seed) for seed, text in enumerate(("go", "stop", "turn", "go"))]
    parts = [StoredStates.of(some, texts) for some in (seen[:2], seen[2:3], seen[3:])]
    together = StoredStates.cat(parts)
    assert_same(seen_again(together), seen)
    rows = torch.tensor([3, 1, 1])
    assert_same(seen_again(together.take(rows)), [seen[3], seen[1], seen[1]])


def test_which_actions_are_legal_is_kept_elsewhere() -> None:
    seen = replace(observe((4, 4)), legal=torch.tensor([True, False]))
    (again,) = seen_again(StoredStates.of([seen], TextTable()))
    assert again.legal is None


# Through a buffer and a file


def test_observations_pass_a_replay_buffer_and_its_checkpoint(tmp_path: Path) -> None:
    texts, buffer = TextTable(), ReplayBuffer(24, 2, 2)
    seen = [observe((5, 7), (2, 3), text=f"step {number // 3}", seed=number) for number in range(8)]
    ends = torch.tensor([True, True])
    for first in range(0, 8, 2):
        states = StoredStates.of(seen[first : first + 2], texts)
        rewards = torch.tensor([float(first), first + 1.0])  # which says the state it was earned in
        actions = torch.tensor([0, 1])
        buffer.extend(states.tensors, actions, rewards, terminated=ends, last=ends)
    save_file(buffer.state_dict(), tmp_path / "replay.safetensors")
    loaded = ReplayBuffer(24, 2, 2)
    loaded.load_state_dict(load_file(tmp_path / "replay.safetensors"))
    for each in (buffer, loaded):
        batch = each.sample(40, torch.Generator().manual_seed(0))
        places = batch.rewards[:, 0].long().tolist()
        assert set(places) == set(range(8))
        again = seen_again(StoredStates(batch.states, TextTable(texts.known)))
        assert_same(again, [seen[place] for place in places])


def test_sequences_pass_a_replay_buffer() -> None:
    lengths = [(3, 2), (1, 4), (5, 1), (2, 3)]
    buffer = ReplayBuffer(12, 1, 2)
    rows = [embeddings(each, seed=seed) for seed, each in enumerate(lengths)]
    one = torch.ones(1, dtype=torch.bool)
    for number, states in enumerate(rows):
        stored = StoredStates.of(states, TextTable())
        rewards, actions = torch.tensor([float(number)]), torch.tensor([0])
        buffer.extend(stored.tensors, actions, rewards, terminated=one, last=one)
    batch = buffer.sample(30, torch.Generator().manual_seed(0))
    again = restored(StoredStates(batch.states, TextTable()))
    for row, place in enumerate(batch.rewards[:, 0].long().tolist()):
        for name, tokens in real_tokens(again, row).items():
            assert torch.equal(tokens, real_tokens(rows[place], 0)[name])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@torch.no_grad()
def test_an_agent_says_of_stored_states_what_it_says_of_those_it_saw() -> None:
    agent, seen = agent_on(backbone_of("qwen2_5_vl"), **BY_ATTENTION), observations()
    expected = said(agent(seen))
    for states in (seen, agent.encoder.encode(seen)):
        texts = TextTable()
        parts = [StoredStates.of(states, texts), StoredStates.of(states, texts)]
        stored = StoredStates.cat(parts).take(torch.tensor([4, 1, 6, 3]))
        torch.testing.assert_close(said(agent(stored.restored("cpu"))), expected)
    encoded = agent.encoder.num_encoded
    agent(StoredStates.of(seen, TextTable()).restored("cpu"))
    assert agent.encoder.num_encoded == encoded  # the same keys
