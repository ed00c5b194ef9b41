"""The house rules that no linter knows: import direction, public names, a light import, packaging."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mmft

ROOT = Path(__file__).parents[1]

# A part may import parts of a lower layer and itself. Two parts of one layer do not know each other.
LAYERS = (
    ("errors", "types", "_checks"),
    ("_masking", "_importing"),
    ("estimators", "exploration"),
    ("objectives",),
    ("evaluation",),
    ("data",),
    ("models",),
    ("tiny",),
    ("environments",),
    ("engine", "hub"),
    ("trainers",),
    ("resolve", "trl_bridge"),
    ("report",),
    ("runs",),
    ("config",),
    ("cli",),
    ("__main__",),
)
LAYER = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_names(path: Path) -> Iterator[str]:
    """What a module imports, `a.b.c` for `from a.b import c`, inside functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def complaint(path: str, name: str) -> str | None:
    """Why the module at `path` (from the root) may not import `name`, or None."""
    here, there = path.removesuffix(".py").split("/"), name.split(".")
    if there[0] not in ("mmft", "rewards"):
        return None
    if here[:2] == ["mmft", "evaluation"] and there[0] == "rewards":
        return None  # so that a measure is written once; rewards know nothing of mmft
    if here[0] != there[0]:
        return f"{path} imports {name}: the packages mmft and rewards do not know each other"
    if name == "mmft":
        return f"{path} imports the whole package; import the module that is meant"
    if here[0] == "rewards" or name == "mmft.__version__" or here[1] in ("__init__", there[1]):
        return None
    for part in (here[1], there[1]):
        if part not in LAYER:
            return f"{path} imports {name}: mmft.{part} has no layer; give it one in LAYERS"
    if LAYER[there[1]] < LAYER[here[1]]:
        return None
    return f"{path} (layer {LAYER[here[1]]}) imports {name} (layer {LAYER[there[1]]})"


def test_imports_point_down():
    complaints = [
        complaint(path.relative_to(ROOT).as_posix(), name)
        for package in ("mmft", "rewards")
        for path in sources(package)
        for name in imported_names(path)
    ]
    assert [text for text in complaints if text] == []


@pytest.mark.parametrize(
    ("path", "name", "reason"),
    [
        ("mmft/models/heads.py", "mmft.trainers.ppo.PPOTrainer", "layer 6.*layer 10"),
        ("mmft/engine/page.py", "mmft.hub.push", "layer 9.*layer 9"),
        ("mmft/cli.py", "rewards.captioning", "do not know each other"),
        ("rewards/captioning.py", "mmft.types.Prompt", "do not know each other"),
        ("rewards/captioning.py", "mmft.evaluation.health", "do not know each other"),
        ("mmft/models/heads.py", "mmft", "imports the whole package"),
        ("mmft/models/heads.py", "mmft.novelty", "mmft.novelty has no layer"),
    ],
)
def test_an_import_that_points_up_or_across_is_found(path: str, name: str, reason: str):
    assert re.search(reason, complaint(path, name) or "")


def defines_an_algorithm(path: Path) -> bool:
    """Whether a module has a trainer of its own; the shared bases are none."""
    classes = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    bases = {
        "ActorCriticTrainer", "AdvantageTrainer", "AgentRolloutTrainer", "AgentTrainer", "BaseTrainer",
        "OnlineTrainer", "ResumableTrainer", "RolloutTrainer",
    }  # fmt: skip
    return any(name.endswith("Trainer") and name not in bases for name in classes)


def test_no_module_builds_on_an_algorithm_of_its_neighbour():
    paths = [path for path in sources("mmft/trainers") if path.name != "__init__.py"]
    algorithms = {f"mmft.trainers.{path.stem}" for path in paths if defines_an_algorithm(path)}
    for path in paths:
        imported = {name.rsplit(".", 1)[0] for name in imported_names(path)} | set(imported_names(path))
        others = imported & algorithms - {f"mmft.trainers.{path.stem}"}
        assert others == set(), f"{path.name} imports {others}; move what they share to the base"


def test_every_public_name_resolves():
    assert sorted(mmft.__all__) == sorted({*mmft._HOMES, "__version__"})
    for name, home in mmft._HOMES.items():
        value = getattr(mmft, name)
        assert value.__name__ == name
        assert value is getattr(sys.modules[home], name)


def test_public_names_are_listed_before_they_are_loaded():
    names = in_a_new_process("import mmft; print(*dir(mmft))").split()
    assert set(mmft.__all__) <= set(names)


def test_names_known_to_type_checkers_are_the_public_ones():
    tree = ast.parse((ROOT / "mmft/__init__.py").read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: node.module
        for node in blocks[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == mmft._HOMES


def test_a_name_that_is_not_public_is_refused_with_the_list():
    with pytest.raises(AttributeError, match=r"no attribute 'PPO'; it offers .*PPOConfig, PPOTrainer"):
        _ = mmft.PPO


def in_a_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_import_loads_no_heavy_library():
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'PIL'}"
    assert in_a_new_process(f"import mmft, sys; print({heavy} & set(sys.modules))").strip() == "set()"


def test_settings_load_neither_torch_nor_transformers():
    code = "import mmft.config, mmft.hub, sys; print({'torch', 'transformers'} & set(sys.modules))"
    assert in_a_new_process(code).strip() == "set()"


def test_import_takes_less_than_half_a_second():
    code = "import time; start = time.perf_counter(); import mmft; print(time.perf_counter() - start)"
    # The best of three: the machine may be busy with other tests.
    assert min(float(in_a_new_process(code)) for _ in range(3)) < 0.5


def test_every_config_parses():
    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    assert paths, "configs/ holds no recipe"
    for path in paths:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(settings, dict), f"{path} is not a mapping of settings"
        assert settings, f"{path} is empty"


@pytest.mark.parametrize("package", ["mmft", "rewards"])
def test_packages_say_that_they_are_typed(package: str):
    assert (ROOT / package / "py.typed").is_file()


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_said_twice_and_the_same():
    assert project()["version"] == mmft.__version__


def test_every_requirement_has_an_exact_pin():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *(each for extra in extras.values() for each in extra)]
    names = {requirement.split(">")[0] for requirement in wanted if not requirement.startswith("mmft[")}
    assert names - {name.lower() for name in pins} == set()
    assert pins["torch"] == "2.13.0"
