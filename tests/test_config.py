"""Settings: where they come from, what is refused, how that is told, and that the manual says the same as the code."""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from dotenv import dotenv_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatserver import config
from chatserver.app import create_app
from chatserver.config import CONFIG, FIELDS, REQUEST_CONFIG, Config, ConfigError, load, show
from tests.fakes import PATIENT
from tests.server import ROOT

DAY, GIGABYTE, MILLION = 86_400, 1 << 30, 1_000_000

WHOLE = {
    "PORT": 65_535,
    "PRESENCE_ROOM_LIMIT": MILLION,
    "MAX_MESSAGE_BYTES": GIGABYTE,
    "MAX_BODY_BYTES": GIGABYTE,
    "MAX_QUEUE_BYTES": GIGABYTE,
    "RETENTION_COUNT": 1000 * MILLION,
    "MAX_CONNECTIONS": MILLION,
    "MAX_CONNECTIONS_PER_ADDRESS": MILLION,
}
NUMBERS = WHOLE | {
    "PLUGIN_SECONDS": DAY,
    "RETENTION_SECONDS": 36_500 * DAY,
    "RATE_LIMIT": MILLION,
    "HEARTBEAT_SECONDS": DAY,
    "WRITE_SECONDS": DAY,
    "DRAIN_SECONDS": DAY,
}

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own settings stay out of it."""
    for name in ("CHAT_CONFIG", *FIELDS, *(f"{name}_FILE" for name in FIELDS)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file, and returns its path."""

    def write(content: str | bytes, name: str = "chat.env") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def problems(path: str | None = None) -> list[str]:
    """What is wrong, one line each."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def values(config: Config) -> dict[str, object]:
    """Of all settings, by name."""
    return {name: getattr(config, field.name) for name, field in FIELDS.items()}


# Where settings come from


def test_without_file_and_environment_the_defaults_hold() -> None:
    config = load()
    assert config == Config()
    assert (config.host, config.port, config.log_level) == ("localhost", 8080, "info")
    assert config.features == ("presence", "limits", "http", "api", "centrifuge", "web")


def test_defaults_are_overruled_by_the_file_and_the_file_by_the_environment(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("PORT=1111\nLOG_LEVEL=warn\n")
    monkeypatch.setenv("PORT", "2222")
    monkeypatch.setenv("RATE_LIMIT", "7.5")
    config = load(path)
    assert (config.port, config.log_level, config.rate_limit, config.host) == (2222, "warn", 7.5, "localhost")


@pytest.mark.parametrize("name", FIELDS)
def test_each_setting_is_read_from_environment_and_file(
    name: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, value = sample(name)
    pair = {"TLS_CERT": "cert", "TLS_KEY": "key"} if name in ("TLS_CERT", "TLS_KEY") else {}
    others = "".join(f"{other}={path}\n" for other, path in pair.items() if other != name)
    quoted = raw if "\n" not in raw else '"' + raw.replace("\n", "\\n") + '"'
    from_file = load(write(f"{others}{name}={quoted}\n"))
    assert values(from_file)[name] == value != values(Config())[name]
    monkeypatch.setenv(name, raw)
    assert load(write(others)) == from_file


SAMPLES = {
    **dict.fromkeys(NUMBERS, ("12", 12)),
    **dict.fromkeys(("FEATURES", "PLUGINS"), ("http", ("http",))),
    **dict.fromkeys(("ALLOWED_ORIGINS", "FRAME_ANCESTORS"), ("https://a.example", ("https://a.example",))),
    "TRUSTED_PROXIES": ("10.0.0.0/8", ("10.0.0.0/8",)),
    "TOKEN_REQUIRE": ("sub, exp", ("sub", "exp")),
    "LOG_LEVEL": ("debug", "debug"),
    "ANONYMOUS": ("off", "off"),
}
STRICT = {
    "STORE_URL": "memory://",
    "NAMESPACES": '{"news":{}}',
    "TOKEN_HMAC_SECRET": "s" * 32,
    "TOKEN_PUBLIC_KEY": """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEYD54V/vp+54P9DXarYqx4MPcm+HK
RIQzNasYSoRQHQ/6S6Ps8tpMcT+KvIIC8W/e9k0W7Cm72M1P9jU7SLf/vg==
-----END PUBLIC KEY-----
""",
    "TOKEN_JWKS_URL": "https://login.example/keys.json",
}


def sample(name: str) -> tuple[str, object]:
    """A value that is not the default, as it is written and as it is read."""
    text = STRICT.get(name, "there")
    return SAMPLES.get(name, (text, text))


def test_what_the_environment_empties_is_not_taken_from_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("PORT=1111\nPLUGINS=one\nMAX_CONNECTIONS=5\n")
    for name in ("PORT", "PLUGINS", "MAX_CONNECTIONS"):
        monkeypatch.setenv(name, "")
    assert load(path) == Config()


def test_chat_config_names_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_CONFIG", write("PORT=1111"))
    assert load().port == 1111


def test_a_path_given_beats_chat_config(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_CONFIG", write("PORT=1111\nLOG_LEVEL=warn", "other.env"))
    assert load(write("PORT=2222")) == Config(port=2222)


def test_the_option_config_beats_chat_config(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_CONFIG", write("MAX_CONNECTIONS=1", "other.env"))
    assert create_app()[CONFIG].max_connections == 1
    assert create_app(["--config", write("MAX_CONNECTIONS=2")])[CONFIG].max_connections == 2


def test_an_empty_chat_config_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_CONFIG", "")
    assert load() == Config()


def test_lists_are_split_at_commas_and_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUGINS", " b , a,,c ")
    assert load().plugins == ("b", "a", "c")


def test_loading_leaves_the_process_environment_alone(write: Write) -> None:
    before = dict(os.environ)
    assert problems(write("PORT=1111\nHOST=there\nCHAT_CANARY=1\n"))
    assert load(write("PORT=1111\nHOST=there\n")) == Config(port=1111, host="there")
    assert dict(os.environ) == before


# Empty values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 8080 if name == "PORT" else 0) for name in NUMBERS),
        ("HOST", "localhost"),
        ("SOCKET", ""),
        ("TLS_CERT", ""),
        ("TLS_KEY", ""),
        ("TLS_KEY_PASSWORD", ""),
        ("LOG_LEVEL", "info"),
        ("FEATURES", ()),
        ("PLUGINS", ()),
        ("ALLOWED_ORIGINS", ()),
        ("FRAME_ANCESTORS", ()),
    ],
)
def test_an_empty_value_is_off_or_the_default(
    name: str, value: object, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert values(load(write(f"{name}=\n"))) == values(Config()) | {name: value}
    monkeypatch.setenv(name, "")
    assert values(load()) == values(Config()) | {name: value}


# Numbers


def test_the_table_of_numbers_is_complete() -> None:
    assert {name for name, value in values(Config()).items() if isinstance(value, int | float)} == set(NUMBERS)


def test_the_bounds_of_a_number_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for bounds in (dict.fromkeys(NUMBERS, 0), NUMBERS):
        for name, bound in bounds.items():
            monkeypatch.setenv(name, str(bound))
        assert values(load()).items() >= bounds.items()


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_range_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for raw in ("-1", str(NUMBERS[name] + 1), "-99999999999999999999", "1" * 40):
        monkeypatch.setenv(name, raw)
        assert problems() == [f"{name}: {raw} is out of range; allowed: 0 to {NUMBERS[name]}"]


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in WHOLE])
def test_a_float_that_is_no_amount_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for raw in ("-0.001", f"{NUMBERS[name]}.001", "inf", "-inf", "Infinity", "nan", "NaN", "1e999"):
        monkeypatch.setenv(name, raw)
        assert problems() == [f"{name}: {raw} is out of range; allowed: 0 to {NUMBERS[name]}"]


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what = "a whole number" if name in WHOLE else "a number"
    for raw in ("x", "1.5.0", "0x10", "1,5", "ten", "--1", "1 2", "\u2028"):
        monkeypatch.setenv(name, raw)
        assert problems() == [f"{name}: {raw!r} is not {what}; allowed: 0 to {NUMBERS[name]}"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_has_no_fraction(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for raw in ("1.5", "1e3", "nan", "inf", "8080.0"):
        monkeypatch.setenv(name, raw)
        assert problems() == [f"{name}: {raw!r} is not a whole number; allowed: 0 to {NUMBERS[name]}"]


@PATIENT
@given(
    raw=st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.floats().map(str) | st.integers().map(str)
)
@pytest.mark.parametrize("name", ["PORT", "RATE_LIMIT"])
def test_whatever_is_taken_for_a_number_is_in_range(name: str, raw: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, raw)
        try:
            value = values(load())[name]
        except ConfigError as error:
            assert error.problems[0].startswith(f"{name}: ")
        else:
            assert isinstance(value, int if name in WHOLE else float)
            assert 0 <= value <= NUMBERS[name]
            assert math.isfinite(value)


def test_a_line_break_in_a_value_does_not_break_the_line_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "70000\n")
    assert len(problems()) == 1


# LOG_LEVEL


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error"])
def test_each_log_level_is_known_in_any_case(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for raw in (level, level.upper(), level.title()):
        monkeypatch.setenv("LOG_LEVEL", raw)
        assert load().log_level == level


@pytest.mark.parametrize("raw", ["warning", "critical", "WARNING", "10", "notset", "trace", "in fo", "0", "warn,info"])
def test_no_other_log_level_is_known(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", raw)
    assert problems() == [f"LOG_LEVEL: {raw!r} is not allowed; allowed: debug, info, warn, error"]


# All at once


def test_all_wrong_values_are_told_at_once(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOG_LEVEL", "critical")
    monkeypatch.setenv("MAX_BODY_BYTES", "many")
    monkeypatch.setenv("TLS_KEY_PASSWORD_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("TLS_CERT", "cert.pem")
    lines = problems(write("PROT=1\nRATE_LIMIT=-1\nPORT=70000\n"))
    assert sorted(lines) == sorted(
        [
            "PROT: no such setting; did you mean PORT?",
            "PORT: 70000 is out of range; allowed: 0 to 65535",
            "TLS_KEY_PASSWORD: The value of TLS_KEY_PASSWORD_FILE must be a readable file path.",
            "LOG_LEVEL: 'critical' is not allowed; allowed: debug, info, warn, error",
            "RATE_LIMIT: -1 is out of range; allowed: 0 to 1000000",
            "MAX_BODY_BYTES: 'many' is not a whole number; allowed: 0 to 1073741824",
            "TLS_CERT: TLS_CERT and TLS_KEY go together; set both or none",
        ]
    )


def test_the_factory_ends_with_status_2_and_the_lines(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "x")
    with pytest.raises(SystemExit) as ended:
        create_app(["--config", write("PROT=1")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "PROT: no such setting; did you mean PORT?",
        "PORT: 'x' is not a whole number; allowed: 0 to 65535",
    ]


@pytest.mark.parametrize("name", ["ALLOWED_ORIGINS", "FRAME_ANCESTORS"])
@pytest.mark.parametrize("origin", ["https://good/", "good", "https://good,evil.example", "https://a; script-src *"])
def test_an_origin_that_can_match_nothing_is_refused(origin: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, origin)
    [line] = problems()
    assert line.startswith(f"{name}: ")


@pytest.mark.parametrize(("cert", "key"), [("cert.pem", ""), ("", "key.pem")])
def test_certificate_and_key_go_together(cert: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLS_CERT", cert)
    monkeypatch.setenv("TLS_KEY", key)
    assert problems() == ["TLS_CERT: TLS_CERT and TLS_KEY go together; set both or none"]
    monkeypatch.setenv("TLS_CERT", "cert.pem")
    monkeypatch.setenv("TLS_KEY", "key.pem")
    assert (load().tls_cert, load().tls_key) == ("cert.pem", "key.pem")


# Files that are wrong


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("PROT=1", "PROT: no such setting; did you mean PORT?"),
        ("port=1", "port: no such setting; did you mean PORT?"),
        ("HEARTBEAT=1", "HEARTBEAT: no such setting; did you mean HEARTBEAT_SECONDS?"),
        ("MAX_CONNECTION=1", "MAX_CONNECTION: no such setting; did you mean MAX_CONNECTIONS?"),
        ("TLS_KEY_PASWORD_FILE=x", "TLS_KEY_PASWORD_FILE: no such setting; did you mean TLS_KEY_PASSWORD_FILE?"),
        ("ZZZ=1", "ZZZ: no such setting"),
        ("CHAT_CONFIG=other.env", "CHAT_CONFIG: no such setting"),
    ],
)
def test_an_unknown_name_in_a_file_is_refused_with_a_hint(line: str, told: str, write: Write) -> None:
    assert problems(write(f"PORT=1111\n{line}\n")) == [told]


def test_an_unknown_name_in_the_environment_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROT", "1")
    assert load() == Config()


def test_a_secret_under_a_misspelt_name_is_not_told(write: Write) -> None:
    assert "hunter2" not in "".join(problems(write("TLS_KEY_PASWORD=hunter2")))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "missing.env")
    assert problems(path) == [f"{path}: No such file or directory"]


def test_a_folder_is_told(tmp_path: Path) -> None:
    assert problems(str(tmp_path)) == [f"{tmp_path}: Is a directory"]


@pytest.mark.parametrize("path", ["{file}/below", "x" * 300, "\0"], ids=["below a file", "too long", "NUL"])
def test_an_impossible_path_is_told(path: str, write: Write) -> None:
    path = path.format(file=write("PORT=1"))
    [line] = problems(path)
    assert line.startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"HOST=\xff\xfe\n", "HOST=café\n".encode("latin-1"), "PORT=1\n".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_told(content: bytes, write: Write) -> None:
    path = write(content)
    [line] = problems(path)
    assert line.startswith(f"{path}: 'utf-8' codec can't decode")


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01\x02\x03",
        b"\x7fELF\x02\x01\x01\x00\x00\x00=\x00",
        b"PORT 1111\n",
        b"PORT: 1111\n",
        b"PORT\n",
        b'HOST="there\n',
        b"= 1111\n",
        b"[server]\n",
    ],
)
def test_a_line_that_is_no_setting_is_told(content: bytes, write: Write) -> None:
    assert len(problems(write(b"LOG_LEVEL=warn\n" + content))) == 1


@pytest.mark.parametrize("line", ["TLS_KEY_PASSWORD hunter2", "TLS_KEY_PASSWORD: hunter2", 'TLS_KEY_PASSWORD="hunter2'])
def test_a_secret_on_a_line_that_is_no_setting_is_not_told(line: str, write: Write) -> None:
    assert "hunter2" not in "".join(problems(write(line)))


def test_a_line_break_in_a_name_does_not_break_the_line_about_it(write: Write) -> None:
    assert len(problems(write("'a\nb'=1\n"))) == 1


def test_nothing_but_the_lines_is_printed(write: Write) -> None:
    """Run as users run it: libraries have something to say, too, before logging is configured."""
    command = [sys.executable, "-m", "chatserver", "check", "--config", write("PORT 1111\nPROT=1\n")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 2), done.stderr


@settings(PATIENT, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary() | st.lists(st.tuples(st.sampled_from([*FIELDS]), st.binary())).map(
    lambda pairs: b"\n".join(name.encode() + b"=" + value for name, value in pairs)
))  # fmt: skip
def test_any_file_gives_settings_or_problems(content: bytes, write: Write) -> None:
    try:
        load(write(content))
    except ConfigError as error:
        assert error.problems


def test_comments_quotes_and_export_are_understood(write: Write) -> None:
    path = write("\ufeff# a remark\n\nexport PORT=1111 # another\r\nHOST='there'\nSOCKET=\"/tmp/a b\"\n")
    assert load(path) == Config(port=1111, host="there", socket="/tmp/a b")


# Secrets


@pytest.mark.parametrize("in_file", [False, True])
def test_a_secret_is_read_from_a_file_and_stripped(
    in_file: bool, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = write(" hunter2 \r\n", "secret")
    if in_file:
        assert load(write(f"TLS_KEY_PASSWORD_FILE={secret}")).tls_key_password == "hunter2"
    else:
        monkeypatch.setenv("TLS_KEY_PASSWORD_FILE", secret)
        assert load().tls_key_password == "hunter2"


def test_the_secret_in_a_file_wins(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLS_KEY_PASSWORD", "from the environment")
    monkeypatch.setenv("TLS_KEY_PASSWORD_FILE", write("from its file", "secret"))
    assert load(write("TLS_KEY_PASSWORD=in the clear")).tls_key_password == "from its file"


@pytest.mark.parametrize(
    "path",
    ["{folder}/missing", "{folder}", "{folder}/file/below", "x" * 300],
    ids=["missing", "folder", "below a file", "too long"],
)
def test_a_secrets_file_that_cannot_be_read_is_told(
    path: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("not a folder", "file")
    monkeypatch.setenv("TLS_KEY_PASSWORD_FILE", path.format(folder=tmp_path))
    [line] = problems()
    assert line.startswith("TLS_KEY_PASSWORD: ")


def test_a_secrets_file_that_is_not_utf_8_is_told(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLS_KEY_PASSWORD_FILE", write(b"\xff\xfe", "secret"))
    [line] = problems()
    assert line.startswith("TLS_KEY_PASSWORD: ")


def test_only_secrets_are_read_from_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT_FILE", write("1111\n", "port"))
    assert load().port == 8080
    assert problems(write("PORT_FILE=x")) == ["PORT_FILE: no such setting; did you mean PORT?"]


def test_a_secret_in_the_environment_wins_over_the_file_that_a_file_names(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLS_KEY_PASSWORD", "from the environment")
    path = write(f"TLS_KEY_PASSWORD_FILE={write('from its file', 'secret')}")
    assert load(path).tls_key_password == "from the environment"


@pytest.mark.parametrize("network", ["nonsense", "10.0.0.0/33", "10.0.0.1,proxy.example"])
def test_a_proxy_that_is_no_address_is_refused(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", network)
    (problem,) = problems()
    assert problem.startswith("TRUSTED_PROXIES: ")


def test_show_masks_a_password_within_a_url_only() -> None:
    config = Config(store_url="postgresql://chat:hunter2@db.example/chat")
    assert "STORE_URL=postgresql://chat:***@db.example/chat" in show(config)
    assert "hunter2" not in repr(config)


def test_show_masks_secrets() -> None:
    lines = show(Config(tls_key_password="hunter2", port=1111, plugins=("a", "b")))
    assert "TLS_KEY_PASSWORD=***" in lines
    assert "hunter2" not in "".join(lines)
    assert {"PORT=1111", "PLUGINS=a,b"} <= set(lines)
    assert [line.partition("=")[0] for line in lines] == [*FIELDS]


def test_show_tells_a_secret_that_is_not_set_from_one_that_is() -> None:
    assert "TLS_KEY_PASSWORD=" in show(Config())


def test_the_private_key_itself_is_never_shown(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS_KEY is a path, so TLS_KEY_FILE=key.pem is a slip: it may be refused, or masked, but not be printed."""
    monkeypatch.setenv("TLS_CERT", "cert.pem")
    monkeypatch.setenv("TLS_KEY_FILE", write("-----BEGIN PRIVATE KEY-----\nhunter2\n", "key.pem"))
    try:
        config = load()
    except ConfigError as error:
        assert "hunter2" not in str(error)
    else:
        assert "hunter2" not in "".join([*show(config), repr(config)])


def test_what_is_shown_can_be_loaded(write: Write) -> None:
    config = Config(port=1111, features=("http",), rate_limit=0.5, allowed_origins=("https://a", "*"))
    assert load(write("\n".join(show(config)))) == config


@pytest.mark.parametrize("shown", [repr, str])
def test_a_config_never_shows_its_secrets(shown: Callable[[object], str]) -> None:
    assert "hunter2" not in shown(Config(tls_key_password="hunter2"))


# The value


def test_a_config_is_frozen() -> None:
    config = Config()
    for field in dataclasses.fields(Config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, 1)
    assert config == Config()


def test_a_setting_has_the_name_of_its_variable() -> None:
    assert [field.name for field in dataclasses.fields(Config)] == [name.lower() for name in FIELDS]


# The manual: config/default.env


def manual() -> dict[str, tuple[str, str]]:
    """Name → value and the comment right above it, of config/default.env, in its order."""
    entries, comment = {}, ""
    for line in (ROOT / "config" / "default.env").read_text().splitlines():
        name, _, value = line.partition("=")
        if line.startswith("#"):
            comment += line + "\n"
        else:
            if name:
                entries[name] = value, comment
            comment = ""
    return entries


def test_the_manual_has_every_setting_and_no_other_in_the_order_of_the_code() -> None:
    assert [*manual()] == [*FIELDS]


def test_the_manual_loaded_as_it_is_gives_the_defaults() -> None:
    assert load(str(ROOT / "config" / "default.env")) == Config()


@pytest.mark.parametrize("name", FIELDS)
def test_the_manual_gives_the_default_in_value_and_comment(name: str) -> None:
    value, comment = manual()[name]
    assert value == FIELDS[name].metadata["default"]
    assert f"Default: {value or 'empty'}." in comment or (not value and "Default: empty (" in comment)
    assert 1 <= comment.count("\n") <= 4


def test_the_manual_gives_the_ranges() -> None:
    told = {name: comment for name, (_, comment) in manual().items() if "Range:" in comment}
    assert told.keys() == NUMBERS.keys()
    assert [name for name in NUMBERS if f"Range: 0 to {NUMBERS[name]}." not in told[name]] == []


def test_the_manual_names_all_choices() -> None:
    assert all(level in manual()["LOG_LEVEL"][1] for level in config.LEVELS)
    assert all(feature in manual()["FEATURES"][1] for feature in Config().features)


@pytest.mark.parametrize("name", ["development.env", "test.env"])
def test_the_other_files_change_something(name: str) -> None:
    path = ROOT / "config" / name
    changed = {name for name, value in values(load(str(path))).items() if value != values(Config())[name]}
    assert changed == set(dotenv_values(path)) != set()


# The middleware


async def test_every_handler_gets_the_settings_in_force_also_in_nested_applications() -> None:
    async def tell(request: web.Request) -> web.Response:
        assert request[REQUEST_CONFIG] is settings_in_force
        return web.Response(text=str(request[REQUEST_CONFIG].port))

    settings_in_force = Config(port=1234)
    app, middle, inner = web.Application(), web.Application(), web.Application()
    config.setup(app, settings_in_force)
    for each in (app, middle, inner):
        each.router.add_get("/tell", tell)
    middle.add_subapp("/inner", inner)
    app.add_subapp("/middle", middle)
    assert app[CONFIG] is settings_in_force
    async with TestClient(TestServer(app)) as client:
        for path in ("/tell", "/middle/tell", "/middle/inner/tell"):
            async with client.get(path) as response:
                assert (response.status, await response.text()) == (200, "1234")
