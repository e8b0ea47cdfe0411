"""Column lineage of a dbt model: which columns of the tables it reads each of its own is made from.

dagster-dbt can derive it too, but through a dbt adapter loaded into this process (seconds, and a connection that stays
open and locks the warehouse for the next writer), and parses the model again for each column. This parses a model once.
"""

from collections.abc import Mapping

Columns = Mapping[str, str]


def column_lineage(sql: str, dialect: str, tables: Mapping[str, Columns]) -> dict[str, set[tuple[str, str]]]:
    """Column of a model -> the (table, column) pairs it is made from.

    `sql` is the compiled model, `tables` maps `schema.table` of each table it reads to its columns and their types.
    Raises `SqlglotError` if sqlglot can't make sense of it.
    """
    from sqlglot import exp, parse_one
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    schema: dict[str, dict[str, dict[str, str]]] = {}
    for read, columns in tables.items():
        in_schema, _, table = read.partition(".")
        schema.setdefault(in_schema, {})[table] = dict(columns)
    query = parse_one(sql, dialect=dialect)
    for table in query.find_all(exp.Table):
        table.set("catalog", None)
    qualified = qualify(query, dialect=dialect, schema=schema, validate_qualify_columns=False, identify=False)
    scope = build_scope(qualified)
    assert isinstance(qualified, exp.Query)
    # Quoted names come quoted, and all in lower case, which the warehouse does not tell apart.
    as_named = {table: {name.lower(): name for name in columns} for table, columns in tables.items()}
    made_from: dict[str, set[tuple[str, str]]] = {}
    for column in qualified.named_selects:
        found = made_from.setdefault(column, set())
        for node in lineage(column, qualified, schema=schema, dialect=dialect, scope=scope, trim_selects=False).walk():
            origin = node.expression.find(exp.Table) if not node.downstream else None
            table = f"{origin.db}.{origin.name}" if origin is not None else ""
            if table in tables:
                name = exp.to_column(node.name, dialect=dialect).name
                found.add((table, as_named[table].get(name.lower(), name)))
    return made_from
