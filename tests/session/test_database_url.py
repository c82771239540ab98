"""Which database is migrated: the environment is read as the product and libpq read it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.database import Database
from tests.support.server import start_server
from usage_rollup.errors import ConfigurationError
from usage_rollup.session.database_url import GO_PARAMETERS, conninfo_from_environment

FIELD_URL = "postgres://multica:secret@db.example:5432/multica?sslmode=disable"


def parsed(url: str) -> dict[str, object]:
    return dict(conninfo_to_dict(conninfo_from_environment({"DATABASE_URL": url})))


def current(database: Database, **environ: str) -> str:
    result = database.alembic("current", **environ)
    assert result.returncode == 0, result.stdout
    return result.stdout.splitlines()[-1]


def refusal(**environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        conninfo_from_environment(environ)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_scheme_names_the_same_database(scheme: str) -> None:
    assert parsed(FIELD_URL.replace("postgres", scheme, 1)) == {
        "user": "multica",
        "password": "secret",
        "host": "db.example",
        "port": "5432",
        "dbname": "multica",
        "sslmode": "disable",
    }


def test_key_value_string_passes_as_it_is() -> None:
    value = r"host=db.example dbname=multica user=multica password='it\'s quoted'"
    assert conninfo_from_environment({"DATABASE_URL": value}) == value


def test_key_value_string_may_hold_what_looks_like_a_url() -> None:
    assert parsed("host=db.example dbname=multica password=a://b")["password"] == "a://b"


def test_surrounding_white_space_is_ignored() -> None:
    assert parsed(f"  {FIELD_URL}\n") == parsed(FIELD_URL)


def test_migration_database_url_wins() -> None:
    conninfo = conninfo_from_environment(
        {"DATABASE_URL": FIELD_URL, "MIGRATION_DATABASE_URL": "postgres://direct.example/multica"}
    )
    assert conninfo_to_dict(conninfo) == {"host": "direct.example", "dbname": "multica"}


def test_empty_migration_database_url_counts_as_not_set() -> None:
    conninfo = conninfo_from_environment({"DATABASE_URL": FIELD_URL, "MIGRATION_DATABASE_URL": " "})
    assert conninfo_to_dict(conninfo)["host"] == "db.example"


def test_pool_parameters_are_dropped_with_one_warning_that_names_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = "&".join(f"{name}=5" for name in sorted(GO_PARAMETERS))
    with caplog.at_level(logging.WARNING):
        assert parsed(f"{FIELD_URL}&{pool}") == parsed(FIELD_URL)
    (warning,) = caplog.messages
    assert all(name in warning for name in GO_PARAMETERS)
    assert "DATABASE_URL" in warning
    assert "secret" not in warning


def test_url_without_pool_parameters_warns_of_nothing_and_is_kept_verbatim(
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = FIELD_URL + "&application_name=a%20b+c&target_session_attrs=read-write"
    assert conninfo_from_environment({"DATABASE_URL": url}) == url.replace("postgres", "postgresql", 1)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "parameter",
    [
        "sslmode=disable",
        "application_name=my%20app",
        "application_name=a+b",
        "application_name=a%2Bb%26c%3Dd",
        "options=-c%20statement_timeout%3D5s%20-c%20work_mem%3D8MB",
        "options=-c+geqo%3Doff",
        "passfile=%2Fhome%2Fme%2F.pgpass",
        "connect_timeout=7&keepalives=0",
    ],
)
@pytest.mark.parametrize("place", ["u:p%40ss%2Fw%25@db.example:5432", "u@h1:5432,h2:5433", "[::1]:5432", ""])
def test_other_parameters_mean_the_same_beside_pool_parameters(place: str, parameter: str) -> None:
    url = f"postgres://{place}/multica?"
    expected = parsed(url + parameter)
    assert parsed(f"{url}{parameter}&pool_max_conns=4&pool_max_conn_lifetime=1h30m") == expected
    assert parsed(f"{url}pool_max_conns=4&{parameter}&pool_max_conn_lifetime=1h30m") == expected


def test_socket_directory_survives_pool_parameters() -> None:
    url = "postgres:///multica?host=/var/run/postgresql&port=5433"
    assert parsed(f"{url}&pool_min_conns=1") == {
        "dbname": "multica",
        "host": "/var/run/postgresql",
        "port": "5433",
    }


@pytest.mark.parametrize("variable", ["PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE"])
def test_libpq_variables_suffice_without_a_url(variable: str) -> None:
    assert conninfo_from_environment({variable: "somewhere"}) == ""


@pytest.mark.parametrize("environ", [{}, {"PGUSER": "me", "PGPORT": "5432"}, {"DATABASE_URL": "  "}])
def test_nothing_set_is_refused_with_the_way_to_set_it(environ: dict[str, str]) -> None:
    message = refusal(**environ)
    assert "DATABASE_URL is not set" in message
    assert "HINT: export DATABASE_URL='postgres://user:password@host:5432/" in message
    assert "PGSERVICE" in message


@pytest.mark.parametrize("scheme", ["mysql", "http", "postgresql+asyncpg", "sqlite"])
@pytest.mark.parametrize("variable", ["DATABASE_URL", "MIGRATION_DATABASE_URL"])
def test_other_scheme_is_refused_by_name(scheme: str, variable: str) -> None:
    message = refusal(**{variable: FIELD_URL.replace("postgres", scheme, 1)})
    assert message.startswith(f"{variable} is not a PostgreSQL URL: its scheme is '{scheme}'")
    assert "HINT: use postgres://" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "value",
    [
        "postgres://u:secret%@h/db",
        "postgres://u:secret%zz@h/db",
        "postgres://u:secret@h/db?sslmode",
        "postgres://u:secret@h/db?secret%20word=1",
        "postgres://u:sec@ret/db?secret=1@h",
        "postgres://u:secret@[::1/db",
        "postgres://u:secret@[::1/db?pool_max_conns=4",
        "postgres://u:sec\u2100ret@[::1/db",
        "host=h =secret",
        "host=h passwrd=secret",
        "host=h password=a secret=1",
        "c2VjcmV0secret==",
        "host=h password='secret",
        "secret",
    ],
)
def test_what_libpq_cannot_parse_is_refused_without_quoting_it(value: str) -> None:
    message = refusal(DATABASE_URL=value)
    assert message.startswith("DATABASE_URL cannot be parsed")
    assert "percent-encode" in message
    assert "ecret" not in message
    assert "sec" not in message


@pytest.mark.parametrize(
    "name", ["timezone", "statement_timeout", "lock_timeout", "search_path", "SEARCH_PATH"]
)
@pytest.mark.parametrize(
    "form", [FIELD_URL + "&{}={}", "host=db.example dbname=multica password=secret {} = {}"]
)
def test_settings_of_the_session_are_dropped_with_one_warning_that_names_them(
    caplog: pytest.LogCaptureFixture, name: str, form: str
) -> None:
    # To the product's driver every name it does not know is one.
    with caplog.at_level(logging.WARNING):
        found = parsed(form.format(name, "public"))
    assert found == parsed(form.split("&{}")[0].replace(" {} = {}", ""))
    assert caplog.messages == [f"DATABASE_URL: ignoring settings of the session: {name}"]


def test_key_value_string_loses_what_the_go_driver_alone_knows(caplog: pytest.LogCaptureFixture) -> None:
    value = r"host=h pool_max_conns=4 password='it\'s  a \\' default_query_exec_mode='exec' user = u"
    with caplog.at_level(logging.WARNING):
        assert parsed(value) == {"host": "h", "password": "it's  a \\", "user": "u"}
    (warning,) = caplog.messages
    assert warning.endswith("parameters of the Go pool: default_query_exec_mode, pool_max_conns")


@pytest.mark.parametrize("form", ["postgres://h/db?database=other", "host=h dbname=db database=other"])
def test_database_is_the_drivers_other_name_of_dbname(form: str) -> None:
    assert parsed(form) == {"host": "h", "dbname": "other"}


@pytest.mark.parametrize("path", ["app", "app,public", '"$user",app', "pg_catalog", ""])
@pytest.mark.parametrize(
    "form",
    [
        "postgres://u:secret@h/db?search_path={}",
        "host=h password=secret search_path='{}'",
        "postgres://u:secret@h/db?options=-c%20search_path%3D{}",
        "postgres://u:secret@h/db?options=--search-path%3D{}",
    ],
)
def test_search_path_that_leads_elsewhere_is_refused(form: str, path: str) -> None:
    if "'" not in form:
        path = quote(path)
    assert refusal(DATABASE_URL=form.format(path)).startswith(
        "DATABASE_URL sets a search_path that does not begin with public"
    )


@pytest.mark.parametrize("path", ["public", "public,app", '"$user",public', "pg_catalog, public"])
def test_search_path_that_leads_to_public_is_nothing_to_refuse(path: str) -> None:
    assert parsed(f"postgres://h/db?search_path={quote(path)}") == {"host": "h", "dbname": "db"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("'postgres://u:secret@h/db'", "begins with a quote"),
        ('"postgres://u:secret@h/db"', "begins with a quote"),
        ("'", "begins with a quote"),
        ("DATABASE_URL=postgres://u:secret@h/db", "holds an assignment instead of a URL"),
        ("export DATABASE_URL='postgres://u:secret@h/db'", "holds an assignment instead of a URL"),
        ("jdbc:postgresql://h/db?password=secret", "is a JDBC URL"),
        ("POSTGRES://u:secret@h/db", "its scheme is in capitals"),
        ("secret://u@h/db", "its scheme is not postgres"),
        ("Secret+s3cret://u@h/db", "its scheme is not postgres"),
        ("postgres://u:secret%zz@h/db", "a % in it that begins no escape"),
        ("postgres://u:secret%@h/db", "a % in it that begins no escape"),
        ("postgres://u:secret%ff@h/db", "its percent escapes are not UTF-8"),
        ("postgres://u:secret%00@h/db", "there is a NUL in it"),
        ("postgres://u:secret\0@h/db", "there is a NUL in it"),
        ("postgres://u:secret\udcff@h/db", "bytes that are not UTF-8"),
        ("host=h password=secret\udcff", "bytes that are not UTF-8"),
    ],
)
def test_what_is_pasted_wrongly_has_a_sentence_of_its_own(value: str, told: str) -> None:
    message = refusal(DATABASE_URL=value)
    assert told in message
    assert message.startswith("DATABASE_URL ")
    assert len(message.splitlines()) == 2
    assert "ecret" not in message
    assert "s3cret" not in message


passwords = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(password=passwords)
@pytest.mark.parametrize("query", ["", "?sslmode=disable", "?pool_max_conns=4&sslmode=disable"])
def test_any_encoded_password_survives(query: str, password: str) -> None:
    assert parsed(f"postgres://u:{quote(password, safe='')}@h:5432/db{query}")["password"] == password


# Marked, so that finding it in a message is no coincidence; the characters that mean something in a URL.
raw_passwords = st.text("aZ0é@:/?#[]&=+ ,;'\"\\\u2100", max_size=8).map(lambda text: f"Xq7{text}7qX")


@given(password=raw_passwords)
@pytest.mark.parametrize("query", ["", "?pool_max_conns=4"])
def test_unencoded_password_is_read_exactly_or_refused(query: str, password: str) -> None:
    # Read as something else, a piece of it becomes a host or a port, which errors then name.
    message = ""
    try:
        read = parsed(f"postgres://u:{password}@h:5432/db{query}")
    except ConfigurationError as error:
        message = str(error)
    else:
        assert (read["password"], read["host"], read["port"]) == (password, "h", "5432")
    assert "Xq7" not in message
    assert "7qX" not in message


# What URLs and key=value strings are made of, well and badly put together; what may be a secret is marked.
SECRET = "Xq7"
PIECES = [
    *("postgres://", "postgresql://", "POSTGRES://", "jdbc:", "mysql://", "DATABASE_URL=", "://", "?", "&"),
    *(
        "@",
        ":",
        "/",
        "=",
        "%",
        "%41",
        "%ff",
        "%00",
        "%zz",
        "\0",
        "\udcff",
        "\u2100",
        "'",
        '"',
        "\\",
        " ",
        "#",
    ),
    *(
        "[",
        "]",
        "[::1]",
        "h",
        "5432",
        ",",
        ";",
        "\n",
        "$user",
        "public",
        "sslmode",
        "disable",
        "host",
        "password",
    ),
    *("options", "-c", "search_path", "pool_max_conns", "database", "timezone", "connect_timeout", "service"),
    *(f"{SECRET}pass", f"{SECRET}%40", f"u:{SECRET}@h/db", f"password={SECRET} ", f"password='{SECRET}'"),
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


# HYPOTHESIS_PROFILE=long reads a million, always other ones.
EXAMPLES = 1_000_000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 3_000


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES == 3_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=st.text() | texts)
def test_any_text_gives_a_connection_string_or_one_sentence(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    message = ""
    try:
        conninfo = conninfo_from_environment({"DATABASE_URL": text})
    except ConfigurationError as error:
        message = str(error)
    else:
        # As connect() does.
        make_conninfo(conninfo, connect_timeout=1, client_encoding="UTF8").encode()
        assert conninfo_to_dict(conninfo) is not None
    assert SECRET not in message
    assert len(message.splitlines()) in {0, 2}
    # What stands for a parameter's name behind a host is shown, as no secret of anybody's.
    assert all(SECRET not in message or "?" in text for message in caplog.messages)


@pytest.mark.parametrize("password", ["Xq7/7qX", "Xq7@7qX", "Xq7[7qX", "Xq7#7qX", "Xq7%7qX", "Xq7\u21007qX"])
def test_unencoded_password_never_shows_up_in_the_output(at_102: Database, password: str) -> None:
    url = at_102.url.replace(":multica@", f":{password}@")
    assert password in url
    output = at_102.refused("current", DATABASE_URL=url, DATABASE_STARTUP_TIMEOUT="0")
    assert "Xq7" not in output
    assert "7qX" not in output


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_alembic_reaches_the_database_by_every_scheme(at_102: Database, scheme: str) -> None:
    url = at_102.url.replace("postgres", scheme, 1)
    assert current(at_102, DATABASE_URL=url) == "102"


def test_alembic_warns_once_of_pool_parameters_and_goes_on(at_102: Database) -> None:
    url = f"{at_102.url}&pool_max_conns=4&pool_health_check_period=1m"
    result = at_102.alembic("current", DATABASE_URL=url)
    assert result.returncode == 0, result.stdout
    assert "102" in result.stdout.split()
    lines = [line.partition(" ")[2] for line in result.stdout.splitlines()]
    assert [line for line in lines if "WARN" in line] == [
        "WARNING [usage_rollup.session.database_url] DATABASE_URL: ignoring parameters of the Go pool:"
        " pool_health_check_period, pool_max_conns"
    ]


def test_alembic_connects_directly_beside_a_pooler(at_102: Database) -> None:
    revision = current(
        at_102,
        DATABASE_URL="postgres://pooler.invalid:6432/multica",
        MIGRATION_DATABASE_URL=at_102.url,
    )
    assert revision == "102"


def test_alembic_reaches_the_second_of_two_hosts(at_102: Database) -> None:
    info = conninfo_to_dict(at_102.url)
    place = f"{info['host']}:{info['port']}"
    url = at_102.url.replace(place, f"127.0.0.1:1,{place}") + "&pool_max_conns=4"
    assert current(at_102, DATABASE_URL=url) == "102"


def test_alembic_reads_key_value_strings(at_102: Database) -> None:
    pairs = " ".join(f"{name}={value}" for name, value in conninfo_to_dict(at_102.url).items())
    assert current(at_102, DATABASE_URL=pairs) == "102"


def test_alembic_reads_a_service_file(at_102: Database, tmp_path: Path) -> None:
    services = tmp_path / "services.conf"
    pairs = [f"{name}={value}" for name, value in conninfo_to_dict(at_102.url).items()]
    services.write_text("\n".join(["[multica]", *pairs, ""]))
    environment = {"PGSERVICE": "multica", "PGSERVICEFILE": str(services)}
    assert current(at_102, DATABASE_URL="", **environment) == "102"


def test_alembic_reads_libpq_variables(at_102: Database) -> None:
    info = conninfo_to_dict(at_102.url)
    revision = current(
        at_102,
        DATABASE_URL="",
        PGHOST=str(info["host"]),
        PGPORT=str(info["port"]),
        PGUSER=str(info["user"]),
        PGPASSWORD=str(info["password"]),
        PGDATABASE=str(info["dbname"]),
    )
    assert revision == "102"


def test_alembic_goes_through_a_unix_socket() -> None:
    with start_server() as server:
        url = server.url("postgres", socket=True) + "&pool_max_conns=4"
        assert "?host=/" in url
        database = Database(server, "postgres")
        result = database.alembic("upgrade", "100", DATABASE_URL=url)
        assert result.returncode == 0, result.stdout
        assert database.revision == "100"


def test_alembic_without_a_database_says_how_to_name_one(at_102: Database) -> None:
    output = at_102.refused("upgrade", "head", DATABASE_URL="")
    assert "DATABASE_URL is not set" in output
    assert "HINT: export DATABASE_URL='postgres://" in output
