"""The catalogue: who is served, who decides, who follows whom, and what a crash leaves of a change."""

from pathlib import Path
from random import Random

import pytest

import streamactors as sa
from streamactors.durable.catalogue import Catalogue, Served, Version, Versions
from streamactors.testing.disk import Crash, SimDisk

FOLDER = Path("/data/jobs/quiz")


def versions(*labels, serving="v1"):
    return Versions("quiz", serving, [Version(label, 0) for label in labels], [Served(serving, 0)])


def test_who_is_not_served_follows_who_is():
    found = versions("v1", "v2", "v3")
    assert found.deciding == "v1"
    assert [found.followed_by(label) for label in ("v1", "v2", "v3")] == [None, "v1", "v1"]


def test_between_yielding_and_serving_nobody_decides():
    found = versions("v1", "v2", "v3")
    found.ask("v2", 1)
    assert found.deciding == "v1"
    found.yielded({"submissions": [3, [9]]})
    assert found.deciding is None
    assert [found.followed_by(label) for label in ("v1", "v2", "v3")] == ["v2", "v1", "v1"]
    assert found.serving == "v1", "readers are given the old version until the other stands where it ended"
    found.serve(2)
    assert (found.serving, found.deciding, found.handover) == ("v2", "v2", None)
    assert [found.followed_by(label) for label in ("v1", "v2", "v3")] == ["v2", None, "v2"]
    assert found.history[-1] == Served("v2", 2)


def test_a_handover_may_be_taken_back_and_the_serving_version_decides_again():
    found = versions("v1", "v2")
    found.ask("v2", 1)
    found.yielded({})
    found.take_back()
    assert (found.serving, found.deciding) == ("v1", "v1")


def test_asking_for_who_is_served_ends_a_handover():
    found = versions("v1", "v2")
    found.ask("v2", 1)
    found.ask("v1", 2)
    assert found.handover is None


def test_who_has_yielded_to_one_can_not_be_asked_to_yield_to_another():
    found = versions("v1", "v2", "v3")
    found.ask("v2", 1)
    found.ask("v3", 2)
    assert found.handover.to == "v3"
    found.yielded({})
    with pytest.raises(sa.UsageError, match="v3 is about to be served instead of v1"):
        found.ask("v2", 3)


def test_asking_twice_keeps_what_was_reached():
    found = versions("v1", "v2")
    found.ask("v2", 1)
    found.yielded({"a": []})
    found.ask("v2", 2)
    assert found.handover.at == {"a": []}


def test_rolling_back_goes_to_who_was_served_before_and_is_still_there():
    found = versions("v1", "v2", "v3")
    assert found.before is None
    for label in ("v2", "v3"):
        found.ask(label, 0)
        found.yielded({})
        found.serve(1)
    assert found.before == "v2"
    found.retire("v2")
    assert found.before == "v1"
    found.retire("v1")
    assert found.before is None


def test_who_is_served_or_about_to_be_can_not_be_retired_nor_one_that_is_not_there():
    found = versions("v1", "v2")
    found.ask("v2", 1)
    for label in ("v1", "v2"):
        with pytest.raises(sa.UsageError, match="served, or about to be"):
            found.retire(label)
    with pytest.raises(sa.UsageError, match="job quiz has no version v9; its versions are v1, v2"):
        found.retire("v9")


def test_a_change_is_there_for_everyone_and_a_job_begins_with_its_first_version():
    disk = SimDisk(Random(1))
    assert Catalogue(disk, FOLDER).read() is None
    Catalogue(disk, FOLDER).change("quiz", "v1", 5, lambda found: None)
    Catalogue(disk, FOLDER).change("quiz", "ignored", 6, lambda found: found.begin("v2", 6))
    found = Catalogue(disk, FOLDER).read()
    assert (found.serving, [version.label for version in found.versions]) == ("v1", ["v1", "v2"])


def test_a_change_that_is_refused_changes_nothing():
    disk = SimDisk(Random(1))
    catalogue = Catalogue(disk, FOLDER)
    before = catalogue.change("quiz", "v1", 5, lambda found: None)
    with pytest.raises(sa.UsageError):
        catalogue.change("quiz", "v1", 6, lambda found: found.ask("v2", 6))
    assert catalogue.read() == before
    catalogue.change("quiz", "v1", 7, lambda found: found.begin("v2", 7))  # the lock was given back


def test_a_file_that_can_not_be_read_is_named():
    disk = SimDisk(Random(1))
    Catalogue(disk, FOLDER).change("quiz", "v1", 5, lambda found: None)
    disk.damage(FOLDER / "versions.json", 0, b"x")
    with pytest.raises(sa.Damaged, match=r"/data/jobs/quiz/versions\.json can't be read"):
        Catalogue(disk, FOLDER).read()


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("operation", range(1, 14))
def test_a_crash_leaves_the_change_whole_or_absent(operation, power):
    disk = SimDisk(Random(operation))
    Catalogue(disk, FOLDER).change("quiz", "v1", 5, lambda found: found.begin("v2", 5))
    disk.fail_at(operation)
    done = True
    try:
        Catalogue(disk, FOLDER).change("quiz", "v1", 6, lambda found: found.ask("v2", 6))
    except Crash:
        done = False
    disk = disk.crash(power=power)
    found = Catalogue(disk, FOLDER).read()
    assert found.serving == "v1"
    if done:
        assert found.handover is not None
    again = Catalogue(disk, FOLDER).change("quiz", "v1", 7, lambda found: found.ask("v2", 7))
    assert again.handover.to == "v2"
