"""The requests that a real Label Studio 1.23.2 sent, for tests (tokens in them are zeros)."""

import json
from pathlib import Path
from typing import Any

PAYLOADS = sorted(Path(__file__).parent.parent.joinpath("payloads").glob("*.json"), key=lambda path: path.name)


def body(name: str) -> Any:
    """The JSON body of tests/payloads/<name>.json."""
    return json.loads(Path(__file__).parent.parent.joinpath("payloads", f"{name}.json").read_text())["body"]


def results(found: Any) -> list[list[dict[str, Any]]]:
    """Every `result` list anywhere in a JSON value."""
    if isinstance(found, list):
        return [result for item in found for result in results(item)]
    if not isinstance(found, dict):
        return []
    own = [found["result"]] if isinstance(found.get("result"), list) else []
    return own + [result for item in found.values() for result in results(item)]


def label_configs(found: Any) -> list[str]:
    """Every label config anywhere in a JSON value."""
    if isinstance(found, list):
        return [config for item in found for config in label_configs(item)]
    if not isinstance(found, dict):
        return []
    own = [found[key] for key in ("label_config", "schema") if isinstance(found.get(key), str)]
    return own + [config for item in found.values() for config in label_configs(item)]
