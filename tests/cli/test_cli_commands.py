from __future__ import annotations

import subprocess
import sys
import time
from typing import ClassVar

import pytest

from baton.cli import flags, main
from baton.cli.serve import settings_class
from baton.cli.services import SERVICES
from baton.cli.up.settings import UpSettings
from baton.core.errors import ConfigError
from baton.runtime.settings import ServiceSettings, setting, specs

SCREEN_LINES, SCREEN_COLUMNS = 30, 100


def fits_a_screen(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) <= SCREEN_LINES and max(map(len, lines)) <= SCREEN_COLUMNS


class Example(ServiceSettings):
    section: ClassVar[str] = "worker"

    pool_bytes: int = setting(256 << 20, "pool", unit="bytes")
    wait_s: float = setting(0.5, "longest wait", unit="s")
    names: tuple[str, ...] = setting(("a", "b"), "names " * 40)
    dtype: str = setting("auto", "computation", choices=("auto", "float32"))
    strict: bool = setting(False, "refuse more")
    seldom: int = setting(1, "seldom used", rare=True)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    text = capsys.readouterr().out
    assert fits_a_screen(text)
    for name in (*SERVICES, "up", "chat", "keys", "check-env", "version"):
        assert f"\n  {name} " in text


def test_usage_comes_at_once() -> None:
    def best_of_three() -> float:
        times = []
        for _ in range(3):
            started = time.process_time_ns(), time.monotonic()
            subprocess.run([sys.executable, "-m", "baton.cli.main", "--help"], check=True, stdout=subprocess.DEVNULL)
            times.append(time.monotonic() - started[1])
        return min(times)

    assert best_of_three() < 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["router", "--help"], ["up", "--help"]])
def test_nothing_heavy_is_imported_for(arguments: list[str]) -> None:
    code = (
        "import sys; from baton.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'grpc', 'transformers', 'fastapi', 'redis', 'httpx'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", [*SERVICES, "up", "chat", "keys", "check-env", "version"])
def test_help_of_each_command_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main.main([command, "--help"]) == 0
    except SystemExit as error:
        assert not error.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: baton {command}")
    assert fits_a_screen(text), text


def test_help_shows_units_defaults_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags.parse("example", "does things", Example, ["-h"])
    text = capsys.readouterr().out
    assert fits_a_screen(text)
    assert "names names" in text and "--names A,B" in text and "--strict true|false" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  --")}
    assert lines["--pool-bytes"].endswith("pool [256MiB]") and "--pool-bytes BYTES" in lines["--pool-bytes"]
    assert "--wait-s SECONDS" in lines["--wait-s"] and lines["--wait-s"].endswith("[0.5]")
    assert lines["--dtype"].endswith("computation: auto|float32 [auto]")
    assert "--seldom" not in lines and "also: --seldom" in text
    assert "BATON_WORKER_<NAME>" in text


def test_long_meanings_are_cut_only_where_the_screen_ends() -> None:
    spec = specs(Example)["names"]
    few, many = flags.help_text("x", "x", [spec]), flags.help_text("x", "x", [spec] * 9)
    assert fits_a_screen(few) and fits_a_screen(many)
    assert "…" not in few and "… [a,b]" in many


def test_flags_are_text_for_the_settings() -> None:
    given = flags.parse(
        "example", "x", Example, ["--wait-s=3", "--strict", "--pool-bytes", "1GiB", "--config", "f.toml"]
    )
    assert given == flags.Given({"wait_s": "3", "strict": "true", "pool_bytes": "1GiB"}, "f.toml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prefil"], r"unknown command 'prefil'; did you mean prefill\?"),
        (["up", "--prot", "1"], r"unknown flag --prot; did you mean --port\?"),
        (["up", "--prefil", "3"], r"unknown flag --prefil; did you mean --prefill\?"),
        (["up", "8000"], "unknown argument 8000"),
        (["up", "--port"], r"--port: expected one argument"),
        (["up", "--port", "x"], r"flag --port: bad value 'x'"),
        (["up", "--prefill", "0"], r"prefill = 0, decode = 1, unified = 0 cannot answer requests"),
        (["version", "now"], "takes no arguments"),
        (["chat", "--max-tokens", "x"], "--max-tokens"),
        (["check-env", "--for", "x"], "--for"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    assert main.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("baton 0.")


def test_every_service_has_its_settings() -> None:
    sections = {name: settings_class(name).section for name in SERVICES}
    assert sections == {
        "gateway": "gateway", "router": "router", "kv-agent": "kv_agent",
        "prefill": "worker", "decode": "worker", "unified": "worker",
    }  # fmt: skip


def test_a_missing_requirement_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "baton.router.settings", None)
    with pytest.raises(ModuleNotFoundError):  # our own module: a defect, not a matter of installation
        settings_class("router")
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "baton.cli.chat", raising=False)
    monkeypatch.delitem(sys.modules, "baton.cli.sse", raising=False)
    with pytest.raises(ConfigError, match=r"httpx is not installed; .* pip install 'baton-serving\[embedded\]'"):
        main.find("chat")


def test_pools_that_cannot_serve() -> None:
    assert UpSettings(prefill=0, decode=0, unified=1).unified == 1
    with pytest.raises(ValueError, match="at least one of each"):
        UpSettings(decode=0)
