"""The command that makes, lists and revokes API keys, and the file that keeps them."""

import json
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.generations import store
from serving.guarding import keys, known_keys
from serving.guarding.keys import KeyFault, any_good, create_key, read_keys, revoke_key
from serving.guarding.known_keys import KnownKey, KnownKeys
from tests.conftest import REPOSITORY

TODAY = datetime.now(UTC).date()


def command(data: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "serving.guarding.keys", "--data", str(data), *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def in_process(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints, without the seconds that a process of its own takes to start."""
    monkeypatch.setattr(sys, "argv", ["keys", "--data", str(data), *arguments])
    try:
        keys.main()
    except SystemExit as end:
        return str(end)
    return capsys.readouterr().out


def test_a_key_is_shown_once_and_kept_as_a_hash_that_only_its_owner_can_read(tmp_path: Path) -> None:
    code, told = command(tmp_path, "create", "crm", "--may", "read predict", "--scores", "churn", "--rate", "200")
    assert code == 0
    (shown,) = re.findall(r"sh_[0-9a-f]{8}_[\w-]{43}", told)
    assert "not shown again" in told
    file = tmp_path / "keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert shown.split("_", 2)[2] not in file.read_text()
    (key,) = read_keys(file)
    assert (key.name, key.permissions, key.scores, key.rate, key.burst) == (
        "crm",
        ("read", "predict"),
        ("churn",),
        200.0,
        200.0,
    )
    code, told = command(tmp_path, "list")
    assert code == 0 and "crm" in told and "200/s, 200 at once" in told
    assert shown.split("_", 2)[2] not in told and key.sha256 not in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["create", "crm", "--may", "write"],
            "no permission is 'write'. Possible: read, predict, jobs, events, admin.",
        ),
        (["create", "crm", "--may", ","], "a key without a permission is of no use. Possible: read, predict"),
        (["create", "crm", "--expires", "2020-01-31"], "2020-01-31 is over: give the last day on which the key is"),
        (["create", "crm", "--expires", "soon"], "'soon' is no day: write it as 20"),
        (["create", "crm", "--rate", "0"], "a rate is a number above 0; 0.0 is none."),
        (["create", "crm", "--rate", "nan"], "a rate is a number above 0; nan is none."),
        (["create", "crm", "--rate", "many"], "a rate is a number above 0; 'many' is none."),
        (["create", "crm", "--burst", "5"], "a burst needs a rate"),
        (["create", ""], "'' is no name of a key"),
        (["create", "a b"], "'a b' is no name of a key: letters, digits and . _ - make one"),
        (["create", "taken"], "there is a key 'taken' already. Revoke it, or choose another name."),
        (["revoke", "nobody"], "no key 'nobody' is there to revoke. There are: taken ("),
        (["revoke", "gone"], "no key 'gone' is there to revoke."),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    tmp_path: Path,
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    create_key(tmp_path / "keys.json", "taken", ["read"])
    create_key(tmp_path / "keys.json", "gone", ["read"])
    revoke_key(tmp_path / "keys.json", "gone")
    before = (tmp_path / "keys.json").read_bytes()
    printed = in_process(tmp_path, monkeypatch, capsys, *arguments)
    assert printed.startswith(f"keys: {told}") and "\n" not in printed
    assert (tmp_path / "keys.json").read_bytes() == before


def test_the_first_key_says_that_from_now_on_each_request_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (in_process(tmp_path, monkeypatch, capsys, "create", name, "--rate", "5") for name in ("a", "b"))
    assert "from now on each request needs one" in first and "from now on" not in second
    for name in ("a", "b"):
        revoke_key(tmp_path / keys.FILE, name)
    third = in_process(tmp_path, monkeypatch, capsys, "create", "c")
    assert "from now on" not in third, "a server stays closed after its last key was revoked"
    assert "shared out evenly over a server's processes" in second


def test_a_score_that_is_not_declared_is_told_and_the_key_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.declare(tmp_path / "generations", ["churn", "value"])
    assert "No score" not in in_process(tmp_path, monkeypatch, capsys, "create", "crm", "--scores", "churn")
    said = in_process(tmp_path, monkeypatch, capsys, "create", "shop", "--scores", "chrun value")
    assert "No score is called chrun yet (there are: churn, value)" in said
    assert [set(key.scores or ()) for key in read_keys(tmp_path / keys.FILE)] == [{"churn"}, {"chrun", "value"}]


def test_a_revoked_name_may_be_given_again_and_revoking_takes_the_key_that_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    old, _ = create_key(file, "crm", ["read"])
    assert f"crm ({old.id}) is revoked" in in_process(tmp_path, monkeypatch, capsys, "revoke", old.id)
    assert not any_good(file)
    new, _ = create_key(file, "crm", ["read"])
    assert any_good(file)
    assert revoke_key(file, "crm").id == new.id
    listed = in_process(tmp_path, monkeypatch, capsys, "list")
    assert listed.count(f"was revoked on {TODAY}") == 2


def test_commands_at_once_lose_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: create_key(file, f"key-{number}", ["read"])[0].id, range(40)))
    assert sorted(key.id for key in read_keys(file)) == sorted(made)


@pytest.mark.parametrize("content", ["", "{", '{"keys": [{"name": "crm"}]}', "[]", '{"keys": [], "more": 1}'])
def test_a_broken_file_is_named_and_never_taken_for_no_keys(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    for arguments in (["list"], ["create", "crm"], ["revoke", "crm"]):
        printed = in_process(tmp_path, monkeypatch, capsys, *arguments)
        assert printed.startswith(f"keys: {file}: is no file of keys (")
    with pytest.raises(KeyFault, match="is no file of keys"):
        KnownKeys(file)
    assert file.read_text() == content


def test_a_key_is_good_through_the_day_on_which_it_expires(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    tomorrow = TODAY + timedelta(days=1)
    _, shown = create_key(file, "crm", ["read"], expires=tomorrow)
    midnight = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=UTC).timestamp() + 86_400
    now = [midnight - 1]
    known = KnownKeys(file, clock=lambda: now[0])
    assert isinstance(known.find(f"Bearer {shown}".encode()), KnownKey)
    now[0] = midnight
    assert known.find(f"Bearer {shown}".encode()) == f"The key 'crm' expired on {tomorrow}."


def test_nothing_but_the_whole_key_is_the_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key, shown = create_key(file, "crm", ["read"])
    other, _ = create_key(file, "shop", ["read"])
    known = KnownKeys(file)
    assert isinstance(known.find(f"Bearer {shown}".encode()), KnownKey)
    secret = shown.split("_", 2)[2]
    wrong = ["", shown[:-1], shown + "x", shown.upper(), f"sh_{other.id}_{secret}", secret, f"xx_{key.id}_{secret}"]
    wrong += [f"sh_{key.id}-{secret}", f"sh_{key.id}_{key.sha256}", f"sh_{key.id}_", f"x {shown}"]
    assert [known.find(f"Bearer {one}".encode()) for one in wrong] == [None] * len(wrong)


def test_a_server_keeps_its_keys_where_the_file_breaks_vanishes_or_is_emptied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.json"
    _, shown = create_key(file, "crm", ["read"])
    good = file.read_text()
    known = KnownKeys(file)
    for broken in ("{", json.dumps({"keys": []}), None):
        if broken is None:
            file.unlink()
        else:
            file.write_text(broken)
        caplog.clear()
        known.look()
        known.look()
        assert known.guarded and isinstance(known.find(f"Bearer {shown}".encode()), KnownKey)
        (told,) = [record.message for record in caplog.records]
        assert str(file) in told and told.endswith("the keys read before stay as they are")
    file.write_text(good)
    revoke_key(file, "crm")
    known.look()
    assert known.guarded, "also where the last one is revoked"
    assert known.find(f"Bearer {shown}".encode()) == f"The key 'crm' was revoked on {TODAY}."


def test_a_revocation_that_could_not_be_read_at_first_is_seen_by_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    _, shown = create_key(file, "crm", ["read"])
    known = KnownKeys(file)
    revoke_key(file, "crm")

    def failing(_: Path) -> list[keys.Key]:
        raise KeyFault("keys.json: can't be read (Too many open files)")

    with monkeypatch.context() as for_a_moment:
        for_a_moment.setattr(known_keys, "read_keys", failing)
        known.look()
    assert isinstance(known.find(f"Bearer {shown}".encode()), KnownKey)
    known.look()
    assert known.find(f"Bearer {shown}".encode()) == f"The key 'crm' was revoked on {TODAY}."


def test_a_rate_is_shared_by_the_processes_and_survives_a_change_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    _, shown = create_key(file, "crm", ["read"], rate=0.002, burst=6)
    known = KnownKeys(file, workers=2)

    def waits() -> list[bool]:
        found = known.find(f"Bearer {shown}".encode())
        assert isinstance(found, KnownKey)
        return [found.wait() > 0 for _ in range(4)]

    assert waits() == [False, False, False, True]
    create_key(file, "shop", ["read"])
    known.look()
    assert waits() == [True] * 4
