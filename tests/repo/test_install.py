"""What a fresh machine installs: everything pinned, and nothing that the project does not declare."""

import re
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

ROOT = Path(__file__).parents[2]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "every line of requirements.lock is name==version"
    return {name.lower().replace("_", "-"): pinned for name, pinned in pins}


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in wanted}


def test_every_declared_package_is_locked():
    assert declared() - locked().keys() == set()


def test_torch_is_the_version_that_everything_was_tested_with():
    assert locked()["torch"] == "2.13.0"


def test_what_is_installed_is_what_is_locked():
    wrong = {
        name: (version(name), pinned) for name, pinned in locked().items() if version(name).split("+")[0] != pinned
    }
    assert wrong == {}


def test_needs_of_declared_packages_are_locked_too():
    missing = set()
    for name in declared():
        for need in requires(name) or []:
            if ";" not in need:
                missing.add(re.split(r"[<>=!~\[( ]", need)[0].lower().replace("_", "-"))
    assert missing - locked().keys() == set()
