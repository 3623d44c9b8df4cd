"""Creation code of published contracts, read from the npm packages that carry it."""

import json
import re
from typing import Any

from devchain.processes import DevToolError, node_file

_MIN_CODE_BYTES = 100


def artifact_code(relative: str) -> bytes:
    """Return the creation code of a Hardhat artifact below node_modules."""
    artifact: dict[str, Any] = json.loads(node_file(relative).read_text())
    code: str = artifact["bytecode"].removeprefix("0x")
    return bytes.fromhex(code)


def script_code(relative: str, name: str) -> bytes:
    """Return the code that a JavaScript file assigns to `name`, as one long literal.

    Raises DevToolError if there is none, or nothing as long as a contract.
    """
    text = node_file(relative).read_text()
    found = re.search(rf"\b{name}\s*=\s*[\"']0x([0-9a-f]+)[\"']", text)
    if found is None or len(found[1]) < 2 * _MIN_CODE_BYTES:
        raise DevToolError(f"{relative} has no code named {name}")
    return bytes.fromhex(found[1])
