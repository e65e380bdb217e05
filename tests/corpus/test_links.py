"""Corpora whose folders and files are links to where the data lie."""

import os

from dofa.corpus.readers.folders import files_in


def test_links_are_followed_and_each_folder_is_listed_once(tmp_path):
    real = tmp_path / "disk" / "patches" / "one"
    real.mkdir(parents=True)
    (real / "a.tif").touch()
    (tmp_path / "disk" / "b.tif").touch()
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "patches").symlink_to(tmp_path / "disk" / "patches")
    (root / "b.tif").symlink_to(tmp_path / "disk" / "b.tif")
    (real / "round").symlink_to(root)  # leads round for ever
    found = [os.path.relpath(path, root) for path in files_in(root)]
    assert found == ["b.tif", "patches/one/a.tif"]
    assert files_in(root) == sorted(files_in(root))
