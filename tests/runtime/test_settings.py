from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from baton.core.errors import ConfigError
from baton.runtime.settings import ServiceSettings, Settings, load, parse_bytes, setting, specs


class Example(ServiceSettings):
    section: ClassVar[str] = "router"

    listen: str = setting("127.0.0.1:7000", "address", unit="host:port")
    peers: tuple[str, ...] = setting((), "others")
    pool_bytes: int = setting(1024, "pool", unit="bytes", ge=1)
    wait_s: float | None = setting(None, "longest wait", unit="s", gt=0)
    model: Path | None = setting(None, "folder")
    dtype: str = setting("auto", "computation", choices=("auto", "float32"))
    strict: bool = setting(False, "refuse more")


class Required(Settings):
    section: ClassVar[str] = "worker"

    model: str = setting(..., "checkpoint folder")


def make(**given: object) -> Example:
    return load(Example, **{"environment": {}, **given})  # type: ignore[arg-type]


def test_defaults_and_frozen() -> None:
    settings = make()
    assert settings.listen == "127.0.0.1:7000"
    assert settings.log_level == "info"
    with pytest.raises(ValueError, match="frozen"):
        settings.listen = "elsewhere"  # type: ignore[misc]


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_text('[router]\nlisten = "file"\ndtype = "float32"\nstrict = true\n[gateway]\nport = 1\n')
    environment = {"BATON_ROUTER_LISTEN": "environment", "BATON_ROUTER_WAIT_S": "2.5"}
    settings = make(config=file, environment=environment, flags={"listen": "flag", "strict": None})
    assert (settings.listen, settings.dtype, settings.wait_s, settings.strict) == ("flag", "float32", 2.5, True)
    assert make(config=file, environment=environment).listen == "environment"


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "baton.toml"
    file.write_text('[router]\nlisten = "file"\n')
    assert make(environment={"BATON_CONFIG": str(file)}).listen == "file"
    assert make(environment={"BATON_CONFIG": ""}).listen == "127.0.0.1:7000"


def test_text_is_parsed() -> None:
    settings = make(flags={"peers": "a, b,", "pool_bytes": "256MiB", "model": "/models/x", "strict": "true"})
    assert settings.peers == ("a", "b")
    assert settings.pool_bytes == 256 << 20
    assert settings.model == Path("/models/x")
    assert settings.strict is True


@pytest.mark.parametrize(
    ("text", "count"), [("1", 1), ("1k", 1024), ("0.5GiB", 1 << 29), ("3 MB", 3 << 20), ("2tib", 2 << 40)]
)
def test_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flags": {"lisen": "x"}}, r"unknown flag --lisen; did you mean --listen\?"),
        ({"environment": {"BATON_ROUTER_LITSEN": "x"}}, r"BATON_ROUTER_LITSEN; did you mean BATON_ROUTER_LISTEN\?"),
        ({"environment": {"BATON_ROUTR_LISTEN": "x"}}, r"BATON_ROUTR_LISTEN; did you mean BATON_ROUTER_LISTEN\?"),
        ({"environment": {"BATON_CONFORMANCE": "x"}}, r"did you mean BATON_CONFORMANCE_DIR\?"),
        (
            {"flags": {"dtype": "flaot32"}},
            r"--dtype: bad value 'flaot32': .*auto, float32; did you mean float32\?",
        ),
        ({"flags": {"wait_s": "-1"}}, r"flag --wait-s: bad value '-1': .*greater than 0 \(s\)"),
        (
            {"environment": {"BATON_ROUTER_METRICS_PORT": "many"}},
            r"BATON_ROUTER_METRICS_PORT: bad value 'many'",
        ),
        ({"flags": {"pool_bytes": "lots"}}, r"--pool-bytes: bad value 'lots': a number of bytes .* such as .*256MiB"),
        ({"flags": {"wait_s": "nan"}}, r"--wait-s: bad value 'nan'"),
        ({"flags": {"wait_s": "0", "dtype": "x"}}, r"--wait-s.*; flag --dtype|--dtype.*; flag --wait-s"),
    ],
)
def test_bad_input_names_source_value_and_remedy(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[router]\nlisten_on = "x"', r"baton.toml: unknown key 'listen_on' in \[router\]"),
        ("[rooter]", r"unknown section \[rooter\]; did you mean router\?"),
        ("router = 3", r"router must be a table"),
        ("[router", r"baton.toml is not valid TOML"),
        (
            "[router]\nmetrics_port = true",
            r"key router.metrics_port: bad value True: a value of type int",
        ),
        ("[router]\npeers = [1]", r"key router.peers"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "baton.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        make(config=file)


def test_missing_file_and_missing_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*none.toml: No such file"):
        make(config=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"--model \(BATON_WORKER_MODEL\) is required: checkpoint folder"):
        load(Required, environment={})


def test_variables_that_kubernetes_makes_of_services_are_no_settings() -> None:
    links = {
        "BATON_ROUTER_PORT": "tcp://10.0.0.1:7000",
        "BATON_ROUTER_PORT_7000_TCP_ADDR": "10.0.0.1",
        "BATON_ROUTER_SERVICE_HOST": "10.0.0.1",
        "BATON_ROUTER_SERVICE_PORT_GRPC": "7000",
    }
    assert make(environment=links) == make()


def test_other_sections_and_other_variables_are_left_alone() -> None:
    assert make(environment={"BATON_GATEWAY_ANYTHING": "1", "BATON_CONFORMANCE_DIR": "/x", "HOME": "/"}) == make()


def test_specs_describe_what_was_declared() -> None:
    found = specs(Example)
    assert next(iter(found)) == "listen"  # its own before the inherited ones
    assert (found["wait_s"].flag, found["wait_s"].env) == ("--wait-s", "BATON_ROUTER_WAIT_S")
    assert (found["wait_s"].type_name, found["peers"].type_name) == ("float", "list of str")
    assert found["pool_bytes"].unit == "bytes"


def test_an_unknown_section_is_a_defect() -> None:
    with pytest.raises(TypeError, match="must be one of"):
        type("Wrong", (Settings,), {"section": "rooter", "__annotations__": {}})
