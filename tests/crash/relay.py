"""A pipeline in which each record can be found again: tests/crash/guarantees.py counts what a kill loses and repeats.

counts     how many submissions there are of each quiz
seen       a topic: the number of each submission, in the order in which they were read
"""

import streamactors as sa

pipeline = sa.Pipeline("relay")
submissions = pipeline.topic("submissions")
submissions.key_by("quiz_id").count().to_view("counts")
submissions.map(lambda record: record["arrival"]).to_topic("seen")
