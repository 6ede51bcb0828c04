"""The database's clock in SQL, which is the only one that leases and waits are measured by."""

from __future__ import annotations

from typing import Any

from sqlalchemy import DateTime, Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine


class now(GenericFunction[Any]):  # noqa: N801
    """The moment that it is, by the database's clock."""

    type: TypeEngine[Any] = DateTime(timezone=True)
    inherit_cache: bool = True
    name: str = "rabbitevents_now"


class at(GenericFunction[Any]):  # noqa: N801 - a function of SQL, named as those of `sqlalchemy.func` are
    """The moment so many seconds from now, by the database's clock; with fewer than none, one that is past."""

    type: TypeEngine[Any] = DateTime(timezone=True)
    inherit_cache: bool = True
    name: str = "rabbitevents_at"


class age(GenericFunction[float]):  # noqa: N801
    """How many seconds ago a moment was, by the database's clock."""

    type: TypeEngine[float] = Float()
    inherit_cache: bool = True
    name: str = "rabbitevents_age"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"  # microseconds, as SQLAlchemy writes them


@compiles(at, "postgresql")
def _at_postgresql(element: at, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(clock_timestamp() + CAST({_argument(element, compiler, **kw)} AS float) * interval '1 second')"


@compiles(at, "sqlite")
def _at_sqlite(element: at, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {_argument(element, compiler, **kw)} || ' seconds') || '000')"


@compiles(age, "postgresql")
def _age_postgresql(element: age, compiler: SQLCompiler, **kw: Any) -> str:
    return f"extract(epoch FROM clock_timestamp() - {_argument(element, compiler, **kw)})::float"


@compiles(age, "sqlite")
def _age_sqlite(element: age, compiler: SQLCompiler, **kw: Any) -> str:
    return f"((julianday('now') - julianday({_argument(element, compiler, **kw)})) * 86400.0)"


def _argument(element: GenericFunction[Any], compiler: SQLCompiler, **kw: Any) -> str:
    (argument,) = element.clauses
    said: ColumnElement[Any] = argument
    return compiler.process(said, **kw)
