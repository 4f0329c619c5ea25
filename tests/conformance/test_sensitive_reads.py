"""Law: every read that is on the list of sensitive ones leaves who read in the audit log, through each of its doors; a look leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from api_world import api_world
from console_world import ConsoleWorld, console_world
from service_fleet import ManualClock
from two_places import TwoPlaces
from umbel_server.access.actor import Role, local_actor
from umbel_server.access.permissions import HELD
from umbel_server.access.reads import ONCE_S, Read
from umbel_server.monitor.opener import ITSELF, Opener
from umbel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class Doors:
    """A fleet at hand, at its API, and a console of another one."""

    both: TwoPlaces
    console: ConsoleWorld


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    root = tmp_path_factory.mktemp("reads")
    with (
        api_world(root / "api", clock=ManualClock()) as made,
        console_world(root / "console") as console,
    ):
        console.device("rose")
        both = TwoPlaces(made.fleet, made.store, made.clock, made.client)
        both.path = root
        both.tokens = {"root": made.token(made.user("root", Role.ADMIN), HELD[Role.ADMIN])}
        yield Doors(both, console)


def opens(at: Doors) -> None:
    turns = iter([False, True])
    fleet = at.both.fleet
    Opener(at.both.store, fleet.telemetry_private()).run(lambda _: next(turns), poll_s=0)


def runs(words: str, where: str = "here") -> Callable[[Doors], None]:
    def read(at: Doors) -> None:
        at.both.run(words, where)

    return read


def asks(path: str) -> Callable[[Doors], None]:
    def read(at: Doors) -> None:
        assert at.both.call(at.both.tokens["root"], "GET", path).status_code == 200

    return read


def asks_in_the_middle(at: Doors) -> None:
    token = at.both.tokens["root"]
    cursor = at.both.call(token, "GET", "/audit", params={"limit": 1}).json()["next"]
    assert cursor is not None
    query = {"oldest_first": "true", "cursor": cursor}
    assert at.both.call(token, "GET", "/audit", params=query).status_code == 200


def downloads(path: str) -> Callable[[Doors], None]:
    def read(at: Doors) -> None:
        assert at.console.signed_in(Role.ADMIN).get(path).status_code == 200

    return read


ITS = ITSELF.name
AT_HAND = local_actor().name
READS: Mapping[Read, Mapping[str, tuple[Callable[[Doors], None], str]]] = {
    Read.TELEMETRY_KEY: {"service": (opens, ITS)},
    Read.TELEMETRY: {
        "command": (runs("fleet telemetry --json"), AT_HAND),
        "console": (downloads("/devices/rose?format=json"), ""),
        "console, as CSV": (downloads("/devices/rose?format=csv"), ""),
    },
    Read.BACKUP: {"command": (lambda at: at.both.run("fleet backup {path}/copy.tar", "here"), AT_HAND)},
    Read.AUDIT: {
        "command": (runs("audit export"), AT_HAND),
        "command, as CSV": (runs("audit export --csv"), AT_HAND),
        "command, far": (runs("audit export", "far"), "root"),
        "API": (asks("/audit?oldest_first=true&limit=1"), "root"),
        "API, in the middle": (asks_in_the_middle, "root"),
        "console": (downloads("/audit?format=json"), ""),
        "console, as CSV": (downloads("/audit?format=csv"), ""),
    },
    Read.REVIEWS: {
        "command": (runs("fleet review list --json"), AT_HAND),
        "command, far": (runs("fleet review list --json", "far"), "root"),
        "API": (asks("/reviews"), "root"),
        "console": (downloads("/reviews?format=json"), ""),
        "console, as CSV": (downloads("/reviews?format=csv"), ""),
    },
}
LOOKS = (
    runs("fleet telemetry"),
    runs("fleet telemetry --sum", "far"),
    runs("audit list"),
    runs("fleet review list"),
    downloads("/audit"),
    downloads("/reviews"),
    downloads("/devices/rose"),
    downloads("/devices/rose/latency.json"),
)


def reads_of(store: Store) -> list[tuple[str, str]]:
    return [(each.action, each.actor) for each in store.audit.all() if each.action in set(Read)]


def test_every_read_of_the_list_has_doors_here() -> None:
    assert set(READS) == set(Read)


@pytest.mark.parametrize(
    ("read", "door"), [(read, door) for read, through in READS.items() for door in through], ids=str
)
def test_a_sensitive_read_is_on_record_once_with_who_read(doors: Doors, read: Read, door: str) -> None:
    go, actor = READS[read][door]
    store = doors.console.store if door.startswith("console") else doors.both.store
    doors.both.clock.advance(ONCE_S + 1)
    doors.console.clock.advance(ONCE_S + 1)
    before = len(reads_of(store))
    go(doors)
    [(action, who)] = reads_of(store)[before:]
    assert action == read
    assert who == actor or (not actor and who in {each.name for each in store.accounts.all()})


def test_a_look_at_a_table_is_not_on_record(doors: Doors) -> None:
    doors.both.clock.advance(ONCE_S + 1)
    before = reads_of(doors.both.store), reads_of(doors.console.store)
    for look in LOOKS:
        look(doors)
    assert (reads_of(doors.both.store), reads_of(doors.console.store)) == before


def test_a_log_read_page_by_page_is_one_entry_and_ends(doors: Doors) -> None:
    doors.both.clock.advance(ONCE_S + 1)
    before = len(reads_of(doors.both.store))
    cursor: str | None = ""
    pages = 0
    while cursor is not None:
        query = {"oldest_first": "true", "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = doors.both.call(doors.both.tokens["root"], "GET", "/audit", params=query).json()
        cursor, pages = page["next"], pages + 1
    assert pages > 1
    assert len(reads_of(doors.both.store)) == before + 1


def test_the_specification_names_each_of_them() -> None:
    text = (Path(__file__).parents[2] / "docs" / "spec" / "audit.md").read_text()
    told = text[text.index("## 4. Reads that are on record") :]
    assert [read.value for read in Read if f"| `{read.value}` |" not in told] == []
