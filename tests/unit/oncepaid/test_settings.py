"""Settings: four sources in their order, and one line that names the key of every mistake."""

from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from oncepaid.domain.errors import BadSetting
from oncepaid.domain.finality import Finalized, Included, Safe, Tier
from oncepaid.domain.money import Units
from oncepaid.setting_sources import load_settings
from oncepaid.settings import BASE_USDC, Settings

SECRET = "sk-hush-hush"
ADDRESS = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
TYPO = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02914"


@dataclass(frozen=True)
class Sources:
    """Where settings come from: files and an environment of one test."""

    folder: Path
    environment: pytest.MonkeyPatch
    file: Path | None = field(default=None)

    def load(
        self,
        toml: str | bytes | None = None,
        env: dict[str, str] | None = None,
        credentials: dict[str, str] | None = None,
    ) -> Settings:
        path = None
        if toml is not None:
            path = self.folder / "config.toml"
            path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        for name, value in (env or {}).items():
            self.environment.setenv(name, value)
        if credentials is not None:
            folder = self.folder / "credentials"
            folder.mkdir()
            for name, value in credentials.items():
                (folder / name).write_text(value, encoding="utf-8")
            self.environment.setenv("CREDENTIALS_DIRECTORY", str(folder))
        return load_settings(path)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Sources in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return Sources(tmp_path, monkeypatch)


def test_without_any_source_there_are_defaults(sources: Sources) -> None:
    settings = sources.load()
    assert settings.chain.chain_id == 8453
    assert settings.chain.token == BASE_USDC.lower()
    assert settings.chain.watched == frozenset()
    assert settings.database.url.get_secret_value() == "embedded:./oncepaid-data"
    assert settings.http.address == ("127.0.0.1", 9464)
    assert (settings.claude.max_tokens, settings.claude.timeout_s) == (2000, 30.0)
    assert [tier.tier for tier in settings.confirmation.tiers] == [
        Tier(up_to=Units(1_000_000), require=Included()),
        Tier(up_to=Units(50_000_000), require=Safe()),
        Tier(up_to=None, require=Finalized()),
    ]


def test_the_example_shows_the_defaults(sources: Sources) -> None:
    example = Path(__file__).parents[3] / "config.example.toml"
    shown, defaults = load_settings(example), sources.load()
    assert shown.model_dump(exclude={"services"}) == defaults.model_dump(exclude={"services"})


def test_the_stronger_source_wins(sources: Sources) -> None:
    toml = (
        '[database]\nurl = "postgresql://file/x"\n[log]\nlevel = "debug"\nformat = "console"\n'
        '[claude]\nmodel = "from-file"'
    )
    env = {
        "ONCEPAID__DATABASE__URL": "postgresql://environment/x",
        "ONCEPAID__LOG__LEVEL": "error",
        "ONCEPAID__CLAUDE__API_KEY": "from-environment",
    }
    settings = sources.load(toml, env, {"database_url": "postgresql://credential/x\n"})
    assert settings.log.format == "console"
    assert settings.log.level == "error"
    assert settings.claude.model == "from-file"
    assert settings.claude.api_key is not None
    assert settings.claude.api_key.get_secret_value() == "from-environment"
    assert settings.database.url.get_secret_value() == "postgresql://credential/x"


def test_credentials_are_files_of_one_value(sources: Sources) -> None:
    credentials = {
        "anthropic_api_key": f"{SECRET}\n",
        "webhook_secret": " hush \n",
        "something_else": "not ours",
    }
    settings = sources.load(credentials=credentials)
    assert settings.claude.api_key is not None
    assert settings.claude.api_key.get_secret_value() == SECRET
    assert settings.webhooks.secret is not None
    assert settings.webhooks.secret.get_secret_value() == "hush"
    assert SECRET not in repr(settings)


def test_a_credentials_folder_without_files_sets_nothing(sources: Sources) -> None:
    assert sources.load(credentials={}).model_dump() == Settings().model_dump()


def test_the_file_in_the_working_directory_is_taken(sources: Sources) -> None:
    (sources.folder / "oncepaid.toml").write_text("[chain]\nchain_id = 31337", encoding="utf-8")
    assert sources.load().chain.chain_id == 31337


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("https://one.example", ("https://one.example",)),
        ("https://one.example, http://two.example:1/key", ("https://one.example",
                                                           "http://two.example:1/key")),
        ('["https://one.example", "https://two.example/a,b"]',
         ("https://one.example", "https://two.example/a,b")),
        (" , ", ()),
        ("", ()),
        ("[]", ()),
    ],
)  # fmt: skip
def test_lists_in_the_environment(sources: Sources, text: str, urls: tuple[str, ...]) -> None:
    settings = sources.load(env={"ONCEPAID__CHAIN__HTTP_URLS": text})
    assert settings.chain.http_urls == urls


@pytest.mark.parametrize(
    ("text", "watched"),
    [
        ("*", None),
        ('["*"]', None),
        (ADDRESS, frozenset({ADDRESS.lower()})),
        (ADDRESS.lower(), frozenset({ADDRESS.lower()})),
        (f"0x{ADDRESS[2:].upper()}", frozenset({ADDRESS.lower()})),
        (f"{ADDRESS},{ADDRESS.lower()}", frozenset({ADDRESS.lower()})),
    ],
)
def test_recipients(sources: Sources, text: str, watched: frozenset[str] | None) -> None:
    assert sources.load(env={"ONCEPAID__CHAIN__RECIPIENTS": text}).chain.watched == watched


@pytest.mark.parametrize(
    ("text", "start"), [("latest", "latest"), ("0", 0), ("61000000", 61000000)]
)
def test_start_block_in_the_environment(sources: Sources, text: str, start: str | int) -> None:
    assert sources.load(env={"ONCEPAID__CHAIN__START_BLOCK": text}).chain.start_block == start


def test_tiers_and_services_in_the_environment(sources: Sources) -> None:
    settings = sources.load(
        env={
            "ONCEPAID__CONFIRMATION__TIERS": '[{"up_to": "0.5", "require": "3s"}]',
            "ONCEPAID__SERVICES__WRITE__PRICE_USDC": "0.75",
        }
    )
    assert [tier.up_to for tier in settings.confirmation.tiers] == [Decimal("0.5")]
    assert settings.services["write"].price_usdc == Decimal("0.75")


def test_files_of_a_service_lie_beside_the_configuration(sources: Sources) -> None:
    toml = (
        '[services.write]\nsystem_prompt_file = "prompts/write.md"\noutput_schema_file = "/s.json"'
    )
    service = sources.load(toml).services["write"]
    assert service.system_prompt_file == sources.folder.resolve() / "prompts" / "write.md"
    assert service.output_schema_file == Path("/s.json")


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:9464", ("::1", 9464)),
        ("host:65535", ("host", 65535)),
    ],
)
def test_listening_addresses(sources: Sources, listen: str, address: tuple[str, int]) -> None:
    assert sources.load(f'[http]\nlisten = "{listen}"').http.address == address


FILE_MISTAKES = [
    ("[chian]\nchain_id = 1", "chian", "there is no such setting"),
    ("[chain]\nchian_id = 1", "chain.chian_id", "there is no such setting"),
    ("chain = 5", "chain", "valid dictionary"),
    ('[chain]\nchain_id = "x"', "chain.chain_id", "valid integer"),
    ("[chain]\nchain_id = 0", "chain.chain_id", "greater than or equal to 1"),
    ("[chain]\nchain_id = 1.5", "chain.chain_id", "valid integer"),
    (f'[chain]\ntoken = "{TYPO}"', "chain.token", "a digit was mistyped"),
    (f'[chain]\ntoken = "{ADDRESS[:-1].lower()}"', "chain.token", "is not an address"),
    (f'[chain]\nrecipients = ["{TYPO}"]', "chain.recipients", "a digit was mistyped"),
    (f'[chain]\nrecipients = ["*", "{ADDRESS}"]', "chain.recipients", "stands alone"),
    ("[chain]\nrecipients = [5]", "chain.recipients.0", "valid string"),
    ("[chain]\nstart_block = -1", "chain.start_block", ""),
    ('[chain]\nstart_block = "first"', "chain.start_block", '"latest"'),
    ("[chain]\npoll_interval_s = 0", "chain.poll_interval_s", "0.05"),
    ("[chain]\npoll_interval_s = nan", "chain.poll_interval_s", ""),
    ("[chain]\npoll_interval_s = inf", "chain.poll_interval_s", "3600"),
    ('[chain]\nws_urls = ["https://x"]', "chain.ws_urls.0", "ws or wss"),
    ('[chain]\nhttp_urls = ["wss://x"]', "chain.http_urls.0", "http or https"),
    ('[chain]\nhttp_urls = ["https://"]', "chain.http_urls.0", "http or https"),
    ("[chain]\nmax_range_blocks = 0", "chain.max_range_blocks", "1"),
    ('[confirmation]\ntiers = [{require = "soon"}]', "confirmation.tiers.0.require", "'soon'"),
    ('[confirmation]\ntiers = [{up_to = "1"}]', "confirmation.tiers.0.require", "is missing"),
    (
        '[confirmation]\ntiers = [{up_to = "0.0000001", require = "safe"}]',
        "confirmation.tiers.0.up_to",
        "more than 6 decimals",
    ),
    ("[matching]\njob_lifetime_s = -1", "matching.job_lifetime_s", "0"),
    ('[matching]\namount_fallback = "perhaps"', "matching.amount_fallback", "boolean"),
    ("[claude]\nmax_tokens = 0", "claude.max_tokens", "1"),
    ("[claude]\nmax_tokens = 21334", "claude.max_tokens", "21333"),
    ("[claude]\ntimeout_s = 0", "claude.timeout_s", "greater than 0"),
    ('[claude]\nmodel = ""', "claude.model", "at least 1"),
    ('[claude]\nmax_cost_usd_per_job = "NaN"', "claude.max_cost_usd_per_job", "finite"),
    ('[claude]\neffort = "some"', "claude.effort", "'low'"),
    (
        "[claude.prices.x]\ninput_usd_per_mtok = 1",
        "claude.prices.x.output_usd_per_mtok",
        "is missing",
    ),
    ("[services.Write]", "services", "lower-case letters and digits"),
    ('[services."a-b"]', "services", "lower-case letters and digits"),
    ('[services."é"]', "services", "lower-case letters and digits"),
    ('[services.a]\nprice_usdc = "NaN"', "services.a.price_usdc", "finite"),
    ('[services.a]\nprice_usdc = "-1"', "services.a.price_usdc", "non-negative"),
    ("[services.a]\nprice_usdc = -1", "services.a.price_usdc", "non-negative"),
    ('[services.a]\nprice_usdc = "1e999999"', "services.a.price_usdc", "uint256"),
    ("[services.a]\nprice_usdc = 0.1234567", "services.a.price_usdc", "6 decimals"),
    ("[services.a]\nprice_usdc = true", "services.a.price_usdc", "Decimal"),
    (
        '[services.a]\nsystem_prompt = "x"\nsystem_prompt_file = "y"',
        "services.a",
        "not both",
    ),
    ('[database]\nurl = "mysql://x"', "database.url", "postgresql://"),
    ('[database]\nurl = "embedded:"', "database.url", "embedded:DIR"),
    ("[database]\npool_size = 2", "database.pool_size", "3"),
    ('[http]\nlisten = "9464"', "http.listen", "HOST:PORT"),
    ('[http]\nlisten = ":9464"', "http.listen", "HOST:PORT"),
    ('[http]\nlisten = "host:65536"', "http.listen", "HOST:PORT"),
    ('[http]\nlisten = "host:http"', "http.listen", "HOST:PORT"),
    ('[webhooks]\nendpoints = ["https://x"]', "webhooks.endpoints", "no webhooks yet"),
    ('[log]\nlevel = "loud"', "log.level", "'debug'"),
]


@pytest.mark.parametrize(("toml", "key", "words"), FILE_MISTAKES, ids=lambda part: part[:40])
def test_a_mistake_in_the_file_is_one_line_with_its_key(
    sources: Sources, toml: str, key: str, words: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        sources.load(toml)
    assert caught.value.key == key
    assert words in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tiers",
    [
        '[{up_to = "5", require = "safe"}, {up_to = "1", require = "safe"}]',
        '[{up_to = "5", require = "safe"}, {up_to = "5.0", require = "finalized"}]',
        '[{require = "safe"}, {up_to = "1", require = "safe"}]',
        '[{require = "safe"}, {require = "finalized"}]',
    ],
)
def test_tiers_rise(sources: Sources, tiers: str) -> None:
    with pytest.raises(BadSetting, match=r"^confirmation: tiers must rise in up_to"):
        sources.load(f"[confirmation]\ntiers = {tiers}")


def test_further_mistakes_are_counted(sources: Sources) -> None:
    with pytest.raises(BadSetting, match=r"^log\.format: .* \(and 2 more\)$"):
        sources.load('[log]\nformat = "xml"\nlevel = "loud"\nlog = 1')


@pytest.mark.parametrize(
    ("name", "value", "key", "words"),
    [
        ("ONCEPAID__CHIAN__TOKEN", "x", "ONCEPAID__CHIAN__TOKEN", "there is no such setting"),
        ("ONCEPAID__TOKEN", "x", "ONCEPAID__TOKEN", "there is no such setting"),
        ("ONCEPAID__", "x", "ONCEPAID__", "there is no such setting"),
        ("oncepaid__chian__token", "x", "oncepaid__chian__token", "there is no such setting"),
        ("ONCEPAID__CHAIN__TOKN", "x", "chain.tokn", "there is no such setting"),
        ("ONCEPAID__CHAIN__TOKEN", TYPO, "chain.token", "a digit was mistyped"),
        ("ONCEPAID__CHAIN__HTTP_URLS", '["https://x"', "chain.http_urls", "must be a JSON list"),
        ("ONCEPAID__CHAIN__START_BLOCK", "-5", "chain.start_block", ""),
        ("ONCEPAID__SERVICES__A__PRICE_USDC", "1,5", "services.a.price_usdc", "decimal"),
    ],
)
def test_a_mistake_in_the_environment_is_one_line_with_its_key(
    sources: Sources, name: str, value: str, key: str, words: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        sources.load(env={name: value})
    assert caught.value.key == key
    assert words in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("toml", "env", "credentials", "key"),
    [
        (f'[database]\nurl = "mysql://me:{SECRET}@x"', {}, None, "database.url"),
        (f'[database]\nurl = ["postgresql://me:{SECRET}@x"]', {}, None, "database.url"),
        (f'[claude]\napi_key = ["{SECRET}"]', {}, None, "claude.api_key"),
        (f'[claude]\napi_key = {{value = "{SECRET}"}}', {}, None, "claude.api_key"),
        (f'[claude]\napi_key = "{SECRET}"\nmodle = "{SECRET}"', {}, None, "claude.modle"),
        (f'[claude]\nbase_url = "ftp://{SECRET}@x"', {}, None, "claude.base_url"),
        (f'[chain]\nhttp_urls = ["htps://x/{SECRET}"]', {}, None, "chain.http_urls.0"),
        (f'[webhooks]\nendpoints = ["https://x/{SECRET}"]', {}, None, "webhooks.endpoints"),
        (None, {"ONCEPAID__CHAIN__WS_URLS": f"https://x/{SECRET}"}, None, "chain.ws_urls.0"),
        (None, {"ONCEPAID__CHAIN__WS_URLS": f'["wss://{SECRET}"'}, None, "chain.ws_urls"),
        (None, {"ONCEPAID__DATABASE__URL": SECRET}, None, "database.url"),
        (None, {"ONCEPAID__KEY": SECRET}, None, "ONCEPAID__KEY"),
        (None, {}, {"database_url": f"mysql://me:{SECRET}@x"}, "database.url"),
    ],
)
def test_a_secret_is_never_in_the_message(
    sources: Sources,
    toml: str | None,
    env: dict[str, str],
    credentials: dict[str, str] | None,
    key: str,
) -> None:
    with pytest.raises(BadSetting) as caught:
        sources.load(toml, env, credentials)
    assert caught.value.key == key
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(sources: Sources) -> None:
    with pytest.raises(BadSetting, match=r"^--config: there is no file .*missing\.toml$"):
        load_settings(sources.folder / "missing.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[chain\n", "is not valid TOML"),
        (f"[claude]\napi_key = {SECRET}".encode(), "is not valid TOML"),
        (f'[claude]\napi_key = "{SECRET}\n'.encode(), "is not valid TOML"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_not_toml_is_named(sources: Sources, content: bytes, words: str) -> None:
    with pytest.raises(BadSetting) as caught:
        sources.load(content)
    assert caught.value.key.endswith("config.toml")
    assert words in caught.value.problem
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
