"""Trees on disk come back as they were, or not at all."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import make_host, make_state

from tamiyo_jax.errors import CheckpointMismatchError, PersistenceError
from tamiyo_jax.host import HostCheckpoints, load_tree, save_tree


class Inner(NamedTuple):
    count: object
    pair: tuple


TREE = {
    "inner": Inner(jnp.int32(3), (jnp.arange(4, dtype=jnp.float32), ())),
    "flag": jnp.bool_(True),
    "text": "what was said",
}
LIKE = {
    "inner": Inner(jnp.int32(0), (jnp.zeros(4, jnp.float32), ())),
    "flag": jnp.bool_(False),
    "text": str,
}


def test_arrays_and_texts_come_back_in_their_structure(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    loaded = load_tree(tmp_path / "tree", LIKE)
    assert isinstance(loaded["inner"], Inner)
    assert (int(loaded["inner"].count), bool(loaded["flag"])) == (3, True)
    assert loaded["text"] == "what was said"
    np.testing.assert_array_equal(loaded["inner"].pair[0], TREE["inner"].pair[0])


@pytest.mark.parametrize(
    ("like", "name"),
    [
        ({**LIKE, "flag": jnp.zeros(2, bool)}, "flag"),
        ({**LIKE, "flag": jnp.int32(0)}, "flag"),
        ({**LIKE, "more": jnp.int32(0)}, "more"),
        ({"inner": LIKE["inner"], "text": str}, "flag"),
        ({**LIKE, "inner": LIKE["inner"]._replace(pair=(jnp.zeros(5, jnp.float32), ()))}, "pair"),
    ],
)
def test_other_shapes_dtypes_or_names_are_refused_and_named(tmp_path, like, name):
    save_tree(tmp_path / "tree", TREE)
    with pytest.raises(CheckpointMismatchError, match=name) as raised:
        load_tree(tmp_path / "tree", like)
    assert len(raised.value.names) == 1


def test_nothing_is_overwritten_and_nothing_is_not_a_checkpoint(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    with pytest.raises(PersistenceError, match="never overwritten"):
        save_tree(tmp_path / "tree", TREE)
    with pytest.raises(PersistenceError, match="no checkpoint"):
        load_tree(tmp_path / "other", LIKE)


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)


def flip_bit(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_no_flipped_bit_of_any_file_is_loaded(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    chance = random.Random(0)
    for path in files_of(tmp_path / "tree"):
        whole = path.read_bytes()
        for position in chance.sample(range(len(whole)), min(len(whole), 20)):
            flip_bit(path, position, chance.randrange(8))
            with pytest.raises(PersistenceError, match="damaged") as raised:
                load_tree(tmp_path / "tree", LIKE)
            assert raised.value.files == (path.relative_to(tmp_path / "tree").as_posix(),)
            path.write_bytes(whole)
    load_tree(tmp_path / "tree", LIKE)


def test_a_missing_file_of_a_checkpoint_is_named(tmp_path):
    save_tree(tmp_path / "whole", TREE)
    for path in files_of(tmp_path / "whole"):
        name = path.relative_to(tmp_path / "whole").as_posix()
        shutil.copytree(tmp_path / "whole", tmp_path / "tree")
        (tmp_path / "tree" / name).unlink()
        with pytest.raises(PersistenceError, match="damaged") as raised:
            load_tree(tmp_path / "tree", LIKE)
        assert raised.value.files == (name,)
        shutil.rmtree(tmp_path / "tree")


def test_checkpoints_stay_where_they_were_opened_after_a_change_of_directory(tmp_path, monkeypatch):
    made = make_host()
    state = make_state(made)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    checkpoints = HostCheckpoints("kept", made)
    checkpoints.save("before", state)
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoints.save("since", state)
    assert checkpoints.names() == {"before", "since"}
    assert int(checkpoints.restore("before", state).step) == int(state.step)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_checkpoint_that_was_not_saved_to_its_end_is_not_listed(tmp_path):
    made = make_host()
    checkpoints, state = HostCheckpoints(tmp_path, made), make_state(made)
    checkpoints.save("a", state)
    checkpoints.save("b", state)
    (tmp_path / "b" / "DIGESTS.json").unlink()
    assert checkpoints.names() == {"a"}


_INTERRUPTED_SAVES = """
import signal, sys
from pathlib import Path
import numpy as np
from tamiyo_jax.host import load_tree, save_tree

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
tree = {"weights": np.ones((50, 50)), "text": "x"}
save_tree(Path(sys.argv[1]) / "first", tree)
interrupted = 0
for number in range(40):
    path = Path(sys.argv[1]) / str(number)
    signal.setitimer(signal.ITIMER_REAL, 0.001 * (number + 1))
    try:
        save_tree(path, tree)
    except KeyboardInterrupt:
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    if path.exists():
        load_tree(path, {"weights": tree["weights"], "text": str})
print(interrupted)
"""


@pytest.mark.slow
def test_a_process_interrupted_while_it_saves_exits_and_leaves_no_half_checkpoint(tmp_path):
    command = [sys.executable, "-c", _INTERRUPTED_SAVES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert done.stderr == ""
