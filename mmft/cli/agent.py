"""`mmft dqn`, and `ppo` and `a2c` with `env`: an agent learns to act; evaluation, training, evaluation."""

from __future__ import annotations

from pathlib import Path

from mmft.cli.agent_folder import gather_usage, report
from mmft.cli.agent_setup import look_at_both, make_agent_trainer, opening, play_after, play_before
from mmft.cli.console import is_main_process, say
from mmft.cli.final_push import announce_push, push_finished
from mmft.cli.launch import train, write_config
from mmft.cli.loading import load_policy
from mmft.config import RunConfig
from mmft.errors import ConfigError
from mmft.report.agent_card import EPISODE_FILE
from mmft.report.agent_record import RANDOM, AgentOutcome
from mmft.trainers.tracked_samples import EPISODES, track_picture


def run(config: RunConfig) -> int:
    """Trains as the config says; every process calls it, the first one writes and prints."""
    if config.script.agent_path is not None:
        raise ConfigError(
            f"`agent_path` is {config.script.agent_path!r}, which is for `mmft evaluate`. Leave it out; a "
            "stopped run goes on by `resume_from_checkpoint`."
        )
    looked = look_at_both(config)
    backbone = load_policy(config, train=True, keep_base=is_main_process())
    folder = Path(config.training.output_dir)
    if is_main_process():
        write_config(config)
    trainer = make_agent_trainer(config, backbone)
    say(opening(config, looked, trainer.agent))
    announce_push(config.training, trainer.hub_model_id)
    say("playing before training ...")
    before = play_before(trainer)
    if before.name == RANDOM:
        say("(at random: the agent's features have no statistics yet)")
    seconds = train(trainer)
    trainer.save_model(str(folder))  # before anything that an environment can spoil
    say("playing after training, and without each modality ...")
    after, blanked = play_after(config, trainer)
    usage = gather_usage(trainer)
    if trainer.is_world_process_zero():
        report(config, trainer, looked, AgentOutcome(before, after, blanked, seconds), usage)
        track_picture(trainer, EPISODES, folder / EPISODE_FILE)
    return push_finished(config.training, trainer.hub_model_id)
