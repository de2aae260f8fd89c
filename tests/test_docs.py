"""The documentation names everything that people can write."""

import re
import sys
from pathlib import Path

import msgspec
import pytest
from litestar.routes import HTTPRoute
from snapshot import UPDATING

from gateway.core import task
from gateway.settings import PREFIX, Settings
from gateway.web.apidoc import reference
from gateway.web.doors import WebSettings
from gateway.web.wiring import create_app

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("field", Settings.__struct_fields__)
def test_every_setting_is_documented(field: str) -> None:
    """docs/settings.md has a row for each."""
    assert f"`{PREFIX}{field.upper()}`" in (DOCS / "settings.md").read_text("utf-8")


def test_no_setting_is_documented_that_does_not_exist() -> None:
    """Rows that nobody reads any more mislead."""
    rows = re.findall(r"^\| `GATEWAY_(\w+)`", (DOCS / "settings.md").read_text("utf-8"), re.MULTILINE)
    assert {row.lower() for row in rows} == set(Settings.__struct_fields__)


@pytest.mark.parametrize(
    "kind", [task.Task, task.RulesStage, task.CnnStage, task.ChainStage, task.Quota, task.Model, task.Price]
)
def test_every_key_of_a_task_is_documented(kind: type) -> None:
    """docs/tasks.md names each key of task.toml and models.toml."""
    text = (DOCS / "tasks.md").read_text("utf-8")
    keys = [field.encode_name for field in msgspec.structs.fields(kind)]
    assert [key for key in keys if not re.search(rf"[`\[.]{key}\b", text)] == []


def test_api_md_has_a_section_for_every_route_and_code() -> None:
    """Neither is missing, and none is left of one that is gone. UPDATE_SNAPSHOTS=1 writes the sections anew."""
    sys.path.append(str(Path(__file__).parent / "web"))
    from in_memory import Memory

    app = create_app(Memory().doors(), WebSettings())
    handlers = [h for route in app.routes if isinstance(route, HTTPRoute) for h in route.route_handlers]
    wanted = reference([handler for handler in handlers if handler.opt.get("contract")])
    text = (DOCS / "api.md").read_text("utf-8")
    if UPDATING:
        text = text.partition("## Routes")[0] + wanted
        (DOCS / "api.md").write_text(text, "utf-8")
    assert re.findall(r"^### .*", text, re.MULTILINE) == re.findall(r"^### .*", wanted, re.MULTILINE)
    assert text.endswith(wanted), "scopes, members or errors of a route have changed"
