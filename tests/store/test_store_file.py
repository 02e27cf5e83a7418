"""The database file is deleted or replaced while it is open: nothing is written to where nobody finds it again."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backend.cli.health import HealthError, check_service
from backend.errors import StoreUnavailableError
from backend.settings import load_settings
from backend.store import Store
from testing.fakes import Backend
from tests.labelstudio.web import Answer, serve

KEY, OTHER_KEY = "1.1795365244", "2.1795365300"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store(f"sqlite:///{path}")) as store:
        store.create_tables()
        store.save_project(KEY)
        yield store


def _delete(path: Path) -> None:
    path.unlink()


def _delete_all(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def _replace_by_a_copy(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)


def _replace_by_a_new_one(path: Path) -> None:
    _delete_all(path)
    with closing(Store(f"sqlite:///{path}")) as other:
        other.create_tables()


def _delete_the_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def _delete_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    "harm",
    [_delete, _delete_all, _replace_by_a_copy, _replace_by_a_new_one, _delete_the_log, _delete_the_folder],
)
def test_nothing_is_written_once_the_file_is_not_the_one_that_was_opened(
    store: Store, path: Path, harm: Callable[[Path], None]
) -> None:
    assert store.file_problem() is None
    harm(path)
    for write_or_read in (lambda: store.save_project(OTHER_KEY), store.projects, lambda: store.mark_pending(KEY, 1)):
        with pytest.raises(StoreUnavailableError, match=r"store\.db.* was (deleted|replaced).*put the file back"):
            write_or_read()
    assert "while it was open" in (store.file_problem() or "")


def test_no_empty_file_appears_in_place_of_a_deleted_one(store: Store, path: Path) -> None:
    with store.engine.connect():  # the pool has to open another connection
        _delete(path)
        with pytest.raises(StoreUnavailableError, match="was deleted"):
            store.projects()
    assert not path.exists()


def test_writer_is_told_if_the_file_goes_before_its_commit(store: Store, path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="was deleted"), store.write():
        _delete(path)


def test_file_that_is_moved_back_is_used_again(store: Store, path: Path) -> None:
    path.rename(path.with_suffix(".away"))
    with pytest.raises(StoreUnavailableError):
        store.projects()
    path.with_suffix(".away").rename(path)
    assert [project.key for project in store.projects()] == [KEY]
    assert store.file_problem() is None


def test_other_processes_opening_closing_and_checkpointing_is_no_harm(store: Store, path: Path) -> None:
    for key in (OTHER_KEY, "3.1795365300"):
        with closing(sqlite3.connect(path)) as other:
            other.execute("SELECT count(*) FROM projects").fetchone()
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            other.execute("VACUUM")
        store.save_project(key)
    assert len(store.projects()) == 3


def test_second_store_of_a_process_keeps_the_locks_of_the_first(store: Store, path: Path) -> None:
    # POSIX drops all of a process' locks on a file as soon as it closes any descriptor of it: another process that
    # closes the database then takes itself for the last one and deletes the log.
    store.projects()
    with closing(Store(f"sqlite:///{path}")) as second:
        second.create_tables()
        script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('select * from projects'); c.close()"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert path.with_name(f"{path.name}-wal").exists()
    assert len(store.projects()) == 1


def test_health_says_it_and_requests_are_refused(backend: Backend) -> None:
    assert backend.client.get("/health").status_code == 200
    backend.projects.store.projects()
    Path(backend.settings.store_url.removeprefix("sqlite:///")).unlink()
    answer = backend.client.get("/health")
    assert (answer.status_code, answer.get_json()["status"]) == (503, "DOWN")
    assert "deleted or replaced" in answer.get_json()["store"]
    assert str(backend.settings.data_dir) not in answer.text, "where the file lies is the operator's to know"
    assert backend.client.get("/projects").status_code == 503
    with serve() as service:
        service.always("/health", Answer(answer.data, status=503))
        with pytest.raises(HealthError, match="deleted or replaced"):
            check_service(load_settings(port=service.port))
