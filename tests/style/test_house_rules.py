"""The house rules, executed. A rule that is not here is only an opinion."""

import pytest

from tests.style import rules
from tests.style.sources import ROOT, Module, modules

PRODUCT = modules("streamactors", "connectors")


@pytest.fixture(scope="module")
def documented():
    """What some class documents, others may implement without repeating the text."""
    return rules.contracts(PRODUCT)


@pytest.mark.parametrize("module", modules("streamactors"), ids=str)
def test_a_module_imports_only_from_what_comes_before_it(module):
    assert not list(rules.broken_import_direction(module))


@pytest.mark.parametrize("module", modules("connectors"), ids=str)
def test_a_connector_knows_only_the_core(module):
    assert not list(rules.broken_connector_import(module))


def test_the_root_only_re_exports():
    assert not list(rules.broken_root(Module(ROOT / "streamactors" / "__init__.py")))


@pytest.mark.parametrize("module", PRODUCT, ids=str)
def test_files_and_functions_stay_small(module):
    assert not list(rules.broken_size(module))


@pytest.mark.parametrize("module", modules("streamactors", "connectors", "examples"), ids=str)
def test_data_can_not_hold_code(module):
    assert not list(rules.broken_code_in_data(module))


@pytest.mark.parametrize("module", PRODUCT, ids=str)
def test_what_is_public_is_explained(module, documented):
    assert not list(rules.broken_docstring(module, documented))


def test_the_rules_have_something_to_look_at():
    """Each of them would pass on an empty list."""
    assert {module.place[1] for module in modules("streamactors") if len(module.place) > 1} >= {"core", "testing"}
    assert modules("connectors")
