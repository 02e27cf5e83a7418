"""The variables that keep Label Studio's SSRF protection on for all but the backend's networks."""

import ipaddress

import pytest
from typer.testing import CliRunner

from backend.cli import app
from backend.cli.label_studio_env import protection_but
from backend.errors import BadInputError


def _is_banned(address: str, *allowed: str) -> bool:
    variables = protection_but(allowed)
    assert variables["USE_DEFAULT_BANNED_SUBNETS"] == "false"
    networks = variables["USER_ADDITIONAL_BANNED_SUBNETS"].split(",")
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in networks)


@pytest.mark.parametrize(
    ("allowed", "passes", "refused"),
    [
        ("127.0.0.0/8", ["127.0.0.1", "127.9.9.9", "8.8.8.8"], ["10.0.0.1", "169.254.169.254", "::1", "172.17.0.2"]),
        ("127.0.0.1", ["127.0.0.1"], ["127.0.0.2", "192.168.1.1"]),
        ("10.77.31.0/24", ["10.77.31.1"], ["10.77.30.1", "10.77.32.1", "127.0.0.1"]),
        ("fd00::/8", ["fd00::1"], ["fc00::1", "::1"]),
        ("0.0.0.0/0", ["10.0.0.1", "127.0.0.1"], ["::1"]),
    ],
)
def test_only_the_networks_named_are_let_through(allowed: str, passes: list[str], refused: list[str]) -> None:
    assert not [address for address in passes if _is_banned(address, allowed)]
    assert [address for address in refused if _is_banned(address, allowed)] == refused


def test_several_networks() -> None:
    assert not _is_banned("127.0.0.1", "127.0.0.0/8", "172.16.0.0/12")
    assert not _is_banned("172.20.0.3", "127.0.0.0/8", "172.16.0.0/12")
    assert _is_banned("192.168.0.1", "127.0.0.0/8", "172.16.0.0/12")


@pytest.mark.parametrize("text", ["localhost", "", "127.0.0.1/4", "300.0.0.0/8"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="expected a network"):
        protection_but([text])


def test_the_command_prints_what_env_takes() -> None:
    printed = CliRunner().invoke(app, ["label-studio-env"]).stdout.split()
    assert [line.partition("=")[0] for line in printed] == [
        "USE_DEFAULT_BANNED_SUBNETS", "USER_ADDITIONAL_BANNED_SUBNETS"
    ]  # fmt: skip
    assert printed == [f"{name}={value}" for name, value in protection_but(["127.0.0.0/8"]).items()]
