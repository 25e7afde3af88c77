"""The house itself: imports run downward, the sentence is short, nothing is sent, the wheel holds everything."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "mimkit").rglob("*.py"), *(ROOT / "targets").rglob("*.py")])
FLOORS = [  # from the top: each may import its own floor and those below it
    {"cli", "__main__"},
    {"catalogue", "arguments"},
    {"compare"},
    {"train"},
    {"show", "generate"},
    {"evaluate"},
    {"weights"},
    {"model"},
    {"objective"},
    {"draft", "draft_objective"},
    {"data"},
    {"recipe"},
    {"stage"},
    {"overrides", "settings", "strict_yaml"},
    {"encoders", "masks", "heads", "targets", "normalizers", "losses"},
    {"perceptual"},
    {"saved"},
    {"teachers"},
    {"transformer", "codebook", "convnet", "adversary"},
    {"quick"},
    {"types"},
    {"mask"},
    {"schema"},
    {"registry", "weight_files"},
    {"geometry", "device", "disk", "drawing", "progress", "runs", "schedule", "signals"},
    {"errors"},
]


def floor(module: str) -> int:
    room = module.removeprefix("mimkit.").split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "mimkit" else ("mimkit", *parts)).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mimkit":
            if node.module == "mimkit":
                found |= {f"mimkit.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) != "mimkit"], ids=name_of)
def test_imports_run_downward(path: Path) -> None:
    here = name_of(path)
    for module in imports(path):
        assert floor(module) >= floor(here), f"{here} imports {module}, which lies above it"
        roles = next(rooms for rooms in FLOORS if "encoders" in rooms)
        rooms = [name.removeprefix("mimkit.").split(".")[0] for name in (here, module)]
        assert rooms[0] == rooms[1] or not set(rooms) <= roles, f"roles do not import each other: {here}, {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, node.name


def test_no_forbidden_call_reads_untrusted_data() -> None:
    """No pickle, eval, unsafe YAML or extraction; torch.load only with weights_only."""
    forbidden = (
        "pickle.load",
        "eval(",
        "exec(",
        "yaml.load(",
        "extractall",
        "allow_pickle=True",
        "trust_remote_code",
        "shell=True",
    )
    for path in FILES:
        text = path.read_text().replace(".eval()", "").replace("exec_module(", "")
        for word in forbidden:
            assert word not in text, f"{path}: {word}"
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, f"{path}: {line}"


def test_no_code_asks_for_a_methods_name() -> None:
    for path in FILES:
        assert 'method == "' not in path.read_text()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['mimkit', '--help']\nfrom mimkit.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'timm', 'numpy', 'matplotlib', 'pydantic', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_wheel_ships_targets_and_recipes_and_runs(tmp_path: Path) -> None:
    """Built, unpacked elsewhere, run there: nothing of the checkout is needed."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site", members=[n for n in names if not n.startswith(("/", ".."))])
    assert {"mimkit/targets/pixels.py", "mimkit/recipes/mae.yaml", "mimkit/recipes/imagenet/mae_vit_base.yaml"} <= set(
        names
    )
    assert "mimkit/compare/report.html.jinja" in names
    assert not any(name.startswith(("tests/", "targets/", "recipes/")) for name in names)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import mimkit; assert sys.argv[1] in mimkit.__file__, mimkit.__file__\n"
        "model = mimkit.build('mae', 'encoder.depth=1', 'head.depth=1'); import torch\n"
        "print(float(model(torch.rand(2, 3, 32, 32)).loss))"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "site")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and float(done.stdout) > 0, done.stderr
