"""Experience to learn from off-policy: the steps of several environments in time order, drawn uniformly.

A state is kept once: the state of one position is the next state of the position before it. Left out on
purpose: priorities, which would make every draw depend on the weights, and buffers on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import zero_outside
from mmft.data.replay_batch import Batch
from mmft.data.replay_states import REMEDY, StateStore, check_row_shapes, check_states, kinds_of
from mmft.errors import ConfigError

MIN_POSITIONS = 3
"""Of any so many positions in a row, one is a step whose successor is known."""
NO_ACTION = -1
"""Stands at positions that only hold the state a truncated episode ended in."""
STATES = "states."
"""Begins the names of the states' tensors in a checkpoint."""


class ReplayBuffer:
    """The newest steps of each stream, one for each environment; the oldest give way.

    A state is a dict of tensors, of the same names, dtypes and shapes throughout. Only sequences, a tensor
    `x` with an `x_mask` beside it and that mask, may differ in their first axis: room is kept for the longest
    seen, and zeros (in the mask, False) follow the shorter ones. The state a truncated episode ended in takes
    a position of its own, which is never drawn as a start; that of a terminated one is not kept.

    States live on `device` and everything else on the CPU, so that a draw never waits for an accelerator.
    """

    def __init__(
        self, capacity: int, num_streams: int, num_actions: int, *, device: torch.device | str = "cpu"
    ) -> None:
        """An empty buffer.

        Args:
            capacity: positions of all streams together; each gets `capacity // num_streams`.
            num_streams: environments that are stepped.
            num_actions: actions to choose from.
            device: where states are kept and batches come out.

        Raises:
            ConfigError: no stream, no action, or too little room.
        """
        for name, value in (("num_streams", num_streams), ("num_actions", num_actions)):
            if value < 1:
                raise ConfigError(f"`{name}` must be >= 1; got {value}.")
        least = MIN_POSITIONS * num_streams
        if capacity < least:
            raise ConfigError(
                f"`capacity` must be >= {least}, {MIN_POSITIONS} for each of {num_streams} environments; got "
                f"{capacity}. Keep more steps, or run fewer environments."
            )
        self._sizes = {"capacity": capacity, "num_streams": num_streams, "num_actions": num_actions}
        self._num_positions = capacity // num_streams
        self._device = torch.device(device)
        self._clear()

    def append(
        self,
        stream: int,
        state: Mapping[str, Tensor],
        action: int,
        reward: float,
        *,
        terminated: bool,
        last: bool,
        legal: Tensor | None = None,
        final_state: Mapping[str, Tensor] | None = None,
        final_legal: Tensor | None = None,
    ) -> None:
        """Adds one step of one stream, as `extend` does; tensors have no axis for streams."""
        num_streams = self._sizes["num_streams"]
        if not 0 <= stream < num_streams:
            raise ValueError(f"`stream` must be in 0..{num_streams - 1}; got {stream}.")
        self._add(
            torch.tensor([stream]),
            _as_row(state),
            torch.tensor([action]),
            torch.tensor([reward]),
            torch.tensor([terminated]),
            torch.tensor([last]),
            None if legal is None else legal[None],
            None if final_state is None else _as_row(final_state),
            None if final_legal is None else final_legal[None],
        )

    def extend(
        self,
        states: Mapping[str, Tensor],
        actions: Tensor,
        rewards: Tensor,
        *,
        terminated: Tensor,
        last: Tensor,
        legal: Tensor | None = None,
        final_states: Mapping[str, Tensor] | None = None,
        final_legal: Tensor | None = None,
        streams: Tensor | None = None,
    ) -> None:
        """Adds one step of every stream, or of those named. Where it does not end an episode, the next step
        of its stream must be taken in the state it led to.

        Shapes: states (E, ...), legal (E, A), the rest (E,), with E streams and A actions.

        Args:
            states: where the steps were taken.
            actions: what was done.
            rewards: what it brought.
            terminated: the step ends its episode, and nothing is worth anything after it.
            last: the step ends its episode, for whatever reason.
            legal: actions that could be taken; None for all.
            final_states: where the steps led; read only where an episode ended without being terminated.
            final_legal: actions that could be taken there; None for all.
            streams: which streams the rows belong to, each once; None for all in order.

        Raises:
            ValueError: a tensor does not look like those before it, an action or a reward is none, or a
                truncated episode comes without its final state. Nothing was added.
        """
        if streams is None:
            streams = torch.arange(self._sizes["num_streams"])
        self._add(streams, states, actions, rewards, terminated, last, legal, final_states, final_legal)

    def cut(self, streams: Tensor, states: Mapping[str, Tensor], legal: Tensor | None = None) -> None:
        """Ends episodes that broke off: the newest step of each named stream led to the given state, and
        nothing is known of what followed. Streams whose newest step ended its episode are left alone.

        Shapes: states (S, ...), legal (S, A), streams (S,).
        """
        waiting = self._pending[streams]
        chosen = streams[waiting]
        if not len(chosen):
            return
        self._fields["last"][chosen, (self._written[chosen] - 1) % self._num_positions] = True
        rows = {name: tensor[waiting.to(tensor.device)] for name, tensor in states.items()}
        everything = torch.ones(len(streams), self._sizes["num_actions"], dtype=torch.bool)
        self._write(chosen, rows, {"legal": (everything if legal is None else legal.cpu())[waiting]})

    def sample(self, num: int, generator: torch.Generator, *, num_steps: int = 1) -> Batch:
        """Windows from `num` starts, drawn uniformly and with replacement from all steps that are terminated
        or whose next state is in the buffer.

        A window has `num_steps` steps, or fewer: it stops with its episode, and where the newest state of its
        stream comes first. The cost does not depend on how much is kept.

        Raises:
            ValueError: there is no step to start from.
        """
        for name, value in (("num", num), ("num_steps", num_steps)):
            if value < 1:
                raise ValueError(f"`{name}` must be >= 1; got {value}.")
        counts = self._steps_seen - self._steps_gone - self._pending.long()
        ends = counts.cumsum(0)
        if ends[-1] == 0:
            raise ValueError(
                "the buffer holds no step whose next state is known. Add two steps of an environment first."
            )
        drawn = torch.randint(int(ends[-1]), (num,), generator=generator, device=generator.device).cpu()
        streams = torch.searchsorted(ends, drawn, right=True)
        steps = self._steps_gone[streams] + drawn - (ends - counts)[streams]
        return self._windows(streams, self._places[streams, steps % self._num_positions], num_steps)

    def __len__(self) -> int:
        """Steps kept, the newest ones, whose next state is not known yet, among them."""
        return int((self._steps_seen - self._steps_gone).sum())

    @property
    def bytes_per_state(self) -> int:
        """What a state takes, padding included; 0 before the first."""
        return self._states.bytes_per_state

    @property
    def num_bytes(self) -> int:
        """What is allocated, filled or not."""
        return self._states.num_bytes + sum(kept.nbytes for kept in (*self._fields.values(), self._places))

    def describe(self) -> str:
        """A line for the log, such as "room for 20,000 steps of 8 environments, 512 B a state (fused 128
        float32), 10.8 MB"."""
        num_streams = self._sizes["num_streams"]
        streams = "1 environment" if num_streams == 1 else f"{num_streams:,} environments"
        room = f"room for {num_streams * self._num_positions:,} steps of {streams}"
        return f"{room}, {self._states.describe()}, {self.num_bytes / 1e6:,.1f} MB"

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept, stream after stream in time order, without the free room."""
        streams, positions = self._filled()
        fields = {name: kept[streams, positions] for name, kept in self._fields.items()}
        states = {STATES + name: rows for name, rows in self._states.read(streams, positions).items()}
        lengths = self._written.clamp(max=self._num_positions)
        return {"sizes": torch.tensor(list(self._sizes.values())), "lengths": lengths, **fields, **states}

    def load_state_dict(
        self, state: Mapping[str, Tensor], row_shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        """Takes over what `state_dict` gave; from there on both buffers draw the same.

        Args:
            state: the tensors.
            row_shapes: the shapes that states of this run have, by name, to be compared with the saved ones;
                the first axis of a sequence is not.

        Raises:
            ConfigError: the saved buffer has other sizes, or states of other shapes. Nothing was changed.
        """
        for (name, now), saved in zip(self._sizes.items(), state["sizes"].tolist(), strict=True):
            if saved != now:
                raise ConfigError(
                    f"the checkpoint's replay buffer has `{name}` {saved}, this run's has {now}. {REMEDY}"
                )
        states = {name.removeprefix(STATES): rows for name, rows in state.items() if name.startswith(STATES)}
        if states and row_shapes is not None:
            check_row_shapes(kinds_of(states, 1), row_shapes)
        self._clear()
        self._written = state["lengths"].cpu().clone()
        streams, positions = self._filled()
        for name, kept in self._fields.items():
            kept[streams, positions] = state[name].cpu()
        self._states.write(streams, positions, states)
        self._index_steps()

    def _clear(self) -> None:
        num_streams, num_actions = self._sizes["num_streams"], self._sizes["num_actions"]
        shape = num_streams, self._num_positions
        self._states = StateStore(*shape, self._device)
        self._fields = {
            "actions": torch.full(shape, NO_ACTION),
            "rewards": torch.zeros(shape),
            "terminated": torch.zeros(shape, dtype=torch.bool),
            "last": torch.zeros(shape, dtype=torch.bool),
            "legal": torch.zeros(*shape, num_actions, dtype=torch.bool),
        }
        # Where the steps are, in time order: a ring for each stream. By it a draw finds the n-th step without
        # looking at the positions before it, some of which hold none.
        self._places = torch.zeros(shape, dtype=torch.long)
        # These only grow; modulo the number of positions they are places in the rings.
        self._written, self._steps_seen, self._steps_gone = (
            torch.zeros(num_streams, dtype=torch.long) for _ in range(3)
        )
        # Streams whose newest step waits for its next state.
        self._pending = torch.zeros(num_streams, dtype=torch.bool)

    def _index_steps(self) -> None:
        """Finds the steps again in positions that were filled from the first on."""
        acted = self._fields["actions"] != NO_ACTION
        streams, positions = acted.nonzero(as_tuple=True)
        self._places[streams, acted.cumsum(1)[streams, positions] - 1] = positions
        self._steps_seen = acted.sum(1)
        newest = (self._written - 1).clamp(min=0)[:, None]
        self._pending = (acted & ~self._fields["terminated"]).gather(1, newest).squeeze(1)

    def _filled(self) -> tuple[Tensor, Tensor]:
        """Stream and position of all that is kept, stream after stream in time order."""
        lengths = self._written.clamp(max=self._num_positions)
        streams = torch.arange(len(lengths)).repeat_interleave(lengths)
        oldest, before = self._written - lengths, lengths.cumsum(0) - lengths
        return streams, (torch.arange(len(streams)) + (oldest - before)[streams]) % self._num_positions

    def _add(
        self,
        streams: Tensor,
        states: Mapping[str, Tensor],
        actions: Tensor,
        rewards: Tensor,
        terminated: Tensor,
        last: Tensor,
        legal: Tensor | None,
        final_states: Mapping[str, Tensor] | None,
        final_legal: Tensor | None,
    ) -> None:
        """One step of each of some streams; all is checked before anything is written."""
        actions, rewards, terminated, last = (x.cpu() for x in (actions, rewards, terminated, last))
        all_legal = torch.ones(len(streams), self._sizes["num_actions"], dtype=torch.bool)
        legal, final_legal = (all_legal if x is None else x.cpu() for x in (legal, final_legal))
        check_shapes(
            streams=(all_legal, "EA"),
            actions=(actions, "E"),
            rewards=(rewards, "E"),
            terminated=(terminated, "E"),
            last=(last, "E"),
            legal=(legal, "EA"),
            final_legal=(final_legal, "EA"),
        )
        _check_numbers(streams, actions, rewards, self._sizes["num_actions"])
        kinds = self._states.kinds or kinds_of(states, 1)
        check_states("states", states, kinds, len(streams))
        terminated = terminated.bool()
        truncated = last.bool() & ~terminated
        if truncated.any():
            if final_states is None:
                raise ValueError(
                    f"the episode of stream {int(streams[truncated][0])} was truncated, but `final_states` "
                    "is None. Give the state it ended in, whose value stands for the rest of the episode."
                )
            check_states("final_states", final_states, kinds, len(streams))
        ends = {"terminated": terminated, "last": terminated | truncated}
        self._write(streams, states, {"actions": actions, "rewards": rewards, "legal": legal, **ends})
        if final_states is not None and truncated.any():
            finals = {name: rows[truncated.to(rows.device)] for name, rows in final_states.items()}
            self._write(streams[truncated], finals, {"legal": final_legal[truncated]})

    def _write(self, streams: Tensor, states: Mapping[str, Tensor], fields: Mapping[str, Tensor]) -> None:
        """The next position of each of some streams; without `actions`, a state that is no start."""
        positions = self._written[streams] % self._num_positions
        # Steps are overwritten in the order they came in, so the first that is left moves on.
        self._steps_gone[streams] += self._fields["actions"][streams, positions] != NO_ACTION
        for name, kept in self._fields.items():
            empty = NO_ACTION if name == "actions" else 0
            kept[streams, positions] = fields[name].to(kept.dtype) if name in fields else empty
        self._states.write(streams, positions, states)
        self._written[streams] += 1
        if "actions" in fields:
            self._places[streams, self._steps_seen[streams] % self._num_positions] = positions
            self._steps_seen[streams] += 1
        self._pending[streams] = ~fields["terminated"] if "actions" in fields else False

    def _windows(self, streams: Tensor, starts: Tensor, num_steps: int) -> Batch:
        columns, rows = torch.arange(num_steps), streams[:, None]
        positions = (starts[:, None] + columns) % self._num_positions
        # How many positions of the stream are newer; what comes behind those is old, or was never written.
        newer = ((self._written[streams] - 1 - starts) % self._num_positions)[:, None]
        terminated = self._fields["terminated"][rows, positions]
        known = (columns < newer) | ((columns == newer) & terminated)
        ends = self._fields["last"][rows, positions]
        inside = known & (ends.cumsum(1) - ends.long() == 0)
        terminated = terminated & inside
        lengths = inside.sum(1)
        following = (starts + lengths - terminated.any(1).long()) % self._num_positions
        legal, device = self._fields["legal"], self._device
        return Batch(
            states=self._states.read(streams, starts),
            legal=legal[streams, starts].to(device),
            actions=self._fields["actions"][streams, starts].to(device),
            rewards=zero_outside(self._fields["rewards"][rows, positions], inside).to(device),
            window_terminated=terminated.to(device),
            window_last=(columns == lengths[:, None] - 1).to(device),
            bootstrap_index=(lengths - 1).to(device),
            next_states=self._states.read(streams, following),
            next_legal=legal[streams, following].to(device),
        )


def _as_row(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[None] for name, tensor in state.items()}


def _check_numbers(streams: Tensor, actions: Tensor, rewards: Tensor, num_actions: int) -> None:
    numbers = zip(streams.tolist(), actions.tolist(), rewards.tolist(), strict=True)
    for stream, action, reward in numbers:
        if not math.isfinite(reward):
            raise ValueError(
                f"the reward of stream {stream} is {reward}, of which no target can be made. Give a finite "
                "reward; an environment that gives none is broken."
            )
        if not 0 <= action < num_actions:
            raise ValueError(
                f"the action of stream {stream} is {action}; it must be in 0..{num_actions - 1}."
            )
