"""Names of jobs and versions are folders, and lead nowhere else."""

import pytest

import streamactors as sa
from streamactors.job.folders import check_label, job_folder


@pytest.mark.parametrize("name", ["", ".", "..", "../../other/jobs/j", "a/b", "/etc", "a\\b", "a b", "ä", 201 * "x"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path, name):
    with pytest.raises(sa.UsageError, match="can't be the name of a job"):
        job_folder(tmp_path, name)
    with pytest.raises(sa.UsageError, match="can't be the name of a version"):
        check_label(name)
