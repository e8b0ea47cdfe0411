"""Every version has a card that says what it is and by whose word it scores customers, for people and for programs."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from ml import registry
from ml.cards import evaluated
from ml.declarations import Kind
from ml.evaluation import Moves
from ml.gate import GateResult
from ml.learning import Learning
from ml.registry import Card
from ml.slices import Slice
from ml.standing import Promotion, Standing, standing_of
from orchestration import versions
from orchestration.carding import git_commit, tell_versions
from orchestration.project import Paths
from reports import pictures
from reports.model_card import model_card
from serving.app import create_app
from serving.pages.model_cards import PAGE, VersionCard, card_file, read_versions
from tests.sample_generations import publish
from tests.small_data import a_candidate, a_model, a_score

WHEN = datetime(2024, 5, 1, 7, 0, tzinfo=UTC)
PASSED = GateResult("roc_auc >= 0.8", {"roc_auc": 0.8555}, True, "")
FAILED = GateResult("roc_auc >= 0.99", {"roc_auc": 0.8555}, False, "")
EVIL = "<script>alert(1)</script>"


@cache
def a_card(kind: Kind = "probability") -> Card:
    return evaluated(a_candidate(kind), a_model(kind).card)


def page_of(card: Card, standing: Standing | None = None, **changes: Any) -> str:
    return model_card(card, standing or Standing(gate=(PASSED,)), a_score(**changes), known_until="2024-04-29")


def chromium(*arguments: str) -> bytes:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout


def printed(page: str, folder: Path) -> bytes:
    (folder / "card.html").write_text(page)
    chromium(f"--print-to-pdf={folder / 'card.pdf'}", (folder / "card.html").as_uri())
    return (folder / "card.pdf").read_bytes()


# --- The page


@pytest.mark.parametrize("kind", ["probability", "amount"])
def test_a_card_is_complete_in_itself_and_small(kind: Kind) -> None:
    page = page_of(a_card(kind))
    assert page == page_of(a_card(kind)), "the same bytes each time"
    assert page.count('<svg class="picture"') == 3
    assert not re.search(r"<script|://|@import|url\((?!#)", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)
    assert len(page) < 200_000


@pytest.mark.browser
def test_a_printed_card_keeps_its_columns_and_tears_no_picture(tmp_path: Path) -> None:
    page = page_of(a_card())
    assert len(re.findall(rb"/Type /Page\b", printed(page, tmp_path))) <= 4


@pytest.mark.browser
def test_on_paper_what_is_folded_up_is_open(tmp_path: Path) -> None:
    page = page_of(a_card())
    tall = page.replace("</summary><ul>", '</summary><ul style="height: 6000px">')
    pages = [len(re.findall(rb"/Type /Page\b", printed(text, tmp_path))) for text in (page, tall)]
    assert pages[1] >= pages[0] + 4


@pytest.mark.browser
@pytest.mark.parametrize("champion", [{}, {"roc_auc": 0.8123}])
def test_a_table_of_a_card_is_not_cut_off_on_a_phone(champion: dict[str, float], tmp_path: Path) -> None:
    page = page_of(msgspec.structs.replace(a_card(), champion_version=2 if champion else None, champion=champion))
    measure = "<script>document.title = [...document.querySelectorAll('.scroll')].filter("
    measure += "e => e.scrollWidth > e.clientWidth).length + ' cut off'</script>"
    (tmp_path / "card.html").write_text(page + measure)
    frame = '<iframe src="card.html" style="width: 390px; height: 900px; border: 0"></iframe>'
    (tmp_path / "frame.html").write_text(
        frame + "<script>onload = () => { document.title = frames[0].document.title }</script>"
    )
    seen = chromium("--allow-file-access-from-files", "--dump-dom", (tmp_path / "frame.html").as_uri())
    assert b"<title>0 cut off</title>" in seen


def test_a_card_of_many_features_and_rows_stays_small() -> None:
    card = a_card()
    assert card.evaluation is not None
    values = tuple(place / 500 for place in range(500))
    wide = [
        Moves(feature=f"feature_{n}", type="number", contributions=tuple(v * (n - 10) for v in values), values=values)
        for n in range(20)
    ]
    evaluation = msgspec.structs.replace(card.evaluation, moves=tuple(wide))
    assert len(page_of(msgspec.structs.replace(card, evaluation=evaluation))) < 600_000


def test_a_card_says_what_the_version_is_and_how_good() -> None:
    card = msgspec.structs.replace(
        a_card(), champion_version=2, champion={"roc_auc": 0.8123}, commit="a" * 40 + "-dirty", trigger="new labels"
    )
    page = page_of(card, title="Leaving soon")
    for text in (
        "<h1>Leaving soon, version&nbsp;3</h1>",
        "Leaves within two weeks.",
        f"{card.metrics['roc_auc']:.4f}",
        f"{card.intervals['roc_auc'][0]:.4f} to {card.intervals['roc_auc'][1]:.4f}",
        card.baseline_name.replace("_", "_<wbr>"),
        "Version 2, champion then",
        "0.8123",
        "2024-01-01 to 2024-03-11",
        "2024-03-25 to 2024-04-15",
        "14 days after their as-of date",
        "Outcomes known until</td><td>2024-04-29",
        card.contract,
        "f" * 64,
        "with changes that were not committed",
        "Started by</td><td>new labels",
        f"catboost {card.libraries['catboost']}",
        "learning_rate 0.08",
        "customer_id × week",
    ):
        assert text in page, text


def test_a_card_shows_parameters_as_people_read_them() -> None:
    learned = {"learning_rate": 0.1038052603539033, "monotone_constraints": {"17": 1}, "allow_writing_files": False}
    page = page_of(msgspec.structs.replace(a_card(), params=learned | {"depth": 5, "thread_count": 2}))
    assert "Parameters</td><td>learning_rate 0.1038, depth 5</td>" in page
    assert "<td>Calibration</td>" in page
    assert "<td>Calibration</td>" not in page_of(a_card("amount")), "an amount is never calibrated"


def test_a_column_of_which_one_part_can_be_measured_is_named() -> None:
    card = a_card()
    assert card.evaluation is not None
    parts = (Slice(column="has_guarantor", value="false", rows=80, metrics={"roc_auc": 0.8}),)
    for others in ((), card.evaluation.slices):
        evaluation = msgspec.structs.replace(card.evaluation, slices=(*parts, *others))
        page = page_of(msgspec.structs.replace(card, evaluation=evaluation))
        assert "Of has_guarantor only one part can be measured" in page
        assert "<h3>has_<wbr>guarantor</h3>" not in page


def test_no_word_of_a_picture_lies_on_a_line() -> None:
    evaluation = a_card().evaluation
    assert evaluation is not None
    gains = pictures.gains_picture(
        "probability", msgspec.structs.replace(evaluation, gains={"score": (0.2, 0.37, 1.0)})
    )
    box = [float(number) for number in re.findall(r'viewBox="([^"]*)"', gains)[0].split()]
    x, y = map(float, re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>the highest 10 % hold', gains)[0])
    assert x > box[2] / 3 and y > 0.7 * box[3], "below the dashed line, not on it"
    for sign, side in ((1, "end"), (-1, "start")):
        shifted = [
            msgspec.structs.replace(one, contributions=tuple(sign * abs(by) for by in one.contributions))
            for one in evaluation.moves
        ]
        drawn = pictures.moves_picture(shifted, "")
        names = re.findall(r"<text ([^>]*)>" + evaluation.moves[0].feature + "<", drawn)
        assert names and ("text-anchor: end" in names[0]) == (side == "end"), "off the line of zero"


@pytest.mark.parametrize(("kind", "told"), [("probability", True), ("amount", False)])
def test_a_card_says_which_parts_of_the_customers_are_left_out(kind: Kind, told: bool) -> None:
    card = a_card(kind)
    assert card.evaluation is not None
    parts = tuple(
        Slice(column="region", value=value, rows=80, metrics={"roc_auc": 0.8, "r2": 0.5})
        for value in ("north", "south")
    )
    page = page_of(msgspec.structs.replace(card, evaluation=msgspec.structs.replace(card.evaluation, slices=parts)))
    assert "parts of fewer than 50 rows" in page
    assert ("or of fewer than 10 of either outcome" in page) == told


def test_a_card_begins_with_the_verdict_and_ends_with_who_promoted_it() -> None:
    forced = Promotion(version=3, how="force", reason="the season", by="ada", replaced_version=2, promoted_at=WHEN)
    page = page_of(a_card(), Standing(gate=(PASSED, FAILED), champion="now", promotions=(forced,)))
    assert re.search(r"Refused by its gate</h2>\s*<p>It is the champion", page)
    assert page.count('aria-label="passed">✓') == page.count('aria-label="failed">✗') == 1
    for text in ("roc_auc &gt;= 0.99", "roc_auc 0.8555", "<td>force</td><td>ada</td><td>the season</td>", "version 2"):
        assert text in page, text
    never = page_of(a_card(), Standing())
    assert "Not judged yet" in never and "It has never scored customers." in never and "Nobody" in never


def test_what_can_not_be_measured_is_a_dash_and_breaks_nothing() -> None:
    nowhere = dict.fromkeys(a_card().metrics, float("nan"))
    page = page_of(msgspec.structs.replace(a_card(), metrics=nowhere, baseline=nowhere, intervals={}))
    assert ">–<" in page and ">nan" not in page


def test_a_card_of_before_there_were_pictures_has_a_page() -> None:
    old = page_of(a_model().card)
    assert "before cards had pictures" in old and "<svg" not in old


def test_a_category_is_shown_with_its_confusion_and_a_curve_for_each_class() -> None:
    card = a_card()
    assert card.evaluation is not None
    bins, gains = card.evaluation.bins["score"], card.evaluation.gains["score"]
    evaluation = msgspec.structs.replace(
        card.evaluation,
        bins={"gold": bins, "<b>$x$": bins},
        gains={"gold": gains, "<b>$x$": gains},
        confusion=((30, 4), (6, 40), (0, 2)),
        slices=(),
    )
    metrics = {"balanced_accuracy": 0.8, "accuracy": 0.81, "log_loss": 0.4}
    page = page_of(
        msgspec.structs.replace(
            card,
            kind="category",
            classes=("gold", "<b>$x$"),
            metrics=metrics,
            evaluation=evaluation,
            rates={"train gold": 0.4, "train <b>$x$": 0.6},
        )
    )
    assert page.count("<td style=") == 6 and "another class" in page
    assert "train gold 40 %" in page
    assert page.count("&lt;b&gt;$x$</text>") == 2, "in the legends of both curves, as it is"
    assert "<b>$x$" not in page


def test_a_card_tells_of_newest_training_dates_whose_outcomes_overlap_with_the_earlier_ones() -> None:
    told = "whose outcomes overlap in time with those of the earlier ones"
    assert told in page_of(msgspec.structs.replace(a_card(), validation_overlaps=True))
    assert told not in page_of(a_card())


def test_the_trials_of_a_search_are_listed_best_first_with_what_was_declared() -> None:
    search = tuple({"depth": float(depth), "loss": 1 / depth} for depth in range(1, 31))
    learning = Learning(trials=30, params={"depth": 4}, train_on_days=84, monotone={"spend": "increasing"})
    page = page_of(msgspec.structs.replace(a_card(), search=search, learning=learning))
    assert "30 trials, the least loss first; the best 20." in page
    first = page.partition(' id="search"')[2]
    assert re.findall(r'<td class="right">([^<]*)</td>', first)[:3] == ["1", "30", "0.0333"]
    assert "<td>30</td>" in page
    unjudged = page_of(msgspec.structs.replace(a_card(), search=(), learning=learning))
    assert "<td>30: none, as the training rows have no newest dates to judge them on</td>" in unjudged
    assert "the last 84 days" in page and "spend increasing" in page and "depth 4" in page


def test_texts_of_owners_and_customers_are_text_and_not_html() -> None:
    page = page_of(
        msgspec.structs.replace(a_card(), baseline_name=EVIL, commit=EVIL, trigger=EVIL),
        Standing(promotions=(Promotion(version=3, how=EVIL, reason=EVIL, by=EVIL, promoted_at=WHEN),)),
        title=EVIL,
        description=EVIL,
        owner=EVIL,
    )
    assert "<script" not in page and page.count("&lt;script&gt;") >= 9


# --- Its files


@pytest.fixture
def where(tmp_path: Path) -> Paths:
    return Paths(project=tmp_path, data=tmp_path / "data")


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        versions.create_tables(connection)
        yield connection


def a_version(
    connection: duckdb.DuckDBPyConnection, where: Paths, number: int, *gate: GateResult, card: Card | None = None
) -> None:
    """A version, trained and judged."""
    made = msgspec.structs.replace(card or a_model().card, version=number, trained_at=WHEN + timedelta(days=number))
    saved = registry.save(where.models / "leaving" / str(number), a_model().booster, made)
    versions.record_version(connection, saved, "engine")
    versions.record_gate(connection, a_score(), number, gate)


def folder(where: Paths) -> Path:
    return where.reports / "leaving" / "versions"


def test_every_version_has_a_card_also_a_refused_one_and_is_told_once(
    connection: duckdb.DuckDBPyConnection, where: Paths
) -> None:
    a_version(connection, where, 1, PASSED, card=a_card())
    a_version(connection, where, 2, FAILED)
    assert tell_versions(connection, a_score(), where) == [2, 1]
    told = read_versions(where.reports, "leaving")
    assert told is not None
    assert [(line.version, line.verdict, line.champion, line.failed) for line in told.versions] == [
        (2, "refused", "never", ("roc_auc >= 0.99",)),
        (1, "passed", "now", ()),
    ]
    assert told.versions[1].interval == a_card().intervals["roc_auc"]
    assert "Refused by its gate" in (folder(where) / "2" / "card.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in folder(where).rglob("*")}
    assert tell_versions(connection, a_score(), where) == []
    assert {path: path.stat().st_mtime_ns for path in folder(where).rglob("*")} == before


def test_a_card_is_written_anew_where_what_it_says_has_changed(
    connection: duckdb.DuckDBPyConnection, where: Paths
) -> None:
    a_version(connection, where, 1, PASSED)
    assert tell_versions(connection, a_score(), where) == [1]
    a_version(connection, where, 2, PASSED)
    assert tell_versions(connection, a_score(), where) == [2, 1], "version 1 is champion no more"
    assert "when version 2 passed its gate." in (folder(where) / "1" / "card.html").read_text()
    assert tell_versions(connection, a_score(title="Gone"), where) == [2, 1]
    (folder(where) / "2" / "card.html").unlink()
    assert tell_versions(connection, a_score(title="Gone"), where) == [2]


def test_a_version_whose_files_are_damaged_keeps_its_card_and_stops_no_other(
    connection: duckdb.DuckDBPyConnection, where: Paths
) -> None:
    a_version(connection, where, 1, PASSED)
    a_version(connection, where, 2, FAILED)
    tell_versions(connection, a_score(), where)
    (where.models / "leaving" / "2" / "card.json").unlink()
    a_version(connection, where, 3, FAILED)
    (where.models / "leaving" / "3" / "card.json").write_text("{}")
    a_version(connection, where, 4, FAILED)
    assert tell_versions(connection, a_score(), where) == [4]
    told = read_versions(where.reports, "leaving")
    assert told is not None and [line.version for line in told.versions] == [4, 2, 1]


def test_a_champion_whose_card_was_changed_is_listed_as_what_it_is(
    connection: duckdb.DuckDBPyConnection, where: Paths
) -> None:
    a_version(connection, where, 1, PASSED)
    tell_versions(connection, a_score(), where)
    (where.models / "leaving" / "1" / "card.json").write_text("{}")
    a_version(connection, where, 2, FAILED)
    for champion, reigns in ((1, ["never", "now"]), (2, ["now", "before"])):
        if champion == 2:
            versions.promote(connection, a_score(), 2, "force", "a reason")
        assert tell_versions(connection, a_score(), where) == [2]
        told = read_versions(where.reports, "leaving")
        assert told is not None and [line.champion for line in told.versions] == reigns
        assert card_file(where.reports, "leaving", "1", PAGE), "its page stays"


def test_a_log_of_promotions_says_who_and_why(connection: duckdb.DuckDBPyConnection, where: Paths) -> None:
    a_version(connection, where, 1, PASSED)
    connection.execute(
        """
        delete from ml.promotions;
        insert into ml.promotions values
            ('leaving', 1, 'gate', null, null, null, '2024-05-01 07:00+00'),
            ('leaving', 1, 'force', 'back to the old one', 'ada', 2, '2024-05-03 07:00+00'),
            ('other', 1, 'force', 'another score', 'bob', 2, '2024-05-03 07:00+00');
        """
    )
    tell_versions(connection, a_score(), where)
    page = (folder(where) / "1" / "card.html").read_text()
    assert page.index("back to the old one") < page.index("it passed its gate")
    assert "ada" in page and "bob" not in page
    data = msgspec.json.decode((folder(where) / "1" / "card.json").read_bytes(), type=VersionCard)
    assert [promotion.how for promotion in data.standing.promotions] == ["force", "gate"]


def test_the_card_of_a_version_that_was_taken_back_says_when_by_whom_and_why(
    connection: duckdb.DuckDBPyConnection, where: Paths
) -> None:
    a_version(connection, where, 1, PASSED)
    a_version(connection, where, 2, PASSED)
    back = versions.promote(connection, a_score(), 1, "rollback", "scores too low")
    tell_versions(connection, a_score(), where)
    page = (folder(where) / "2" / "card.html").read_text()
    until, by = f"{back['promoted_at']:%Y-%m-%d %H:%M} UTC", versions.user()
    assert f"It was champion until {until}, when {by} put version 1 in its place by rollback: scores too low" in page
    assert page.index("version 1 replaced it") < page.index("<td>gate</td>"), "beside its own promotion"
    data = msgspec.json.decode((folder(where) / "2" / "card.json").read_bytes(), type=VersionCard)
    assert data.standing.ended is not None and data.standing.ended.reason == "scores too low"
    again = (folder(where) / "1" / "card.html").read_text()
    assert "It is the champion" in again and "replaced it" not in again


def test_a_version_stands_as_its_gate_and_its_promotions_say() -> None:
    promotions = [
        Promotion(version=1, how="gate", promoted_at=WHEN),
        Promotion(version=2, how="gate", promoted_at=WHEN),
    ]
    assert standing_of(1, [PASSED], promotions, 2).champion == "before"
    assert standing_of(2, [PASSED, FAILED], promotions, 2).champion == "now"
    assert standing_of(3, [], promotions, 2) == Standing()
    assert [standing_of(1, gate, [], None).verdict for gate in ([], [PASSED], [PASSED, FAILED])] == [
        "not judged",
        "passed",
        "refused",
    ]


def test_programs_are_told_all_that_a_card_holds_but_how_rows_are_encoded() -> None:
    held = set(Card.__struct_fields__) - {"encoder", "card_sha256"}
    assert held <= set(VersionCard.__struct_fields__)


def test_the_commit_is_that_of_the_repository_and_says_where_files_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    project = tmp_path / "project"
    project.mkdir()
    assert git_commit(project) is None, "no repository"
    git("init", "--quiet")
    assert git_commit(project) is None, "no commit"
    (project / "model.sql").write_text("select 1")
    git("add", "-A")
    git("commit", "--quiet", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert git_commit(project) == commit
    (project / "model.sql").write_text("select 2")
    assert git_commit(project) == f"{commit}-dirty"
    git("checkout", "--quiet", ".")
    (project / "new.sql").write_text("select 3")
    assert git_commit(project) == f"{commit}-dirty"
    assert git_commit(tmp_path / "nowhere") is None


# --- The API and the pages


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient[Litestar]]:
    """A score with a refused version 2 and the champion 1, published; one without any card, and one never published."""
    where = Paths(project=Path(), data=tmp_path_factory.mktemp("cards"))
    with duckdb.connect() as connection:
        versions.create_tables(connection)
        a_version(connection, where, 1, PASSED, card=a_card())
        a_version(connection, where, 2, FAILED)
        tell_versions(connection, a_score(), where)
    publish(where.generations, score="leaving")
    publish(where.generations, score="new")
    (where.reports / "refused" / "versions").mkdir(parents=True)
    listed = (where.reports / "leaving" / "versions" / "versions.json").read_bytes().replace(b"leaving", b"refused")
    (where.reports / "refused" / "versions" / "versions.json").write_bytes(listed)
    with TestClient(create_app(where.data)) as client:
        yield client


def test_the_api_lists_versions_and_gives_the_card_of_each(client: TestClient[Litestar]) -> None:
    answer = client.get("/scores/leaving/versions")
    assert answer.status_code == 200
    refused, champion = answer.json()["versions"]
    assert (refused["version"], refused["verdict"], refused["failed"]) == (2, "refused", ["roc_auc >= 0.99"])
    assert (champion["version"], champion["champion"], champion["metric"]) == (1, "now", "roc_auc")
    card = client.get("/scores/leaving/versions/1")
    assert card.headers["content-type"] == "application/json"
    told = msgspec.json.decode(card.content, type=VersionCard)
    assert told.evaluation == a_card().evaluation and told.intervals == a_card().intervals
    assert (told.verdict, told.standing.gate, told.commit) == ("passed", (PASSED,), None)
    assert client.get("/scores/refused/versions").status_code == 200, "a score that was never published"


@pytest.mark.parametrize(
    ("path", "detail", "extra"),
    [
        ("leaving/versions/9", "no version 9. Known versions: 2, 1.", {"known_versions": [2, 1]}),
        pytest.param(f"leaving/versions/{'9' * 300}", "99…. Known", {"known_versions": [2, 1]}, id="300 digits"),
        ("nobody/versions", "Unknown score 'nobody'", {"known_scores": ["leaving", "new", "refused"]}),
        ("nobody/versions/1", "Unknown score 'nobody'", {"known_scores": ["leaving", "new", "refused"]}),
        ("..%2fleaving/versions", "Nothing is at", {}),
        ("new/versions", "no model cards yet", {}),
    ],
)
def test_what_is_not_known_is_a_problem_that_says_what_is(
    client: TestClient[Litestar], path: str, detail: str, extra: dict[str, Any]
) -> None:
    answer = client.get(f"/scores/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in answer.json()["detail"]
    assert answer.json().items() >= extra.items()


@pytest.mark.parametrize("sent", ["+1", "01", "1%20", "%201", "%D9%A1", "1_0", "0", "-1"])
def test_a_card_has_one_address(client: TestClient[Litestar], sent: str) -> None:
    for path in (f"/scores/leaving/versions/{sent}", f"/models/leaving/{sent}"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "Known versions: 2, 1." in answer.text
    assert client.get("/scores/leaving/versions/1").status_code == 200


def test_the_page_of_a_score_links_to_the_card_of_each_version(client: TestClient[Litestar]) -> None:
    page = client.get("/pages/leaving").text
    assert set(re.findall(r'href="(/models/[^"]*)"', page)) == {"/models/leaving/1", "/models/leaving/2"}
    low, high = a_card().intervals["roc_auc"]
    for text in (">refused</span>", ">passed</span>", '<b class="small">champion</b>', f"{low:.4f} to {high:.4f}"):
        assert text in page, text
    assert "failed <code>roc_<wbr>auc &gt;= 0.99</code></td>" in page, "why it was refused"
    assert "Versions" not in client.get("/pages/new").text
    reports = client.get("/reports").text
    assert 'href="/models/leaving/2"' in reports and "refused" in reports


def test_a_card_is_served_without_scripts_and_shut_off_from_everything(client: TestClient[Litestar]) -> None:
    answer = client.get("/models/leaving/2")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;") and "script" not in policy
    assert answer.headers["content-encoding"] == "gzip"
    assert "Refused by its gate" in answer.text


def test_a_card_that_is_served_leads_back_and_its_file_stays_as_it_is(client: TestClient[Litestar]) -> None:
    served = client.get("/models/leaving/2").text
    back = re.findall(r'<a href="(/[^"]*)"', served)
    assert back == ["/pages/leaving", "/pages/leaving#versions", "/reports"]
    assert all(client.get(link).status_code == 200 for link in back)
    nav = re.search(r"<body>(<style.*</nav>)", served, re.DOTALL)
    assert nav and "way-back" in nav[1] and 'media="print"' in nav[1]
    assert 'id="versions"' in client.get("/pages/leaving").text


MISSING = ["leaving/9", "leaving/x", "leaving/²", "nobody/1", "..%2fleaving/1", "leaving/01x"]
LONG = [pytest.param(f"leaving/{'9' * digits}", id=f"{digits} digits") for digits in (300, 3000)]


@pytest.mark.parametrize("path", [*MISSING, *LONG])
def test_a_card_that_is_not_there_is_said_to_be_missing(client: TestClient[Litestar], path: str) -> None:
    answer = client.get(f"/models/{path}")
    assert answer.status_code == 404
    if path.startswith("leaving"):
        assert "Known versions: 2, 1." in answer.text
