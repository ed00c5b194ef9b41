"""Every error a user can cause has a type here; each message names the argument, the value and the remedy."""


class ConfigError(ValueError):
    """A setting is wrong, unknown, or at odds with another one."""


class DataError(ValueError):
    """A row of the data cannot be used; the message names the row."""


class RewardError(RuntimeError):
    """A reward function failed or broke its contract; the message names the reward and the row."""


class EnvError(RuntimeError):
    """An environment failed or broke its contract; the message names the environment and the key."""


class UnsupportedModelError(ValueError):
    """The model has no causal text model that the engine can drive."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite; nothing was updated."""


class HubError(RuntimeError):
    """The hub refused or broke off an exchange; the message says what is there and what to do."""


MISTAKES = (
    ConfigError, DataError, EnvError, HubError, NonFiniteError, RewardError, UnsupportedModelError,
)  # fmt: skip
"""What a command answers with one line instead of a traceback."""
