"""`mmft explain`: which answers and decisions are explained, what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
import yaml
from peft import LoraConfig

from mmft.cli import explain, main
from mmft.cli.explain import explain_run
from mmft.cli.explain_policy import explain_told, held_out_rows, token_place
from mmft.cli.explain_settings import Wanted
from mmft.engine.actor_critic import VLMActorCritic
from mmft.errors import ConfigError
from mmft.hub.files import collect
from mmft.models.backbone import load_backbone
from mmft.report.record import write_json_lines
from mmft.runs import Run
from mmft.tiny import CAPTIONER_NAME, PROMPT, captioner_path, load_scenes
from tests.cli.support import lines, refusal, summary

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SETTINGS: dict[str, Any] = {
    "model_name_or_path": CAPTIONER_NAME,
    "dataset_name": "mmft/scenes",
    "instruction": PROMPT,
    "eval_split": "validation",
    "max_eval_rows": 6,
    "max_completion_length": 20,
    "seed": 0,
}
SAID = {0: "a blue star.", 2: "a red circle and a", 4: "a pink star."}


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioner with untrained adapters and a critic, and three answers that it is said to have given."""
    folder = tmp_path_factory.mktemp("policy") / "run"
    torch.manual_seed(0)
    adapters = LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", init_lora_weights=False)
    backbone = load_backbone(CAPTIONER_NAME, peft_config=adapters)
    model: Any = backbone.model
    model.peft_config["default"].base_model_name_or_path = str(captioner_path())
    policy = VLMActorCritic(backbone, critic=True, reference=False)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.startswith("value_head."):  # it begins at 0
                parameter.normal_(std=0.1)
    policy.save_pretrained(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    write_json_lines(
        folder / "samples.jsonl",
        [
            {
                "key": ["validation", row],
                "prompt": PROMPT,
                "before": {"completion": "a star.", "ended": True},
                "after": {"completion": text, "ended": text.endswith("."), "reward": float(row)},
            }
            for row, text in SAID.items()
        ],
    )
    return folder


@pytest.fixture
def run(policy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(policy_folder, tmp_path / "run"))


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The report has tests of its own; here it counts that it is made."""
    made: list[Path] = []
    monkeypatch.setattr(explain, "write_page", made.append)
    return made


def page(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "explain.json").read_text())


def test_answers_that_were_kept_are_explained_and_others_are_given_anew(
    run: Path, capsys: pytest.CaptureFixture[str], reports: list[Path]
):
    assert main(["explain", str(run), "--rows", "6"]) == 0
    told = page(run / "explain")
    assert (told["of"], told["baseline"]) == ("completion", "saved")
    assert list(told["samples"]) == [f'["validation", {row}]' for row in range(6)]
    texts = [each["text"] for each in told["samples"].values()]
    assert [texts[row] for row in SAID] == list(SAID.values())
    assert all(text.startswith("a ") for text in texts)  # the captioner's own words
    said = [each["tokens"] for each in told["samples"].values()]
    ended, cut = said[0], said[2]
    assert ended[-1][0] == "</s>"
    assert cut[-1][0] == " a"  # no end token where there was none
    for row, sample in enumerate(told["samples"].values()):
        assert sample["grid"] == [8, 8]
        assert len(sample["patches"]) == 64
        assert sum(sample["shares"].values()) == pytest.approx(1.0, abs=1e-5)
        with PIL.Image.open(run / sample["picture"]) as image:
            assert image.width == 1410, f"row {row}"
    out = capsys.readouterr().out
    assert "image share  prompt share  answer share" in out
    assert "validation 0" in out
    assert f"{run / 'explain'}/ holds explain.json and 0_heat.png, ..., 5_heat.png" in out
    assert reports == [run]


def test_rows_are_spread_over_the_split(run: Path):
    explain_run(run, rows=2)
    assert list(page(run / "explain")["samples"]) == ['["validation", 0]', '["validation", 3]']


def test_the_pretrained_model_is_explained_with_its_own_answers(run: Path):
    tuned = explain_run(run, rows=1)
    base = explain_run(run, rows=1, base=True)
    assert page(run / "explain")["baseline"] == "base"
    assert base.explained[0].text == "a star."
    assert base.explained[0].found.value != tuned.explained[0].found.value


def test_a_token_is_found_by_its_word_in_the_answers_that_have_it(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["explain", str(run), "--rows", "3", "--token", "star"]) == 0
    told = page(run / "explain")
    assert told["of"] == "token"
    assert list(told["samples"]) == ['["validation", 0]', '["validation", 4]']
    for sample in told["samples"].values():
        text, _ = sample["tokens"][sample["marked"]]
        assert text == " star"
        # What comes behind the token can have no part in it.
        assert all(importance == 0.0 for _, importance in sample["tokens"][sample["marked"] :])
    assert "note: 1 answer has no token 'star'" in capsys.readouterr().out


def test_a_token_is_found_by_its_place(run: Path):
    found = explain_run(run, rows=1, token="1")
    assert found.explained[0].position == 1
    assert found.explained[0].found.of == "token"


@pytest.mark.parametrize(
    ("wanted", "place"),
    [
        ("star", 2),
        ("STAR", 2),
        ("3", 3),
        ("9", None),
        ("cir", 3),
        ("circle", 3),
        ("cle<", 4),
        ("dog", None),
        ("", None),
    ],
)
def test_places_of_tokens(wanted: str, place: int | None):
    """A word of two tokens is where it begins."""
    assert token_place(["a", " red", " star", " cir", "cle", "</s>"], wanted) == place


def test_the_value_is_that_of_the_critic(run: Path):
    found = explain_run(run, rows=1, of="value")
    assert found.explained[0].found.of == "value"
    at_start = explain_run(run, rows=1, of="value", token="0")
    assert at_start.explained[0].found.value != found.explained[0].found.value


def test_a_picture_of_ones_own(run: Path, tmp_path: Path, reports: list[Path]):
    load_scenes("test", 1)[0]["image"].save(tmp_path / "mine.png")
    words = ["--image", str(tmp_path / "mine.png"), "--output", str(tmp_path / "out")]
    assert main(["explain", str(run), *words, "--answer", "a red star.", "--prompt", "What is it?"]) == 0
    (sample,) = page(tmp_path / "out")["samples"].values()
    assert sample["text"] == "a red star."
    assert sample["picture"] == "out/0_heat.png"
    assert " it" in [text for text, _ in sample["tokens"]]
    assert reports == []  # the run's own explanations are as they were
    assert not (run / "explain").exists()
    assert main(["explain", str(run), *words]) == 0
    (sample,) = page(tmp_path / "out")["samples"].values()
    assert sample["text"].startswith("a ")


def test_a_picture_of_ones_own_leaves_the_runs_explanations_and_stays_private(
    run: Path, tmp_path: Path, reports: list[Path], capsys: pytest.CaptureFixture[str]
):
    explain_run(run, rows=1)
    before = {path.name: path.read_bytes() for path in (run / "explain").iterdir()}
    load_scenes("test", 1)[0]["image"].save(tmp_path / "mine.png")
    assert main(["explain", str(run), "--image", str(tmp_path / "mine.png"), "--answer", "a star."]) == 0
    given = run / "explain" / "given"
    assert {path.name for path in given.iterdir()} == {"0_heat.png", "explain.json"}
    assert {path.name: path.read_bytes() for path in (run / "explain").glob("*.*")} == before
    assert reports == []
    out = capsys.readouterr().out
    assert f"{given}/ holds explain.json and 0_heat.png" in out
    assert "the run's own explanations and its report are as they were" in out
    shared, left = collect(run, "policy", samples=True, checkpoints=False)
    assert "explain/0_heat.png" in [each.path for each in shared]
    assert "explain/given/" in [each.path for each in left]
    found = explain_run(run, image=load_scenes("test", 1)[0]["image"], answer="a star.")
    assert found.folder == given


def test_answers_are_scored_at_the_temperature_of_the_evaluation(run: Path):
    values = []
    for temperature in (0, 1.0, 2.0):
        (run / "config.yaml").write_text(yaml.safe_dump(SETTINGS | {"eval_temperature": temperature}))
        values.append(explain_run(run, rows=1).explained[0].found.value)
    greedy, plain, warm = values
    assert greedy == plain  # greedy decoding scores the plain policy
    assert abs(warm - plain) > 0.1


def test_a_finished_run_scores_its_answers_at_a_temperature_too(run: Path):
    policy = Run.from_pretrained(run).load_policy()
    told = [(held_out_rows(Run.from_pretrained(run))[0], {"completion": SAID[0], "ended": True})]
    plain, warm = (explain_told(policy, told, each)[0].found.value for each in (1.0, 2.0))
    assert abs(warm - plain) > 0.1


def test_answers_are_counted_among_those_that_there_are(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", str(run), "--rows", "9", "--token", "a"]) == 0  # of six
    assert "no token" not in capsys.readouterr().out


def tell(run: Path, *rows: int) -> None:
    """Lets samples.jsonl say that these rows were answered with nothing, cut."""
    empty = {"completion": "", "ended": False}
    write_json_lines(run / "samples.jsonl", [{"key": ["validation", row], "after": empty} for row in rows])


def test_answers_of_no_token_are_left_out_and_told(run: Path):
    tell(run, 0)
    found = explain_run(run, rows=2)
    assert [each.key for each in found.explained] == [["validation", 3]]
    assert found.notes == ["1 answer has no token at all"]


def test_a_run_whose_answers_have_no_token_is_refused(run: Path):
    tell(run, 0, 3)
    with pytest.raises(ConfigError, match="none of the 2 answers asked for has a token"):
        explain_run(run, rows=2)


@pytest.mark.parametrize("column", ["colour", "facts"])
def test_a_map_by_no_column_is_refused_before_anything_is_explained(
    column: str, run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(explain, "load_policy", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="map-by"):
        explain_run(run, rows=1, map_by=column, map_rows=6)


def test_the_method_is_told(run: Path):
    shares = {}
    for method in ("gradient", "relative"):
        explain_run(run, rows=1, method=method)
        told = page(run / "explain")
        assert told["method"] == method
        (sample,) = told["samples"].values()
        shares[method] = sample["shares"]["image"]
    # The captioner's projector makes long rows, which the plain gradient does not know.
    assert shares["relative"] > shares["gradient"] + 0.2


def test_a_map_lies_beside_the_heat_maps(run: Path):
    found = explain_run(run, rows=1, map_by="caption", map_rows=6)
    told = page(run / "explain")
    (figure,) = told["figures"]
    assert figure["file"] == "explain/pca.png"
    assert figure["title"] == "States by caption"
    assert "before and after training" in figure["caption"]
    with PIL.Image.open(run / "explain" / "pca.png") as image:
        two = image.width
    assert found.pictures == [run / "explain" / "0_heat.png"]
    explain_run(run, rows=1, map_by="reward", map_rows=6, base=True)
    with PIL.Image.open(run / "explain" / "pca.png") as image:
        assert image.width < two - 400


def test_notebooks_get_the_numbers(run: Path):
    found = explain_run(str(run), rows=1)
    attribution = found.explained[0].found
    assert 0.0 < attribution.image_share < 1.0
    assert found.folder == run / "explain"


def without(folder: Path, *names: str) -> str:
    """The run without some of its settings."""
    settings = {name: value for name, value in SETTINGS.items() if name not in names}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "0"], "`--rows` must be >= 1; got 0"),
        (["--map-rows", "2"], "`--map-rows` must be >= 3; got 2"),
        (["--answer", "a star."], "`--answer` goes with a picture of your own; add `--image FILE`"),
        (["--prompt", "What?"], "`--prompt` goes with a picture of your own"),
        (["--of", "token"], "`--of token` needs `--token`"),
        (["--of", "completion", "--token", "a"], "`--token` goes with `--of token` or `--of value`"),
        (["--of", "q"], "`--of q` does not go with a policy; choose completion, token, value"),
        (["--of", "reward"], "invalid choice: 'reward'"),
        (["--token", "dog"], "`--token` 'dog' is in no answer. The tokens of the first are 'a', ' blue'"),
        (["--map-by", "colour"], "`--map-by` 'colour' is no column of the held-out rows"),
        (["--map-by", "capton"], "Did you mean 'caption'?"),
        (["--map-by", "facts"], "which can be no colour"),
        (["--image", "nowhere.png"], "`--image` 'nowhere.png' is no file"),
        (["--base", "--of", "value"], "`--of value` needs a critic, and the pretrained model has none"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
):
    assert message in refusal(capsys, ["explain", str(run), *words])


def test_a_picture_that_cannot_be_read_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "no.png").write_text("no picture")
    told = refusal(capsys, ["explain", str(run), "--image", str(tmp_path / "no.png")])
    assert "cannot be read as a picture" in told


def test_runs_without_held_out_rows_or_a_critic_are_refused(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "heads.safetensors").unlink()
    assert "`--of value` needs a critic, and this run has none" in refusal(
        capsys, ["explain", str(run), "--of", "value"]
    )
    told = refusal(capsys, ["explain", without(run, "eval_split")])
    assert "held no rows out (`eval_split`). Give a picture: `--image FILE`" in told


def test_a_reward_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "reward_model.json").write_text("{}")
    assert "trained a reward model; what is explained are answers" in refusal(
        capsys, ["explain", str(tmp_path)]
    )


# Agents


def test_a_finished_policy_has_explained_the_answers_that_it_shows(run_folder: Path):
    told = page(run_folder / "explain")
    samples = lines(run_folder / "samples.jsonl")
    shown = [samples[index] for index in (0, 1)]  # two of three, spread
    assert list(told["samples"]) == [json.dumps(each["key"]) for each in shown]
    assert [each["text"] for each in told["samples"].values()] == [
        each["after"]["completion"] for each in shown
    ]
    found = summary(run_folder)["modality_use"]
    for when in ("before", "after"):
        assert found[when]["rows"] == 3
        assert found[when]["image_share"] + found[when]["text_share"] == pytest.approx(1.0, abs=1e-5)
    assert any("importance/image_share" in line for line in lines(run_folder / "metrics.jsonl"))


def test_wanted_is_checked_from_python_too():
    with pytest.raises(ConfigError, match="`--rows` must be >= 1"):
        Wanted(rows=0)
    assert dataclasses.replace(Wanted(), rows=2).target(("q",), "an agent") == "q"
