"""The code of the dev chain's contracts is the published one, or nothing is placed."""

import pytest

from devchain.contracts import artifacts, placing
from devchain.contracts.delegated import Code
from devchain.contracts.sending import has_code
from devchain.processes import DevToolError
from devchain.stack import start_stack


async def test_code_of_another_contract_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "artifact_code", lambda path: artifacts.artifact_code(path) + b"!")
    async with start_stack() as stack:
        assert not await has_code(stack.rpc, Code.SIMPLE)
        with pytest.raises(DevToolError, match="not that of 0x5FF137D4"):
            await placing.place_contracts(stack.rpc)
        assert not await has_code(stack.rpc, Code.SIMPLE)


def test_code_that_a_package_does_not_have_is_missed() -> None:
    with pytest.raises(DevToolError, match="has no code named nothing"):
        artifacts.script_code("@metamask/delegation-abis/dist/bytecode/Math.cjs", "nothing")
