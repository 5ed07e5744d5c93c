"""Importing the package changes nothing else in the process, and needs only PyTorch and NumPy."""

import subprocess
import sys

import pytest

import attractor

CHECK_STATE = """
import importlib, logging, os, pkgutil, sys, warnings

import torch, torch._dynamo, torch._functorch.config, torch.distributed.checkpoint
import lm_eval, matplotlib.pyplot, rich.console, tokenizers, transformers, tyro, yaml, PIL.Image, safetensors.torch
from torch.utils import tensorboard

def state():
    return {
        "meta_path": list(sys.meta_path),
        "path_hooks": list(sys.path_hooks),
        "dynamo": torch._dynamo.config.save_config(),
        "functorch": torch._functorch.config.save_config(),
        "environment": dict(os.environ),
        "backend": matplotlib.get_backend(),
        "default dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "random state": torch.get_rng_state().tolist(),
        "excepthook": sys.excepthook,
        "root log": (list(logging.root.handlers), logging.root.level),
    }

def recorded(function):
    def call(*args, **settings):
        caller = sys._getframe(1).f_globals["__name__"]
        assert not caller.startswith("attractor"), f"{caller} changes the warning filters"
        return function(*args, **settings)
    return call

# Other libraries add filters when parts of them are imported, so that filters before and after cannot be compared.
warnings.filterwarnings, warnings.simplefilter = map(recorded, (warnings.filterwarnings, warnings.simplefilter))
before = state()
import attractor
for module in pkgutil.walk_packages(attractor.__path__, "attractor."):
    if module.name != "attractor.__main__":
        importlib.import_module(module.name)
        after = state()
        for name, value in before.items():
            assert after[name] == value, f"{module.name} changes {name}"
ours = [name for name in logging.root.manager.loggerDict if name.startswith("attractor")]
assert not any(logging.getLogger(name).handlers for name in ours), "a logger of the package has handlers"
"""

OPTIONAL = (
    "transformers",
    "matplotlib",
    "rich",
    "tyro",
    "safetensors",
    "tokenizers",
    "PIL",
    "yaml",
    "tensorboard",
    "jinja2",
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_importing_every_module_changes_no_global_state() -> None:
    """Import hooks, warning filters, compiler settings, environment, matplotlib's backend, defaults of PyTorch, loggers."""
    pytest.importorskip("lm_eval")
    result = run(CHECK_STATE)
    assert result.returncode == 0, result.stderr


def test_the_layer_needs_only_torch_and_numpy() -> None:
    """Optional dependencies are imported when they are used."""
    code = "import sys, attractor, attractor.testing; print([m for m in sys.modules if m.split('.')[0] in {optional}])"
    result = run(code.replace("{optional}", str(OPTIONAL)))
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


MISSING = {  # what is used, the package that is missed, and the extra that has it
    "import attractor.models.language": ("transformers", "language"),
    "attractor.retrofit": ("transformers", "language"),
    "import attractor.data.text": ("transformers", "language"),
    "from attractor.progress import TaskProgress; TaskProgress()": ("rich", "train"),
    "from attractor.plots.style import new_figure; new_figure()": ("matplotlib", "plots"),
    "from attractor.evaluation import read_tasks; read_tasks(Path())": ("yaml", "eval"),
    "import attractor.training": ("safetensors", "train"),
}
BLOCKED = f"""
import sys
from pathlib import Path
for name in {OPTIONAL}:
    sys.modules[name] = None
import attractor
def attempt(code):
    try:
        exec(code)
    except attractor.MissingExtraError as error:
        print(error)
"""


def test_a_missing_extra_is_one_sentence_that_names_it() -> None:
    """It says which package is missing and how to install it, for imports and for functions."""
    result = run(BLOCKED + "".join(f"attempt({snippet!r})\n" for snippet in MISSING))
    expected = [
        f"{package} is not installed; install it with: pip install 'attractor-models[{extra}]'."
        for package, extra in MISSING.values()
    ]
    assert result.stdout.splitlines() == expected, result.stdout + result.stderr


def test_the_command_line_names_its_extra() -> None:
    """One sentence, exit code 2, no traceback."""
    block = "import sys; sys.modules['{}'] = None\nfrom attractor.cli import main\ncodes = [main(['--help'])]\n"
    other = "del sys.modules['rich']; sys.modules['tyro'] = None\ncodes.append(main(['--help'])); print(codes)"
    result = run(block.format("rich") + other)
    assert result.stdout.strip() == "[2, 2]"
    sentence = "attractor: {} is not installed; install it with: pip install 'attractor-models[train]'.\n"
    assert result.stderr == sentence.format("rich") + sentence.format("tyro")


def test_the_command_line_answers_without_pytorch() -> None:
    """Help, usage errors and the version do not wait for imports that take seconds."""
    code = """
import sys
from attractor.cli import main
for arguments in (["--version"], [], ["--help"], ["train", "--help"], ["evaluate", "--help"], ["tran"]):
    try:
        main(arguments)
    except SystemExit:
        pass
import attractor
assert issubclass(attractor.ConfigError, attractor.AttractorError)
print("loaded:", [name for name in ("torch", "numpy", "transformers", "matplotlib") if name in sys.modules])
from attractor import fixed_point, Tolerance
assert callable(fixed_point) and attractor.solve.Tolerance is Tolerance
"""
    result = run(code)
    assert result.stdout.splitlines()[-1] == "loaded: []", result.stdout + result.stderr
    assert result.returncode == 0, result.stderr


def test_the_command_line_lets_waiting_threads_sleep() -> None:
    """PyTorch reads the policy when it is imported. The user's own setting stays."""
    code = "import os, sys; from attractor.cli import main; main(['--version']); print(os.environ['OMP_WAIT_POLICY'])"
    assert run(code).stdout.split()[-1] == "PASSIVE"
    assert run("import os; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'; " + code).stdout.split()[-1] == "ACTIVE"


def test_inference_does_not_load_the_tools_of_training() -> None:
    """Neither distributed checkpoints nor figures are imported to load and solve."""
    names = ("torch.distributed.checkpoint", "torch.distributed.fsdp", "matplotlib", "transformers")
    result = run(f"import sys, attractor.experiment.loading; print([n for n in {names} if n in sys.modules])")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_puzzles_need_no_transformers() -> None:
    """A reasoner is built, trained and loaded with the extra puzzles alone."""
    blocked = [name for name in OPTIONAL if name not in ("safetensors",)]
    code = f"""
import sys, tempfile
for name in {blocked}:
    sys.modules[name] = None
import attractor
out = tempfile.mkdtemp() + "/run"
settings = {{"train.seconds": None, "train.num_steps": 1, "data.num_puzzles": 8, "data.size": 7, "model.update.width": 8}}
settings |= {{"data.style": "perfect", "data.min_path": 1}}
trained = attractor.train("maze", out=out, overrides=settings, progress=False)
loaded = attractor.load(out)
print(loaded.puzzle.kind, loaded.path == trained.path, len(attractor.recipes.names()) > 40)
"""
    result = run(code)
    assert result.stdout.strip() == "maze True True", result.stderr


def test_every_public_name_can_be_imported() -> None:
    """Also those that are imported when they are used; unknown names raise AttributeError."""
    for name in attractor.__all__:
        assert getattr(attractor, name) is not None
    assert set(attractor.__all__) <= set(dir(attractor))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = attractor.nothing
