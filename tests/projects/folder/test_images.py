"""Folders as people and enemies have them."""

import os
from pathlib import Path

import pytest

from backend.errors import BadInputError, NotFoundError
from backend.projects.folder.images import FolderFiles, find_images, name_of


def touch(*paths: Path, content: bytes = b"x") -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(folder: Path) -> list[str]:
    return [name_of(path) for path in find_images(folder).paths]


def test_images_are_in_natural_order_with_those_of_folders_behind(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("10.jpg", "2.JPG", "sub/1.png", "a/b/c.webp", "notes.txt", ".hidden.png")))
    touch(tmp_path / ".git" / "x.png")
    assert names(tmp_path) == ["2.JPG", "10.jpg", "a/b/c.webp", "sub/1.png"]


@pytest.mark.parametrize("content", [[], ["readme.txt"], [".x.png"]])
def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path, content: list[str]) -> None:
    touch(*(tmp_path / name for name in content))
    with pytest.raises(NotFoundError, match=r"no image was found in .*\.jpg"):
        find_images(tmp_path)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    for path in (tmp_path / "gone", tmp_path / "a.png"):
        with pytest.raises(NotFoundError, match="there is no such folder"):
            find_images(path)


def test_many_images_are_bounded_and_it_is_said(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{number}.png" for number in range(12)))
    found = find_images(tmp_path, most_images=10)
    assert [name_of(path) for path in found.paths] == [f"{number}.png" for number in range(10)]
    assert found.notes == ("only the first 10 images are taken, there are more",)
    assert find_images(tmp_path, most_images=12).notes == ()


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    touch(outside / "secret.png", folder / "own.png", folder / "sub" / "more.png")
    (folder / "leads-out.png").symlink_to(outside / "secret.png")
    (folder / "leads-in.png").symlink_to(folder / "own.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "up").symlink_to(folder)
    (folder / "elsewhere").symlink_to(outside)
    found = find_images(folder)
    assert [name_of(path) for path in found.paths] == ["leads-in.png", "own.png", "sub/more.png"]
    assert found.notes == (
        "1 link is left out: it leads out of the folder", "2 links are left out: they lead to a folder",
    )  # fmt: skip


def test_a_link_may_be_the_folder_itself(tmp_path: Path) -> None:
    touch(tmp_path / "photos" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    assert names(tmp_path / "link") == ["a.png"]


def test_any_name_of_a_file_can_be_shown_and_read(tmp_path: Path) -> None:
    odd = [b"\xff\xfe.png", "Äpfel & Birnen 🍎.jpg".encode(), b"a%20b?#.png", b"new\nline.png", b"<script>.png"]
    for number, name in enumerate(odd):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(bytes([number]))
    found = find_images(tmp_path)
    files = FolderFiles(tmp_path, 1000)
    assert sorted(files.fetch(files.address(path)) for path in found.paths) == [bytes([n]) for n in range(len(odd))]
    shown = [name_of(path) for path in found.paths]
    assert "Äpfel & Birnen 🍎.jpg" in shown
    assert all((name.isprintable() and name.isascii()) or "�" in name or "🍎" in name for name in shown)
    assert all(path.isascii() for path in found.paths)


def test_a_folder_that_fails_is_said_and_the_others_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.png", tmp_path / "closed" / "b.png")
    scan = os.scandir

    def refuse(folder: Path) -> object:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        found = find_images(tmp_path)
        with pytest.raises(BadInputError, match="Permission denied"):
            find_images(tmp_path / "closed")
    assert ([name_of(path) for path in found.paths], found.notes) == (["a.png"], ("the folder closed cannot be read",))


def test_only_files_of_the_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    touch(folder / "a.png", tmp_path / "secret.png", content=b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    files = FolderFiles(folder, 1000)
    start = files.address("")
    for path, reason in (
        ("link.png", "leads out of the folder"), ("../secret.png", "leads out"), ("%2e%2e/secret.png", "leads out"),
        ("/etc/passwd", "leads out"), ("pipe.png", "is no file"), ("folder.png", "Is a directory"),
        ("a%00.png", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(BadInputError, match=reason):
            files.fetch(start + path)
    for url in ("http://127.0.0.1/a.png", "/data/upload/a.png", "file:///etc/passwd"):
        with pytest.raises(BadInputError, match="expected an address"):
            files.fetch(url)
    with pytest.raises(NotFoundError, match=r"gone\.png is not in the folder"):
        files.fetch(start + "gone.png")


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", content=b"x" * 2000)
    files = FolderFiles(tmp_path, 1000)
    with pytest.raises(BadInputError, match="raise SOFTMATCHER_MAX_IMAGE_MB"):
        files.fetch(files.address("a.png"))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", content=b"one")
    files = FolderFiles(tmp_path, 1000)
    address = files.address("a.png")
    first = files.fetch_if_changed(address, 1, None)
    assert first.content == b"one"
    assert files.fetch_if_changed(address, 1, first.validators).content is None
    touch(tmp_path / "new.png", content=b"two")
    (tmp_path / "new.png").replace(tmp_path / "a.png")
    assert files.fetch_if_changed(address, 1, first.validators).content == b"two"
    assert files.fetch_if_sized(address, 1, frozenset({9})) is None
    assert files.fetch_if_sized(address, 1, frozenset({3})) == b"two"
