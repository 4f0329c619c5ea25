"""``umbel fleet store``: where the store is and what is in it, and how it moves into PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from umbel_server.fleet.layout import FleetDir
from umbel_server.terminal import JsonOption, print_json, print_table

store = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="See where the store is and what is in it, bring it up to date, copy it into PostgreSQL.",
)

FleetOption = Annotated[
    Path, typer.Option("--fleet", envvar="UMBEL_FLEET", help="The fleet's directory.", show_default=False)
]


@store.command()
def show(directory: FleetOption, as_json: JsonOption = False) -> None:
    """Show where the store is, its schema, and how many rows it has. Changes nothing."""
    from sqlalchemy import func, inspect, select

    from umbel_server.store.database import Database
    from umbel_server.store.schema import HEAD, schema_of
    from umbel_server.store.tables import metadata

    # Every subject brings its tables.
    import umbel_server.store.store  # noqa: F401  # isort: skip

    database = Database(FleetDir.open(directory).store_place())
    try:
        schema = schema_of(database)
        with database.read() as connection:
            present = set(inspect(connection).get_table_names())
            rows = {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
                if table.name in present
            }
    finally:
        database.close()
    if as_json:
        print_json({"store": database.name, "schema": schema, "newest": HEAD, "rows": rows})
        return
    typer.echo(f"{database.name}: schema {schema or 'none'}, this umbel's is {HEAD}.")
    if schema != HEAD:
        typer.echo("Bring it up to date with  umbel fleet store upgrade, or by starting a service.")
    print_table(("table", "rows"), [(name, str(count)) for name, count in sorted(rows.items())])


@store.command()
def upgrade(directory: FleetOption, as_json: JsonOption = False) -> None:
    """Bring the store's tables up to date, as every service does when it starts. Killed, it leaves them as they were."""
    from umbel_server.store.schema import HEAD

    with FleetDir.open(directory).open_store() as opened:
        name = opened.database.name
    if as_json:
        print_json({"store": name, "schema": HEAD})
        return
    typer.echo(f"{name} is up to date: schema {HEAD}.")


@store.command()
def check(directory: FleetOption, as_json: JsonOption = False) -> None:
    """Look through all of the store for damage, which of a large file takes minutes. Services may run."""
    with FleetDir.open(directory).open_store() as opened:
        database = opened.database
        with database.read() as connection:
            database.kind.check_all(connection)
    if as_json:
        print_json({"store": database.name, "damaged": False})
        return
    typer.echo(f"{database.name} is not damaged.")


@store.command()
def copy(
    directory: FleetOption,
    to: Annotated[
        str, typer.Option(help="postgresql://USER@HOST/DATABASE, without a password.", show_default=False)
    ] = "",
    to_file: Annotated[
        Path | None,
        typer.Option(
            help="A file that has the URL, password and all.", exists=True, dir_okay=False, show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the store into an empty PostgreSQL database, and see that the copy is the same. Stop the services first."""
    from umbel_proto.errors import UsageError
    from umbel_server.files import read_file
    from umbel_server.store.copying import copy_store
    from umbel_server.store.database import Database
    from umbel_server.store.postgresql import postgresql_url
    from umbel_server.store.settings import url_without_password

    if bool(to) == (to_file is not None):
        raise UsageError("Say where to copy the store: --to URL, or --to-file FILE if it needs a password.")
    if to_file is None:
        url = url_without_password(to)
    else:
        url = postgresql_url(read_file(to_file, "URL").decode(errors="replace"))
    with FleetDir.open(directory).open_store() as source:
        target = Database(url)
        try:
            tables = copy_store(source.database, target, progress=_progress)
        finally:
            target.close()
    if as_json:
        print_json({"store": target.name, "tables": [asdict(each) for each in tables]})
        return
    print_table(
        ("table", "rows", "sum of hashes"),
        [(each.table, str(each.rows), each.sha256[:16]) for each in tables],
    )
    typer.echo(f"{target.name} has all {sum(each.rows for each in tables)} rows, the same when read back.")
    typer.echo("Now name it in [store] of fleet.toml, and start the services.")


def _progress(table: str, rows: int) -> None:
    if rows % 100_000 == 0:
        typer.echo(f"{table}: {rows} rows ...", err=True)
