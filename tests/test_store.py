"""The protocol of generations: what a publisher may do to a server, and what it may not."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from serving.generations import lmdb_file
from serving.generations.generation import read_manifest, sha256_of
from serving.generations.store import (
    BadCustomerId,
    CorruptGeneration,
    CustomerScore,
    PublicationError,
    Reason,
    current,
    customer_key,
    flip,
    open_store,
    payload,
    prune,
    published_scores,
    verify,
    write,
)
from tests import sample_generations
from tests.sample_generations import FEATURES, a_customer, a_generation, customers, features_of, publish, ranking


def _kept(home: Path) -> Iterator[Path]:
    """What is in the folder of a score, but for the notes of what was verified."""
    return (path for path in home.iterdir() if not path.name.startswith(".verified-"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "generations"


def test_a_published_generation_serves_each_customer_byte_for_byte(root: Path) -> None:
    folder = publish(root, rows=250)
    assert current(root, "churn") == "g1"
    assert published_scores(root) == ["churn"]
    expected = dict(customers(a_generation(), rows=250))
    with open_store(folder) as store:
        assert store.generation.rows == 250
        assert {customer_id: store.get(customer_id) for customer_id in expected} == expected
        assert store.get("no such customer") is None
    assert set(verify(folder).files) == {"store.mdb", "features.mdb", "ranking.mdb", "card.json"}


def test_the_features_of_each_customer_are_published_byte_for_byte(root: Path) -> None:
    ids = ["x" * 511, "a/b", "é", "a,b", "🙂"]
    expected = dict(features_of(a_generation(), ids))
    with open_store(publish(root, ids=ids)) as store:
        assert {customer_id: store.features(customer_id) for customer_id in ids} == expected
        for bad in ("", "x" * 512, "\0", "\ud800", "nobody"):
            assert store.features(bad) is None


def test_a_generation_of_old_without_features_ranking_and_percentiles_is_served(root: Path) -> None:
    folder = publish(root, features=(), ranked=False)
    _rewrite_manifest(folder, without=("quantiles", "reasons", "when_stale"))
    with open_store(folder) as store:
        assert store.get("5")
        assert store.features("5") is None
        assert not store.has_ranking
        with pytest.raises(LookupError, match="generation g1 was published without a ranking"):
            store.ranked(None, 0, 10)
        assert (store.generation.quantiles, store.generation.reasons, store.generation.when_stale) == ({}, 0, "serve")
    stored = msgspec.json.decode(a_customer(a_generation(), "1"))
    del stored["percentile"]
    assert msgspec.json.decode(msgspec.json.encode(stored), type=CustomerScore).percentile is None
    assert set(verify(root / "churn" / "g1").files) == {"store.mdb", "card.json"}


@pytest.mark.parametrize(
    ("stream", "error", "message"),
    [
        ([], PublicationError, "churn/g2: features of 0 customers came, scores of 100"),
        ([("1", b"[1]"), ("0", b"[1]")], BadCustomerId, "'0' comes after '1': not sorted"),
        ([("1", b"{}")], PublicationError, "customer '1': its payload is no JSON array"),
    ],
)
def test_features_of_other_customers_than_the_scores_are_not_published(
    root: Path, stream: list[tuple[str, bytes]], error: type[Exception], message: str
) -> None:
    publish(root)
    generation = a_generation("g2", features=FEATURES)
    with pytest.raises(error, match=message):
        write(root, generation, customers(generation), {}, iter(stream))
    assert {path.name for path in _kept(root / "churn")} == {"CURRENT", "g1"}


def test_customers_are_ranked_band_by_band_the_best_first(root: Path) -> None:
    expected = ranking()
    values = dict(sample_generations.values())
    with open_store(publish(root)) as store:

        def ranked(band: str | None, start: int, count: int) -> list[str]:
            stored = [msgspec.json.decode(one, type=CustomerScore) for one in store.ranked(band, start, count)]
            assert band is None or {customer.band for customer in stored} <= {band}
            return [customer.customer_id for customer in stored]

        assert ranked(None, 0, 1000) == expected
        assert [values[one] for one in expected] == sorted(values.values(), reverse=True)
        assert ranked("high", 0, 1000) == expected[:40]
        assert ranked("medium", 0, 1000) == expected[40:70]
        assert ranked("medium", 25, 3) == expected[65:68]
        assert ranked("low", 28, 10) == expected[98:]
        assert ranked("low", 30, 10) == ranked(None, 100, 1) == []
        with pytest.raises(KeyError, match="none such"):
            store.ranked("none such", 0, 1)


def test_customers_without_a_band_are_ranked_last(root: Path) -> None:
    bands = {"high": 0.6, "medium": 0.3}
    with open_store(publish(root, bands=bands)) as store:
        assert store.generation.band_counts == {"high": 40, "medium": 30}
        last = [msgspec.json.decode(one, type=CustomerScore) for one in store.ranked(None, 70, 1000)]
        assert [customer.band for customer in last] == [None] * 30
        assert len(store.ranked("medium", 0, 1000)) == 30


def test_a_ranking_of_other_customers_than_the_scores_is_not_published(root: Path) -> None:
    with pytest.raises(PublicationError, match="churn/g1: ranks of 99 customers came, scores of 100"):
        write(root, generation := a_generation(), customers(generation), {}, (), ranking(rows=99))
    assert list(_kept(root / "churn")) == []


def test_a_fault_of_one_file_stops_the_writing_of_the_others(root: Path) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "1"

    generation = a_generation()
    with pytest.raises(BadCustomerId, match="'1' comes twice"):
        write(root, generation, [("1", b"{}"), ("1", b"{}")], {}, (), endless())
    assert list(_kept(root / "churn")) == []


def test_the_checksum_file_is_one_that_sha256sum_reads(root: Path) -> None:
    folder = publish(root)
    subprocess.run(["sha256sum", "--check", "--quiet", "generation.json.sha256"], cwd=folder, check=True)


@pytest.mark.parametrize("rows", [1, lmdb_file.CHUNK, lmdb_file.CHUNK + 1])
def test_every_size_around_a_transaction_is_written_whole(root: Path, rows: int) -> None:
    assert verify(publish(root, rows=rows)).rows == rows


def test_a_store_that_outgrows_its_map_grows_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_file, "FIRST_MAP_SIZE", 1 << 16)
    assert verify(publish(root, rows=30_000)).rows == 30_000


def test_a_composite_key_cannot_collide_with_another() -> None:
    assert customer_key([7]) == "7"
    assert customer_key(["a,b%"]) == "a,b%"
    assert customer_key(["a", 1]) == "a,1"
    keys = [customer_key(parts) for parts in (["a,b", "c"], ["a", "b,c"], ["a~1b", "c"], ["a", "b", "c"])]
    assert len(set(keys)) == 4
    with pytest.raises(BadCustomerId, match=r"\('a', None\) lacks a part"):
        customer_key(["a", None])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([""], "a customer id is empty"),
        (["ok", "x" * 512], "'xxx.*512 bytes, 511 are possible"),
        (["é" * 256], "'ééé.*512 bytes"),
        (["a\0b"], r"'a\\x00b' contains a NUL"),
        (["b", "a"], "'a' comes after 'b': not sorted"),
        (["Z", "é", "z"], "'z' comes after 'é'"),
        (["a", "a"], "'a' comes twice"),
        (["\ud800"], "no valid Unicode"),
    ],
)
def test_a_bad_id_stops_the_publication_and_is_named(root: Path, ids: list[str], message: str) -> None:
    publish(root)
    generation = a_generation("g2")
    with pytest.raises(BadCustomerId, match=message):
        write(root, generation, ((customer_id, b"{}") for customer_id in ids), {})
    assert [path.name for path in _kept(root / "churn") if path.name not in ("CURRENT", "g1")] == []
    assert current(root, "churn") == "g1"


def test_the_longest_id_and_odd_ids_are_found_again(root: Path) -> None:
    ids = ["x" * 511, "a/b", "..", "é", "日本", " ", "a,b", "%", "\x01", "🙂"]
    with open_store(publish(root, ids=ids)) as store:
        assert all(store.get(customer_id) for customer_id in ids)
        for bad in ("", "x" * 512, "\0", "\ud800", "?"):
            assert store.get(bad) is None


def test_a_score_that_is_no_number_has_no_payload() -> None:
    reason = Reason(feature="visits", value="1", contribution=0.5)
    customer = msgspec.json.decode(a_customer(a_generation(), "1"), type=CustomerScore)
    assert msgspec.json.decode(payload(customer), type=CustomerScore) == customer
    for broken in (
        msgspec.structs.replace(customer, value=float("nan")),
        msgspec.structs.replace(customer, reasons=[reason, msgspec.structs.replace(reason, contribution=float("inf"))]),
    ):
        with pytest.raises(PublicationError, match="customer '1' has a score that is not a number"):
            payload(broken)


def test_an_empty_or_short_stream_is_not_published(root: Path) -> None:
    with pytest.raises(PublicationError, match="0 customers came, some were announced"):
        write(root, a_generation(), iter(()), {})
    generation = a_generation(rows=101)
    with pytest.raises(PublicationError, match="100 customers came, 101 were announced"):
        write(root, generation, customers(generation), {})
    assert current(root, "churn") is None
    assert list(_kept(root / "churn")) == []


def test_an_error_of_the_source_leaves_no_trace(root: Path) -> None:
    def broken() -> Iterator[tuple[str, bytes]]:
        yield from list(customers(a_generation()))[:50]
        raise RuntimeError("the warehouse went away")

    with pytest.raises(RuntimeError, match="went away"):
        write(root, a_generation(), broken(), {})
    assert list(_kept(root / "churn")) == []


def test_a_generation_never_changes(root: Path) -> None:
    publish(root)
    with pytest.raises(PublicationError, match="churn/g1 is published already"):
        publish(root)


@pytest.mark.parametrize("name", ["../g", "", ".hidden", "a/b", "CURRENT", "x" * 101])
def test_a_name_that_is_no_folder_is_refused(root: Path, name: str) -> None:
    with pytest.raises(PublicationError, match="cannot be a name here"):
        publish(root, name)
    with pytest.raises(PublicationError, match="cannot be a name here"):
        publish(root, score=name)


def test_only_a_published_generation_can_be_made_current(root: Path) -> None:
    publish(root, "g1")
    publish(root, "g2")
    with pytest.raises(PublicationError, match=r"churn/g3 is not published \(there are: g1, g2\)"):
        flip(root, "churn", "g3")
    flip(root, "churn", "g1")
    assert current(root, "churn") == "g1"


def _flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _rewrite_manifest(folder: Path, without: tuple[str, ...] = (), **changes: object) -> None:
    """A generation.json whose checksum is right and whose content is not."""
    told = msgspec.json.decode((folder / "generation.json").read_bytes()) | changes
    content = msgspec.json.encode({name: value for name, value in told.items() if name not in without})
    (folder / "generation.json").write_bytes(content)
    (folder / "generation.json.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  generation.json\n")


def _other_store(folder: Path, **changes: object) -> None:
    """Another store under a manifest that agrees with its checksum."""
    other = write(folder.parent.parent.parent / "other", g := a_generation(**changes), customers(g, rows=99), {})  # type: ignore[arg-type]
    content = (other / "store.mdb").read_bytes()
    (folder / "store.mdb").write_bytes(content)
    _rewrite_manifest(folder, rows=99, files={"store.mdb": hashlib.sha256(content).hexdigest()}, features=[])


def verify_free_files(folder: Path) -> dict[str, str]:
    files: dict[str, str] = msgspec.json.decode((folder / "generation.json").read_bytes())["files"]
    return files


def _other_features(folder: Path, features: dict[str, bytes]) -> None:
    """Features of other customers, or of another form, under a manifest that agrees with their checksum."""
    file = folder / "features.mdb"
    file.unlink()
    lmdb_file.append({file: lmdb_file.by_customer(sorted(features.items()), ending=b"]")})
    _rewrite_manifest(
        folder, files=verify_free_files(folder) | {"features.mdb": hashlib.sha256(file.read_bytes()).hexdigest()}
    )


def _other_ranking(folder: Path, ids: list[str]) -> None:
    file = folder / "ranking.mdb"
    file.unlink()
    lmdb_file.append({file: lmdb_file.by_rank(ids)})
    _rewrite_manifest(
        folder, files=verify_free_files(folder) | {"ranking.mdb": hashlib.sha256(file.read_bytes()).hexdigest()}
    )


def _features(**changes: bytes) -> dict[str, bytes]:
    return dict(features_of(a_generation())) | {key.strip("_"): value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _flip_a_byte(f / "store.mdb"), r"churn/g1/store.mdb: its checksum is wrong: changed or incomplete"),
        (lambda f: os.truncate(f / "store.mdb", 8192), r"churn/g1/store.mdb: its checksum is wrong.*\(8192 bytes\)"),
        (lambda f: os.truncate(f / "store.mdb", 0), r"churn/g1/store.mdb: its checksum is wrong.*\(0 bytes\)"),
        (lambda f: (f / "store.mdb").unlink(), r"churn/g1/store.mdb: is missing"),
        (lambda f: _flip_a_byte(f / "card.json"), r"churn/g1/card.json: its checksum is wrong"),
        (lambda f: (f / "card.json").unlink(), r"churn/g1/card.json: is missing"),
        (lambda f: _flip_a_byte(f / "generation.json"), r"churn/g1/generation.json: its checksum is wrong"),
        (lambda f: (f / "generation.json").unlink(), r"churn/g1/generation.json: is missing"),
        (lambda f: (f / "generation.json.sha256").unlink(), r"churn/g1/generation.json.sha256: is missing"),
        (lambda f: _rewrite_manifest(f, score="upsell"), r"generation.json: score is 'upsell', expected 'churn'"),
        (lambda f: _rewrite_manifest(f, generation="g7"), r"generation.json: generation is 'g7', expected 'g1'"),
        (lambda f: _rewrite_manifest(f, format=2), r"generation.json: format is 2, expected 1"),
        (lambda f: _rewrite_manifest(f, rows="many"), r"generation.json: Expected `int`"),
        (lambda f: _rewrite_manifest(f, rows=99), r"store.mdb: has 100 customers, generation.json says 99"),
        (lambda f: _rewrite_manifest(f, files={}), r"generation.json: names no store.mdb"),
        (
            lambda f: _rewrite_manifest(f, files={"store.mdb": "", "../../CURRENT": ""} | verify_free_files(f)),
            r"generation.json: '../../CURRENT' is no name of a file",
        ),
        (
            lambda f: _flip_a_byte(f / "features.mdb"),
            r"churn/g1/features.mdb: its checksum is wrong",
        ),
        (lambda f: (f / "features.mdb").unlink(), r"churn/g1/features.mdb: is missing"),
        (
            lambda f: _rewrite_manifest(
                f, files={k: v for k, v in verify_free_files(f).items() if k != "features.mdb"}
            ),
            r"generation.json: names no features.mdb",
        ),
        (lambda f: _other_features(f, {"0": b"[1]"}), r"features.mdb: has 1 customers, store.mdb 100"),
        (
            lambda f: _other_features(f, {f"n{key}": value for key, value in _features().items()}),
            r"features.mdb: has no customer '0', store.mdb has",
        ),
        (
            lambda f: _other_features(f, _features(_7=b"[1]")),
            r"features.mdb: customer '7' has 1 values, generation.json names 6 features",
        ),
        (lambda f: _other_features(f, _features(_7=b"[1,]")), r"features.mdb: customer '7': JSON is malformed"),
        (lambda f: _other_features(f, _features(_7=b"[1,2,3,4,5,[]]")), r"features.mdb: customer '7': Expected"),
        (lambda f: _flip_a_byte(f / "ranking.mdb"), r"churn/g1/ranking.mdb: its checksum is wrong"),
        (lambda f: (f / "ranking.mdb").unlink(), r"churn/g1/ranking.mdb: is missing"),
        (lambda f: _other_ranking(f, ranking()[:99]), r"ranking.mdb: has 99 customers, store.mdb 100"),
        (
            lambda f: _other_ranking(f, [*ranking()[:99], "nobody"]),
            r"ranking.mdb: rank 99 is of a customer that store.mdb has not",
        ),
        (
            lambda f: _other_ranking(f, ranking()[::-1]),
            r"ranking.mdb: customer '\d+' at rank 0 is of band low, but those",
        ),
        (
            lambda f: _other_ranking(f, [*ranking()[10:40], *ranking()[:10], *ranking()[40:]]),
            r"ranking.mdb: customer '\d+' at rank 30 is above a better one",
        ),
        (
            lambda f: _rewrite_manifest(f, band_counts={"high": 40, "medium": 30, "low": 31}),
            r"generation.json: its bands have 101 customers, store.mdb 100",
        ),
        (lambda f: _other_store(f, name="g9"), r"store.mdb: customer '0': generation is 'g9', expected 'g1'"),
    ],
)
def test_a_damaged_generation_is_refused_with_file_and_fault(root: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    folder = publish(root)
    damage(folder)
    with pytest.raises(CorruptGeneration, match=message):
        verify(folder)
    with pytest.raises(CorruptGeneration):  # and again: a refusal leaves nothing open
        open_store(folder)


def test_a_generation_copied_under_another_score_is_refused(root: Path) -> None:
    folder = publish(root)
    (root / "upsell").mkdir()
    copy = folder.rename(root / "upsell" / "g1")
    with pytest.raises(CorruptGeneration, match=r"upsell/g1/generation.json: score is 'churn', expected 'upsell'"):
        verify(copy)


@pytest.mark.parametrize("content", ["", "\n", "../g1", "../../etc", ".", "a/b", "g1\ng1", "g\0", "\xff"])
def test_a_current_that_is_no_name_is_refused(root: Path, content: str) -> None:
    publish(root)
    (root / "churn" / "CURRENT").write_bytes(content.encode("latin-1"))
    with pytest.raises(CorruptGeneration, match=r"churn/CURRENT: .* is no name of a generation"):
        current(root, "churn")
    with pytest.raises(CorruptGeneration):
        prune(root, "churn")


def test_a_current_that_names_no_folder_is_refused(root: Path) -> None:
    publish(root)
    (root / "churn" / "CURRENT").write_text("g5\n")
    assert current(root, "churn") == "g5"
    with pytest.raises(CorruptGeneration, match="churn/g5/: is missing"):
        verify(root / "churn" / "g5")


def test_prunes_of_two_publishers_do_not_mind_each_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("g1", "g2"):
        publish(root, name)
    monkeypatch.setattr(
        "serving.generations.store.generations_of", lambda home: ["g0", "g1", "g2"]
    )  # the other removes g0 now
    assert prune(root, "churn", keep=1) == ["g0", "g1"]
    assert sorted(path.name for path in (root / "churn").iterdir()) == ["CURRENT", "g2"]


def test_prune_keeps_the_newest_and_what_is_served(root: Path) -> None:
    for number in range(1, 7):
        publish(root, f"g{number}", published_at=sample_generations.PUBLISHED.replace(hour=number))
    flip(root, "churn", "g2")
    with open_store(root / "churn" / "g1") as store:
        assert prune(root, "churn", keep=3) == ["g1", "g3"]
        assert store.get("5"), "a reader of a removed generation goes on"
    assert {path.name for path in _kept(root / "churn")} == {"CURRENT", "g2", "g4", "g5", "g6"}
    assert prune(root, "churn", keep=3) == []


def test_two_stores_of_one_generation_do_not_disturb_each_other(root: Path) -> None:
    folder = publish(root)
    first, second = open_store(folder), open_store(folder)
    first.close()
    assert second.get("5")
    second.close()


@pytest.mark.parametrize("point", sample_generations.POINTS)
def test_a_publisher_killed_at_any_point_leaves_the_old_generation_serving(root: Path, point: str) -> None:
    publish(root, "g1")
    with open_store(root / "churn" / "g1") as store:
        arguments = [sys.executable, sample_generations.__file__, str(root), "g2", point]
        publisher = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert publisher.stdout
        assert publisher.stdout.readline() == point + "\n"
        assert prune(root, "churn") == [], "a living publisher is left alone"
        assert len(list(_kept(root / "churn"))) == (4 if point == "mid_flip" else 3)
        publisher.kill()
        publisher.wait()
        publisher.stdout.close()
        assert current(root, "churn") == "g1"
        assert store.get("5")
    assert verify(root / "churn" / "g1").rows == 100
    prune(root, "churn")
    left = {path.name for path in _kept(root / "churn")}
    assert left == (
        {"CURRENT", "g1"} if point.endswith(("write", "features", "ranking", "rename")) else {"CURRENT", "g1", "g2"}
    )
    if "g2" in left:
        assert verify(root / "churn" / "g2").rows == 50_000, "what is visible is whole"
    else:
        assert publish(root, "g2"), "and the same generation can be published again"


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(root: Path) -> None:
    publish(root, "g1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(PublicationError, match=r"churn/g2 could not be written: .*"):
            publish(root, "g2", rows=50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in _kept(root / "churn")} == {"CURRENT", "g1"}
    assert current(root, "churn") == "g1"


def test_a_directory_that_cannot_be_written_is_one_clear_error(root: Path, tmp_path: Path) -> None:
    root.write_text("a file where the directory should be")
    with pytest.raises(PublicationError, match=r"churn/g1 could not be written: .*"):
        publish(root)


def test_a_missing_attachment_is_one_clear_error(root: Path) -> None:
    generation = a_generation()
    with pytest.raises(PublicationError, match=r"churn/g1 could not be written: .*absent\.cbm"):
        write(root, generation, customers(generation), {"model.cbm": root / "absent.cbm"})
    assert list(_kept(root / "churn")) == []


# --- What was found whole is not hashed again


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are hashed from here on."""
    files: list[str] = []

    def counted(file: Path) -> str:
        files.append(file.name)
        return sha256_of(file)

    monkeypatch.setattr("serving.generations.verified.sha256_of", counted)
    return files


def test_who_opens_a_generation_that_was_found_whole_does_not_hash_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(tmp_path, "g1")
    files = hashed(monkeypatch)
    open_store(folder).close()
    assert sorted(files) == sorted(read_manifest(folder).files)
    files.clear()
    open_store(folder).close()
    assert files == []
    verify(folder)
    assert sorted(files) == sorted(read_manifest(folder).files), "who asks for it is told the truth of now"


def test_a_file_that_was_changed_since_is_found_whatever_its_size_and_date_say(tmp_path: Path) -> None:
    folder = publish(tmp_path, "g1")
    open_store(folder).close()
    file = folder / "features.mdb"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(CorruptGeneration, match=r"g1/features\.mdb: its checksum is wrong"):
        open_store(folder)


def test_a_copy_is_hashed_for_itself_and_a_note_that_cannot_be_read_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(tmp_path / "a", "g1")
    open_store(folder).close()
    copy = tmp_path / "b" / "churn" / "g1"
    shutil.copytree(folder.parent, copy.parent)
    files = hashed(monkeypatch)
    open_store(copy).close()
    assert files, "its note was copied too, but its files are others"
    files.clear()
    (folder.parent / ".verified-g1").write_bytes(b'{"store.mdb": [1')
    open_store(folder).close()
    assert files


def test_the_notes_of_removed_generations_are_removed(tmp_path: Path) -> None:
    for name in ("g1", "g2", "g3"):
        open_store(publish(tmp_path, name)).close()
    prune(tmp_path, "churn", keep=1)
    assert [path.name for path in (tmp_path / "churn").glob(".verified-*")] == [".verified-g3"]
