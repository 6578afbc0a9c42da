"""The house rules, executed. A rule that is not here is only an opinion."""

from tests.style import rules
from tests.style.sources import ROOT, Module, modules

PRODUCT = modules("streamactors", "connectors")


def found(rule, checked, *more):
    """All that breaks the rule: one test for each rule, not for each file, because a finding names its file."""
    return [broken for module in checked for broken in rule(module, *more)]


def test_a_module_imports_only_from_what_comes_before_it():
    assert not found(rules.broken_import_direction, modules("streamactors"))


def test_a_connector_knows_only_the_core():
    assert not found(rules.broken_connector_import, modules("connectors"))


def test_the_root_only_re_exports():
    assert not list(rules.broken_root(Module(ROOT / "streamactors" / "__init__.py")))


def test_files_and_functions_stay_small():
    assert not found(rules.broken_size, PRODUCT)


def test_data_can_not_hold_code():
    assert not found(rules.broken_code_in_data, [*PRODUCT, *modules("examples")])


def test_what_is_public_is_explained():
    """What some class documents, others may implement without repeating the text."""
    assert not found(rules.broken_docstring, PRODUCT, rules.contracts(PRODUCT))


def test_a_test_that_lacks_a_package_fails():
    """The extra `test` brings all of them. One that is skipped would prove nothing, and nobody would know."""
    skips = "importor" + "skip"
    assert not [module for module in modules("tests") if skips in module.text]


def test_the_rules_have_something_to_look_at():
    """Each of them would pass on an empty list."""
    assert {module.place[1] for module in modules("streamactors") if len(module.place) > 1} >= {"core", "testing"}
    assert modules("connectors")
