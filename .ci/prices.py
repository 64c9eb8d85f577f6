"""Write `proxy/usage/prices.json`, the built-in table of prices: `make prices`.

The prices of OpenAI, Anthropic and Google are those of the package genai-prices, as in force today; the prices of
DashScope's models stand here, with the vendor's page. The table is for text: what is billed by the image, the second or
the minute is left out, and so are models that exist for that. Prices per million tokens, in dollars unless it says so.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genai_prices.data import providers
from genai_prices.types import ClauseEquals, ClauseOr, ClauseRegex, ClauseStartsWith, TieredPrices

TABLE = Path(__file__).parents[1] / "proxy/usage/prices.json"
# Where each provider's names begin; others that it lists are another vendor's.
PROVIDERS = {"openai": "", "anthropic": "claude", "google": "gem"}
PARTS = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "output": "output_mtok",
}
NOT_TEXT = re.compile(r"^ft:|\.ft|audio|realtime|image|tts|whisper|transcribe|-live|live-|banana|omni|translate|:")
# What a regular expression of a family's dated names ends with.
DATED = re.compile(r"-\\d\{(?:8\}|4\}-\\d\{2\}-\\d\{2\})\$$|\[-@\]\\d\{8\}\$$|-\\d$")

INTERNATIONAL = "https://www.alibabacloud.com/help/en/model-studio/model-pricing"
CHINA = "https://help.aliyun.com/zh/model-studio/model-pricing"
# An implicit cache hit costs a fifth of the input, and writing an explicit cache a quarter more than it; hits of an
# explicit one, which the usage does not tell apart, cost half of what is reckoned here.
DASHSCOPE: dict[str, dict[str, Any]] = {
    "qwen-max": {"input": "1.6", "cached_input": "0.32", "output": "6.4"},
    "qwen3-max": {
        "input": "1.2", "cached_input": "0.24", "cache_write": "1.5", "output": "6",
        "tiers": [
            {"above": 32000, "input": "2.4", "cached_input": "0.48", "cache_write": "3", "output": "12"},
            {"above": 128000, "input": "3", "cached_input": "0.6", "cache_write": "3.75", "output": "15"},
        ],
    },
    "qwen-plus": {
        "input": "0.4", "cached_input": "0.08", "cache_write": "0.5", "output": "1.2", "thinking_output": "4",
        "tiers": [
            {
                "above": 256000,
                "input": "1.2", "cached_input": "0.24", "cache_write": "1.5", "output": "3.6", "thinking_output": "12",
            },
        ],
    },
    "qwen-flash": {
        "input": "0.05", "cached_input": "0.01", "cache_write": "0.0625", "output": "0.4",
        "tiers": [
            {"above": 256000, "input": "0.25", "cached_input": "0.05", "cache_write": "0.3125", "output": "2"},
        ],
    },
    "qwen-turbo": {"input": "0.05", "cached_input": "0.01", "output": "0.2", "thinking_output": "0.5"},
    "qwq-plus": {"input": "0.8", "output": "2.4"},
    "qwen-vl-max": {"input": "0.8", "cached_input": "0.16", "output": "3.2"},
    "qwen-vl-plus": {"input": "0.21", "cached_input": "0.042", "output": "0.63"},
    "text-embedding-v3": {"input": "0.07"},
    "text-embedding-v4": {"input": "0.07"},
    "qwen-long": {"input": "0.5", "output": "2", "currency": "CNY", "source": CHINA},
}  # fmt: skip


def names(clause: object) -> set[str]:
    """Return the names that a clause matches, without versions at their end; of other clauses none."""
    match clause:
        case ClauseOr():
            return set().union(*map(names, clause.or_))
        case ClauseEquals():
            return {clause.equals}
        case ClauseStartsWith():
            return {clause.starts_with.rstrip("-@")}
        case ClauseRegex():
            family = DATED.sub("", clause.regex.removeprefix("^")).replace("\\.", ".")
            return {family} if re.fullmatch(r"[a-z0-9.-]+", family) else set()
        case _:
            return set()


def in_force(prices: Any, today: dt.date) -> Any:
    """Return the last price that had begun by today: they are in order."""
    if not isinstance(prices, list):
        return prices
    begun = [
        item.prices
        for item in prices
        if item.constraint is None or getattr(item.constraint, "start_date", dt.date.max) <= today
    ]
    return begun[-1]


def entry(prices: Any) -> dict[str, Any] | None:
    """Return a model's entry; None if it has no price for tokens."""
    found = {part: value for part, name in PARTS.items() if (value := getattr(prices, name, None)) is not None}
    if "input" not in found:
        return None
    bounds = sorted({tier.start for value in found.values() if isinstance(value, TieredPrices) for tier in value.tiers})
    made: dict[str, Any] = {part: at(value, 0) for part, value in found.items()}
    if bounds:
        made["tiers"] = [
            {"above": bound, **{part: at(value, bound + 1) for part, value in found.items()}} for bound in bounds
        ]
    return made


def at(value: Any, tokens: int) -> Decimal:
    """Return the price for that many tokens of input."""
    if not isinstance(value, TieredPrices):
        return Decimal(value)
    return Decimal(next((tier.price for tier in reversed(value.tiers) if tokens > tier.start), value.base))


def collect(today: dt.date) -> dict[str, Any]:
    """Return all models' entries by name, in order; an alias is the name of another entry."""
    models: dict[str, Any] = {}
    for provider in providers:
        if provider.id not in PROVIDERS:
            continue
        aliases: dict[str, str] = {}
        for model in provider.models:
            if not model.id.startswith(PROVIDERS[provider.id]) or NOT_TEXT.search(model.id):
                continue
            made = entry(in_force(model.prices, today))
            if made is None:
                continue
            models[model.id] = made
            aliases.update({name: model.id for name in names(model.match) if not NOT_TEXT.search(name)})
        # A family's first letters may be another model's whole name.
        models.update({name: model for name, model in aliases.items() if name not in models})
    for name, price in DASHSCOPE.items():
        models[name] = {
            part: value if part in {"tiers", "currency", "source"} else Decimal(value)
            for part, value in {**price, "source": price.get("source", INTERNATIONAL)}.items()
        }
    return dict(sorted(models.items()))


def number(value: object) -> object:
    """Write a decimal, or the text of one, as a JSON number."""
    return json.loads(f"{Decimal(str(value)):f}", parse_float=float)


def compact(value: Any) -> Any:
    """Make numbers of all prices, in tiers too."""
    if isinstance(value, dict):
        return {key: item if key in {"currency", "source", "above"} else compact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [compact(item) for item in value]
    return number(value)


def main() -> int:
    """Write the table: one model a line, so that a change of a price is a change of its line."""
    today = dt.datetime.now(dt.UTC).date()
    release = version("genai-prices")
    source = [
        f"OpenAI, Anthropic, Google: genai-prices {release} (MIT), as of {today}, standard tier",
        f"Alibaba Cloud Model Studio (DashScope), by hand: {INTERNATIONAL}, international; qwen-long: {CHINA}",
    ]
    lines = [
        f"  {json.dumps(name)}: {json.dumps(model if isinstance(model, str) else compact(model))}"
        for name, model in collect(today).items()
    ]
    head = (
        f'{{"version": {json.dumps(f"{today}/{release}")},\n"source": {json.dumps(source, indent=1)},\n"models": {{\n'
    )
    TABLE.write_text(head + ",\n".join(lines) + "\n}}\n", "utf-8")
    sys.stdout.write(f"{len(lines)} models, {TABLE.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
