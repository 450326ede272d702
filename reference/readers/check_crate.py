"""Has roc-validator look at a folder as a Process Run Crate: python reference/readers/check_crate.py FOLDER.

Prints each requirement that is not met, and fails if there is one. The network is not used: the context of RO-Crate is that
which the package rocrate brings."""

from __future__ import annotations

import json
import sys
from importlib import resources
from types import SimpleNamespace
from typing import Any

from rocrate_validator import models, services
from rocrate_validator.utils.http import HttpRequester

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


def answer(_requester: HttpRequester, url: str, **_options: Any) -> SimpleNamespace:
    """What the server of the context would send; nothing else is there."""
    if url != CONTEXT:
        return SimpleNamespace(status_code=404, ok=False, text="", headers={})
    text = resources.files("rocrate").joinpath("data/ro-crate.jsonld").read_text()
    return SimpleNamespace(status_code=200, ok=True, text=text, headers={"Content-Type": "application/ld+json"}, json=lambda: json.loads(text))


def main() -> int:
    HttpRequester.get = answer
    settings = services.ValidationSettings(
        rocrate_uri=sys.argv[1],
        profile_identifier="process-run-crate-0.5",
        requirement_severity=models.Severity.REQUIRED,
    )
    result = services.validate(settings)
    for issue in result.get_issues():
        print(f"{issue.check.identifier} {issue.check.name}: {issue.message}")
    print(f"{len(result.executed_checks)} checks")
    return 0 if result.passed() else 1


if __name__ == "__main__":
    sys.exit(main())
