"""A seal tells every change of what it seals, and removes nothing that it does not name."""

import json
from random import Random

import pytest

from cagsr.io.manifest import MANIFEST, damage, manifest, remove, seal


@pytest.fixture
def sealed(tmp_path):
    directory = tmp_path / "sealed"
    (directory / "inner").mkdir(parents=True)
    (directory / "a.bin").write_bytes(bytes(range(101)))
    (directory / "inner" / "b.txt").write_text("text")
    (directory / "empty").write_bytes(b"")
    seal(directory, run="r0", step=7)
    return directory


def test_a_manifest_says_what_is_there_and_whose_it_is(sealed):
    content = manifest(sealed)
    assert (content["run"], content["step"]) == ("r0", 7)
    assert content["files"]["inner/b.txt"] == {
        "bytes": 4,
        "sha256": "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1",
    }
    assert set(content["files"]) == {"a.bin", "inner/b.txt", "empty"}
    assert damage(sealed) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: (d / "a.bin").unlink(), "a.bin is missing"),
        (lambda d: (d / "a.bin").write_bytes(bytes(100)), "a.bin has 100 bytes, not 101"),
        (lambda d: (d / "inner/b.txt").write_text("tExt"), "inner/b.txt was changed"),
        (lambda d: (d / "empty").write_bytes(b"\0"), "empty has 1 bytes, not 0"),
        (lambda d: (d / MANIFEST).unlink(), "it has no MANIFEST.json, so it was never finished"),
        (lambda d: (d / MANIFEST).write_bytes(b"\xff"), "its MANIFEST.json cannot be read"),
        (lambda d: (d / MANIFEST).write_text("[]"), "its MANIFEST.json was changed"),
        (lambda d: (d / "a.bin").unlink() or (d / "a.bin").mkdir(), "a.bin"),
    ],
)
def test_damage_is_named(sealed, change, expected):
    change(sealed)
    assert str(damage(sealed)).startswith(expected)


def test_a_manifest_that_was_edited_is_not_believed(sealed):
    content = json.loads((sealed / MANIFEST).read_text())
    content["run"] = "r1"
    (sealed / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    assert damage(sealed) == "its MANIFEST.json was changed"


def test_every_single_bit_of_every_file_counts(sealed):
    random = Random(3)
    for path in sorted(path for path in sealed.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for bit in random.sample(range(8 * len(whole)), min(8 * len(whole), 60)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert damage(sealed) is not None, (path.name, bit)
        path.write_bytes(whole)
    assert damage(sealed) is None


def test_removing_takes_what_was_sealed_and_leaves_what_somebody_put_there(sealed):
    (sealed / "inner" / "notes.txt").write_text("mine")
    remove(sealed)
    assert [path.relative_to(sealed).as_posix() for path in sorted(sealed.rglob("*"))] == [
        "inner",
        "inner/notes.txt",
    ]
    assert (sealed / "inner" / "notes.txt").read_text() == "mine"


def test_removing_what_was_sealed_alone_leaves_nothing(sealed):
    remove(sealed)
    assert not sealed.exists()


def test_what_has_no_seal_is_never_removed(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="never finished"):
        remove(tmp_path)
    assert (tmp_path / "file").read_text() == "mine"
