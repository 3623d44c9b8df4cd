"""Where settings come from: defaults < TOML file < environment < credentials folder.

Every problem is a `BadSetting`: one line that names the key and never shows a value that could be
a secret.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

from oncepaid.domain.errors import BadSetting
from oncepaid.settings import ENV_PREFIX, Settings

DEFAULT_PATHS: Final = (Path("oncepaid.toml"), Path("/etc/oncepaid/config.toml"))
CREDENTIALS: Final = {
    "anthropic_api_key": ("claude", "api_key"),
    "database_url": ("database", "url"),
    "webhook_secret": ("webhooks", "secret"),
}
"""Files in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential) and the keys that they set."""


class _CredentialsSource(PydanticBaseSettingsSource):
    """The files of `$CREDENTIALS_DIRECTORY`, each one value; a trailing newline is cut off."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        found: dict[str, Any] = {}
        for name, (section, key) in CREDENTIALS.items() if folder else ():
            path = Path(str(folder)) / name
            if path.is_file():
                try:
                    text = path.read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as exc:
                    problem = f"the credential {name} cannot be read ({type(exc).__name__})"
                    raise BadSetting(f"{section}.{key}", problem) from None
                if not text:
                    raise BadSetting(f"{section}.{key}", f"the credential {name} is empty")
                found.setdefault(section, {})[key] = text
        return found


def load_settings(path: Path | None) -> Settings:
    """Read and check all settings. Raises `BadSetting`.

    `path` None takes the first of `DEFAULT_PATHS` that exists, or none.
    """
    file = path or next((known for known in DEFAULT_PATHS if known.is_file()), None)
    if file is not None and not file.is_file():
        raise BadSetting("--config", f"there is no file {file}")
    _check_environment(os.environ)

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (_CredentialsSource(settings_cls), env_settings)
            return (*sources, TomlConfigSettingsSource(settings_cls, file)) if file else sources

    try:
        settings: Settings = FromFile()
    except tomllib.TOMLDecodeError as exc:
        raise BadSetting(str(file), f"is not valid TOML: {exc}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise BadSetting(str(file), f"cannot be read: {exc}") from exc
    except ValidationError as exc:
        raise _bad_setting_of(exc) from None
    except SettingsError as exc:
        # It says which field of which source could not be parsed, never the value.
        raise BadSetting("environment", str(exc)) from None
    return _with_absolute_files(settings, file)


def _check_environment(environment: Mapping[str, str]) -> None:
    for name in environment:
        if name.upper().startswith(ENV_PREFIX):
            section = name[len(ENV_PREFIX) :].lower().partition("__")[0]
            if section not in Settings.model_fields:
                raise BadSetting(name, "there is no such setting")


def _bad_setting_of(exc: ValidationError) -> BadSetting:
    """One line of the first problem; the others are counted, so that none is a surprise later."""
    problems = exc.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    key = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("literal[", "constrained-"))
    )
    text = {"extra_forbidden": "there is no such setting", "missing": "is missing"}.get(
        first["type"], first["msg"].removeprefix("Value error, ")
    )
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return BadSetting(key, text.replace("\n", " ") + more)


def _with_absolute_files(settings: Settings, file: Path | None) -> Settings:
    """Paths in the file are relative to the file, wherever the daemon was started."""
    folder = file.resolve().parent if file else Path.cwd()
    services = {
        key: service.model_copy(
            update={
                name: folder / given
                for name in ("system_prompt_file", "output_schema_file")
                if (given := getattr(service, name)) is not None
            }
        )
        for key, service in settings.services.items()
    }
    return settings.model_copy(update={"services": services})
