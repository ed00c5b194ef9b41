"""Pushing to a hub on localhost, by the real client: what arrives, what is refused, what fails and how."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from mmft.errors import ConfigError, HubError
from mmft.hub import PushPlan, push
from mmft.hub.files import collect, kind_of
from mmft.hub.portable import Destination, make_portable
from tests.hub.server import TOKEN, USER, Failure, Hub
from tests.hub.support import ROWS, SHARED, make_run

REPO = f"{USER}/quick"
# The client hands files to its HTTP library in a way that this calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def pushed(hub: Hub, run: Path, **told: Any) -> PushPlan:
    return push(run, REPO, endpoint=hub.url, **told)


# What arrives


def test_the_files_of_the_run_are_on_the_hub_in_one_commit(hub: Hub, run: Path):
    plan = pushed(hub, run, commit_message="The first one")
    assert (plan.url, plan.changed) == (f"{hub.url}/{REPO}", True)
    there = hub.repos[REPO].files()
    assert sorted(there) == sorted([*SHARED, *ROWS])
    shared, _ = collect(run, kind_of(run), samples=True, checkpoints=False)
    for each in make_portable(shared, Destination(run, REPO)):
        assert there[each.path] == (each.source.read_bytes() if each.content is None else each.content)
    assert hub.repos[REPO].messages == ["initial commit", "The first one"]
    assert not hub.repos[REPO].private


def test_pushed_again_without_a_change_nothing_is_sent(hub: Hub, run: Path):
    pushed(hub, run)
    uploads, commits = hub.counted("PUT", "/objects/"), hub.counted("POST", "/commit/")
    assert (uploads, commits) == (7, 1)
    assert pushed(hub, run).changed is False
    assert (hub.counted("PUT", "/objects/"), hub.counted("POST", "/commit/")) == (uploads, commits)


def test_pushed_again_with_a_change_only_that_is_sent(hub: Hub, run: Path):
    pushed(hub, run)
    (run / "heads.safetensors").write_bytes(b"another critic")
    before = hub.counted("PUT", "/objects/")
    assert pushed(hub, run).changed is True
    assert hub.counted("PUT", "/objects/") == before + 1
    assert hub.repos[REPO].files()["heads.safetensors"] == b"another critic"
    last = [each for each in hub.requests if "/commit/" in each.path][-1]
    assert last.body.count(b"\n") == 2, "a header and one file"


def test_a_name_alone_is_under_the_token_s_own_user_and_the_card_says_so(hub: Hub, run: Path):
    plan = push(run, "quick", endpoint=hub.url)
    assert plan.repo_id == REPO
    assert "from_pretrained(base, 'ada/quick')" in hub.repos[REPO].files()["README.md"].decode()


def test_a_token_can_be_given(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    assert pushed(hub, run, token=TOKEN).changed is True
    assert {each.token for each in hub.requests if "/objects/" not in each.path} == {TOKEN}


def test_a_private_repository_is_private(hub: Hub, run: Path):
    pushed(hub, run, private=True)
    assert hub.repos[REPO].private
    assert pushed(hub, run).changed is False, "who does not ask for secrecy may write to a private one"
    assert hub.repos[REPO].private


def test_a_revision_is_a_branch_of_its_own(hub: Hub, run: Path):
    plan = pushed(hub, run, revision="second")
    assert plan.url == f"{hub.url}/{REPO}/tree/second"
    assert hub.repos[REPO].files("main") == {}
    assert "heads.safetensors" in hub.repos[REPO].files("second")
    assert pushed(hub, run, revision="second").changed is False


def test_checkpoints_go_where_they_are_asked_for(hub: Hub, run: Path):
    pushed(hub, run, include_checkpoints=True)
    extra = set(hub.repos[REPO].files()) - {*SHARED, *ROWS}
    assert extra == {"checkpoint-2/adapter_model.safetensors", "checkpoint-2/trainer_state.json"}


def test_rows_of_somebody_s_data_stay_by_default_and_those_of_an_earlier_push_go(hub: Hub, tmp_path: Path):
    run = make_run(tmp_path / "run", dataset_name="some-org/photographs")
    pushed(hub, run, samples=True)
    assert set(ROWS) <= set(hub.repos[REPO].files())
    hub.repos[REPO].branches["main"][-1][1]["LICENSE"] = hub.repos[REPO].branches["main"][-1][1]["README.md"]
    pushed(hub, run)
    there = hub.repos[REPO].files()
    assert sorted(there) == sorted([*SHARED, "LICENSE"])
    assert b"private" not in there["README.md"]


def test_files_of_an_earlier_push_that_would_be_loaded_with_this_one_go(hub: Hub, run: Path):
    (run / "base").mkdir()
    gone = ["base/config.json", "heads.safetensors", "model.safetensors", "rewards.json"]
    for name in (*gone, "pretrained_weights.safetensors"):
        (run / name).write_text("{}")
    assert pushed(hub, run, include_checkpoints=True).deleted == ()
    for name in gone:
        (run / name).unlink()
    hub.repos[REPO].branches["main"][-1][1]["LICENSE"] = hub.repos[REPO].branches["main"][-1][1]["README.md"]
    before = len(hub.repos[REPO].messages)
    plan = pushed(hub, run)
    assert list(plan.deleted) == gone
    assert plan.describe().endswith(f"\ndeleted there: {', '.join(gone)}")
    there = hub.repos[REPO].files()
    assert not set(gone) & set(there)
    kept = {"LICENSE", "pretrained_weights.safetensors", "checkpoint-2/adapter_model.safetensors"}
    assert kept <= set(there)
    assert len(hub.repos[REPO].messages) == before + 1


@pytest.mark.parametrize("content", ['{"samples": {"[\\"given\\", 0]": {}}}', "[]", "no JSON"])
def test_explanations_of_pictures_that_somebody_gave_stay_unless_they_are_asked_for(content: str, run: Path):
    def rows(**told: Any) -> set[str]:
        return {each.path for each in push(run, REPO, dry_run=True, **told).shared} & set(ROWS)

    (run / "explain" / "explain.json").write_text('{"samples": {"[\\"validation\\", 0]": {}}}')
    assert rows() == set(ROWS)
    (run / "explain" / "explain.json").write_text(content)
    assert rows() == set()
    told = "note: explain/explain.json may explain pictures of your own, which stay with the report."
    assert told in push(run, REPO, dry_run=True).describe()
    assert rows(samples=True) == set(ROWS)


def test_what_explains_given_pictures_in_its_own_folder_is_never_sent(run: Path):
    (run / "explain" / "given").mkdir()
    for name in ("explain.json", "0_heat.png"):
        (run / "explain" / "given" / name).touch()
    plan = push(run, REPO, dry_run=True, samples=True)
    assert {each.path for each in plan.shared if each.path.startswith("explain/")} == {
        "explain/0_heat.png",
        "explain/explain.json",
    }
    assert (
        "  explain/given/: explains pictures that you gave by hand, which are never sent" in plan.describe()
    )


def test_a_folder_without_a_card_gets_a_short_one(hub: Hub, run: Path):
    (run / "README.md").unlink()
    plan = pushed(hub, run, license="mit")
    assert plan.notes == ("the folder has no README.md; a short one is sent.",)
    card = ModelCard(hub.repos[REPO].files()["README.md"].decode())
    assert card.data.to_dict() == {
        "library_name": "peft",
        "license": "mit",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mmft", "reinforcement-learning"],
    }
    assert f"Run.from_pretrained('{REPO}')" in card.text
    assert "run.load_policy()" in card.text
    assert not (run / "README.md").exists()


# Without network


def test_a_dry_run_needs_neither_network_nor_token(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert constants.is_offline_mode()
    plan = push(run, REPO, dry_run=True, private=True, revision="second", samples=False)
    assert plan.url is None
    lines = plan.describe().splitlines()
    assert lines[0].startswith(f"{REPO}, branch second: 10 files, ")
    assert lines[0].endswith(" kB") or lines[0].endswith(" B")
    assert "  heads.safetensors              26 B" in lines
    assert any(line.startswith("  config.yaml") and "a copy without" in line for line in lines)
    assert "  report.html: shows rows of the data; --samples sends it" in lines
    assert "  training_args.bin: pickled settings, which may hold a token" in lines
    assert lines[-5:] == [
        "what a push does:",
        f"  1. create {REPO} (private) unless it exists",
        "  2. create the branch second unless it exists",
        "  3. send what is not there yet; commit 10 files at once",
        "     and delete there what an earlier push sent beside them (checkpoints stay)",
    ]


def test_what_rewards_gathered_of_somebody_s_data_is_told(tmp_path: Path):
    told = "note: rewards.json holds what rewards have gathered"
    drawn, own = make_run(tmp_path / "a"), make_run(tmp_path / "b", dataset_name="some-org/photographs")
    assert told not in push(drawn, REPO, dry_run=True).describe()
    assert told in push(own, REPO, dry_run=True).describe()


def test_notes_are_part_of_what_is_said(tmp_path: Path):
    run = make_run(tmp_path / "run", dataset_name="/data/photographs")
    assert "note: `dataset_name` names a place" in push(run, REPO, dry_run=True).describe()


# What is refused


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("metrics.jsonl", f'{{"step": 1}}\n{{"note": "{TOKEN}"}}\n', "metrics.jsonl, line 2: the token"),
        ("summary.json", '"hf_' + "x" * 34 + '"', "summary.json, line 1: a token of the hub"),
        ("README.md", "\n\nsk-proj-abcdefghij0123456789", "README.md, line 3: an API key"),
        ("config.yaml", "a: 1\nreward_funcs:\n- name: judge\n  api_key: letters\n", "line 4: `api_key`"),
        ("config.yaml", f"hub_token: {TOKEN}\n", "config.yaml, line 1: the token"),
    ],
)
def test_a_secret_is_named_by_its_place_and_nothing_is_sent(
    name: str, text: str, where: str, hub: Hub, run: Path
):
    (run / name).write_text(text)
    with pytest.raises(HubError, match=f"holds secrets, and nothing was sent: .*{where}") as caught:
        pushed(hub, run)
    assert TOKEN not in str(caught.value)
    assert "sk-proj" not in str(caught.value)
    assert hub.requests == []
    with pytest.raises(HubError, match="holds secrets"):
        push(run, REPO, dry_run=True)


def test_a_key_of_the_environment_that_got_into_a_file_is_found(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-without-a-shape")
    (run / "samples.jsonl").write_text('{"reason": "a-key-without-a-shape"}')
    with pytest.raises(
        HubError, match=r"samples.jsonl, line 1: the value of the environment variable OPENAI"
    ):
        pushed(hub, run)


def test_a_link_out_of_the_folder_stops_the_push(hub: Hub, run: Path):
    (run / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(HubError, match="outside of the run folder"):
        pushed(hub, run)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "with space/x", "-x", ""])
def test_what_is_no_name_of_a_repository_is_refused(name: str, run: Path):
    with pytest.raises(HubError, match=r"`repo_id` .*no name of a repository. Give `user/name`"):
        push(run, name, dry_run=True)


def test_a_commit_is_no_branch(hub: Hub, run: Path):
    with pytest.raises(HubError, match="is a commit, which cannot be written to"):
        pushed(hub, run, revision="0" * 40)


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, run: Path):
    pushed(hub, run)
    commits = hub.counted("POST", "/commit/")
    with pytest.raises(HubError, match=f"{REPO} exists and is public, but a private .* Nothing was sent"):
        pushed(hub, run, private=True)
    assert hub.counted("POST", "/commit/") == commits


def test_another_kind_of_model_is_not_mixed_in(hub: Hub, run: Path):
    pushed(hub, run)
    (run / "adapter_config.json").rename(run / "config.json")
    with pytest.raises(HubError, match=r"already holds another kind of model \(adapter_config.json\)"):
        pushed(hub, run)


# What fails


def test_no_token_is_one_clear_error(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=rf"cannot write to {REPO}: the hub knows no valid token. Log in"):
        pushed(hub, run)
    with pytest.raises(HubError, match=r"no valid token. .*`hf auth login`.*HF_TOKEN") as caught:
        pushed(hub, run, token="hf_" + "wrong" * 8)
    assert "wrong" not in str(caught.value)


def test_a_token_that_may_not_write_is_one_clear_error(hub: Hub, run: Path):
    with pytest.raises(HubError, match=r"bob/quick: this token may not write there.*The hub says: You don't"):
        push(run, "bob/quick", endpoint=hub.url)
    pushed(hub, run)
    hub.read_only.add(TOKEN)
    before = len(hub.repos[REPO].messages)
    with pytest.raises(HubError, match=f"cannot write to {REPO}: this token may not write there"):
        pushed(hub, run)
    assert len(hub.repos[REPO].messages) == before


def test_offline_is_one_clear_error(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set, so nothing is sent. Unset it"):
        push(run, REPO)


def test_no_network_is_one_clear_error(hub: Hub, run: Path):
    with pytest.raises(HubError, match=r"http://127.0.0.1:1 cannot be reached, or broke off. .*Run the same"):
        push(run, REPO, endpoint="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (Failure("POST", "/batch", 429), "takes no more requests for now. Wait some minutes"),
        (Failure("POST", "/commit/", 409), "somebody else is changing the repository. Run the same command"),
        (Failure("POST", "/commit/", 500, message="no disk"), "the hub answered 500. The hub says: no disk"),
        (Failure("POST", "/validate-yaml", 400), "Invalid metadata in README.md"),
        (Failure("PUT", "/objects/", 0), "cannot be reached, or broke off"),
        (Failure("GET", "/tree/", 404), "no such repository or branch"),
    ],
)
def test_what_the_hub_refuses_is_told_with_its_remedy(failure: Failure, said: str, hub: Hub, run: Path):
    hub.failures.append(failure)
    with pytest.raises(HubError, match=said) as caught:
        pushed(hub, run)
    assert str(caught.value).startswith(f"the push did not reach {REPO}: ")
    assert hub.repos[REPO].files() == {}, "half a run is no run"


@pytest.mark.parametrize("status", [500, 0])
def test_a_push_that_broke_off_goes_on_where_it_stopped(status: int, hub: Hub, run: Path):
    hub.failures.append(Failure("PUT", "/objects/", status, skip=3))
    with pytest.raises(
        HubError, match=r"Run the same command again: what is there already is not sent again\."
    ):
        pushed(hub, run)
    assert hub.repos[REPO].files() == {}
    assert len(hub.objects) == 3
    hub.failures.clear()
    before = hub.counted("PUT", "/objects/")
    pushed(hub, run)
    assert hub.counted("PUT", "/objects/") == before + 4, "those that were there are not sent again"
    assert sorted(hub.repos[REPO].files()) == sorted([*SHARED, *ROWS])


def test_a_short_disturbance_is_no_failure(hub: Hub, run: Path):
    hub.failures += [Failure("PUT", "/objects/", 503, times=2), Failure("POST", "/preupload/", 500, times=1)]
    assert pushed(hub, run).changed is True


def test_mistakes_of_the_user_stay_what_they_are(hub: Hub, tmp_path: Path):
    with pytest.raises(ConfigError, match="nothing to push"):
        pushed(hub, tmp_path)


def test_the_token_is_in_no_message_log_or_file(
    hub: Hub, run: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    caplog.set_level(logging.DEBUG)
    told = [pushed(hub, run, token=TOKEN).describe()]
    for failure in (
        Failure("POST", "/batch", 500, message=f"bad token {TOKEN}"),
        Failure("GET", "/whoami", 403, message=TOKEN),
    ):
        hub.failures[:] = [failure]
        (run / "curves.png").write_bytes(b"new")
        with contextlib.suppress(HubError):
            pushed(hub, run, token=TOKEN)
        try:
            pushed(hub, run, token=TOKEN)
        except HubError as error:
            told.append(repr(error) + repr(error.__cause__))
    assert len(told) == 3
    said = capfd.readouterr()
    files = [content.decode(errors="replace") for content in hub.repos[REPO].files().values()]
    for text in (*told, caplog.text, said.out, said.err, *files):
        assert TOKEN not in text
