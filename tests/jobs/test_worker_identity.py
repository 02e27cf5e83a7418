"""Names of workers: who has ended is known at once, who cannot be seen is let alone."""

import subprocess
import sys

from backend.jobs.worker_identity import has_ended, own_name


def test_own_process_lives() -> None:
    assert not has_ended(own_name())


def test_ended_process_is_seen_even_before_its_parent_looks() -> None:
    program = "from backend.jobs.worker_identity import own_name; print(own_name(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert name
        assert not has_ended(name)
        child.kill()
        # The output's end comes with the process' end; the process is a zombie until it is waited for.
        assert child.stdout.read() == ""
        while not has_ended(name):
            assert child.returncode is None
    assert has_ended(name)


def test_reused_process_id_is_another_worker() -> None:
    host, pid, started = own_name().split(".")
    assert has_ended(f"{host}.{pid}.{int(started) - 1}")


def test_what_cannot_be_told_is_not_called_ended() -> None:
    _, pid, started = own_name().split(".")
    for name in (f"0123456789ab.{pid}.{int(started) - 1}", "4d1f0c3be1a24c6ab8a07bdfb6d2b3a1", "", "a.b.c", "inline"):
        assert not has_ended(name), name
