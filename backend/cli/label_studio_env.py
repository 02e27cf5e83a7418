"""`label-studio-env`: what Label Studio has to be started with so that it talks to a backend at a private address."""

import ipaddress
from collections.abc import Sequence

from backend.errors import BadInputError

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_BANNED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96",
    "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:20::/28", "2001:db8::/32", "2002::/16", "fc00::/7", "fe80::/10",
    "ff00::/8",
)  # fmt: skip
"""What Label Studio 1.23.2 refuses by itself: label_studio/core/utils/io.py, `validate_ip`."""


def protection_but(allowed: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that keep Label Studio's SSRF protection on for all but the backend's networks.

    Args:
        allowed: networks or addresses, such as `127.0.0.0/8` or `172.18.0.5`.

    Raises:
        BadInputError: one is neither.
    """
    banned: list[_Network] = [ipaddress.ip_network(each) for each in _BANNED]
    for text in allowed:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise BadInputError(
                f"expected a network such as 127.0.0.0/8, or an address, got {text!r} ({error})"
            ) from error
        banned = [part for each in banned for part in _without(each, network)]
    return {
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "USER_ADDITIONAL_BANNED_SUBNETS": ",".join(str(each) for each in banned),
    }


def _without(network: _Network, hole: _Network) -> list[_Network]:
    """Return what is left of a network."""
    if isinstance(network, ipaddress.IPv4Network) and isinstance(hole, ipaddress.IPv4Network):
        if network.subnet_of(hole):
            return []
        return list(network.address_exclude(hole)) if hole.subnet_of(network) else [network]
    if isinstance(network, ipaddress.IPv6Network) and isinstance(hole, ipaddress.IPv6Network):
        if network.subnet_of(hole):
            return []
        return list(network.address_exclude(hole)) if hole.subnet_of(network) else [network]
    return [network]
