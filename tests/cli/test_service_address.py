"""The address of the service, formed once for all commands."""

import pytest
from gunicorn.util import parse_address

from backend.cli.service_address import bind_address, service_address
from backend.settings import load_settings


@pytest.mark.parametrize(
    ("host", "bound", "reached"),
    [
        ("127.0.0.1", ("127.0.0.1", 9090), "http://127.0.0.1:9090"),
        ("0.0.0.0", ("0.0.0.0", 9090), "http://127.0.0.1:9090"),
        ("::", ("::", 9090), "http://[::1]:9090"),
        ("::1", ("::1", 9090), "http://[::1]:9090"),
        ("backend.example", ("backend.example", 9090), "http://backend.example:9090"),
    ],
)
def test_the_service_binds_to_its_host_and_is_reached_there(host: str, bound: tuple[str, int], reached: str) -> None:
    settings = load_settings(host=host, port=9090)
    assert parse_address(bind_address(settings)) == bound
    assert service_address(settings) == reached


def test_the_port_that_a_running_service_has_goes_before_the_settings() -> None:
    assert service_address(load_settings(host="127.0.0.1", port=0), 4242) == "http://127.0.0.1:4242"
