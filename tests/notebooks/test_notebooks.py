"""The notebooks run from top to bottom as they are, and what is stored of them is what a reader should see.

The one for a GPU does not run here: its code is compiled, and what it names has to exist.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from mmft.cli.arguments import parse_run
from tests.notebooks.names import complaints, literal_calls

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
RUN = ("quickstart", "rewards", "decisions")
NOT_RUN = ("hub_model_gpu",)
MOST_BYTES = 300_000
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|mnt|var|Users|private)/|[A-Z]:\\\\")
COMMAND = re.compile(r"^%run -m mmft (\S+) (.*)$", flags=re.MULTILINE)
SECONDS = 600
"""After which a cell has hung; on quiet cores the longest takes half a minute."""


def read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def shown(output: NotebookNode) -> str:
    """What of an output is text."""
    texts = {kind: value for kind, value in output.get("data", {}).items() if kind.startswith("text/")}
    return "".join([output.get("text", ""), *texts.values()])


def kinds(cell: NotebookNode) -> set[tuple[str, ...]]:
    """What a cell put out, whatever it said."""
    return {(each.output_type, *sorted(each.get("data", {}))) for each in cell.outputs}


def python(cell: NotebookNode) -> str:
    """The code of a cell with its magics as the function calls that they stand for."""
    source = re.sub(r"^%%capture.*\n", "", cell.source)
    return TransformerManager().transform_cell(source)


def test_every_notebook_is_known_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*RUN, *NOT_RUN}


@pytest.mark.slow
@pytest.mark.learning
@pytest.mark.parametrize("name", RUN)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path):
    place = tmp_path / "notebooks"  # beside the recipes, as in the repository
    place.mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    stored, notebook = read(name), read(name)
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment |= {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(place)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)
    said = [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert said == [], "a reader would see warnings or progress bars"
    # What is stored is of this code: each cell puts out the same kinds of things.
    pairs = zip(code_cells(stored), code_cells(notebook), strict=True)
    assert [kinds(one) for one, _ in pairs] == [kinds(cell) for cell in code_cells(notebook)]
    assert {path.name for path in place.iterdir()} <= {"runs"}, "only runs/ may be left, which git ignores"


@pytest.mark.parametrize("name", [*RUN, *NOT_RUN])
def test_a_notebook_is_valid_small_and_of_no_one_machine(name: str):
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size <= MOST_BYTES
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert all(not cell.metadata for cell in notebook.cells), "times and editors' notes are left out"
    for text in [cell.source for cell in notebook.cells] + list(map(shown, outputs(notebook))):
        assert ABSOLUTE.search(text) is None


@pytest.mark.parametrize("name", RUN)
def test_a_notebook_is_stored_as_it_ran(name: str):
    notebook = read(name)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    found = outputs(notebook)
    assert sum(output.output_type == "stream" for output in found) >= 3
    assert any("image/png" in output.get("data", {}) for output in found)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in found)


@pytest.mark.parametrize("name", RUN)
def test_a_notebook_ends_by_checking_what_it_has_claimed(name: str):
    *_, last = code_cells(read(name))
    assert sum(line.startswith(("assert ", "    assert ")) for line in last.source.splitlines()) >= 3


@pytest.mark.parametrize("name", [*RUN, *NOT_RUN])
def test_links_of_a_notebook_lead_somewhere(name: str):
    prose = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", prose)
    recipes = re.findall(r"\bconfigs/[\w/]+\.yaml", prose)
    assert links + recipes
    for link in links:
        assert (FOLDER / link).is_file(), link
    for recipe in recipes:
        assert (ROOT / recipe).is_file(), recipe


@pytest.mark.parametrize("name", [*RUN, *NOT_RUN])
def test_code_of_a_notebook_compiles_and_names_what_exists(name: str):
    known: dict[str, Any] = {}
    for number, cell in enumerate(code_cells(read(name))):
        compile(python(cell), f"cell {number} of {name}", "exec")
        assert complaints(python(cell), known) == []


@pytest.mark.parametrize("name", NOT_RUN)
def test_a_notebook_that_was_not_run_says_so_first(name: str):
    notebook = read(name)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert "**This notebook was not run here.**" in first.source
    assert outputs(notebook) == []
    assert all(cell.execution_count is None for cell in code_cells(notebook))


@pytest.mark.parametrize("name", NOT_RUN)
def test_settings_of_a_notebook_that_was_not_run_are_accepted(name: str):
    known: dict[str, Any] = {}
    made = []
    for cell in code_cells(read(name)):
        complaints(python(cell), known)
        made += literal_calls(python(cell), known, "Config")
    assert {type(each).__name__ for each in made} == {"LoraConfig", "PPOConfig"}


def test_commands_of_the_notebook_for_a_gpu_are_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(FOLDER)
    commands = [
        match.groups()
        for cell in code_cells(read("hub_model_gpu"))
        for match in COMMAND.finditer(cell.source)
    ]
    assert [command for command, _ in commands] == ["check", "ppo"]
    for command, words in commands:
        assert parse_run(command, shlex.split(words)).model.model_name_or_path.startswith("Qwen/")
