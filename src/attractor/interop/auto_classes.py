"""Our language models become known to the Auto classes of ``transformers`` as soon as both packages are imported.

``import attractor`` does not wait for ``transformers``, whose models take longer to import than all the rest. Where it is
loaded already, ours are registered at once; otherwise when it is: the import system asks :class:`AfterTransformers` first,
which has the others find the package and adds one step to its loading.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_models() -> None:
    """Have the models registered, now or once ``transformers`` is imported; calling it twice changes nothing."""
    if "transformers" in sys.modules:
        _register()
    elif not any(isinstance(finder, AfterTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterTransformers())


def _register() -> None:
    importlib.import_module("attractor.models.language")  # which registers them


class AfterTransformers(MetaPathFinder):
    """Finds ``transformers`` as it would be found without it, and registers our models at the end of its loading."""

    def __init__(self) -> None:
        self.is_asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers" or self.is_asking:
            return None
        self.is_asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_asking = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
